"""A real browser, Chromium without a window, driven by its own protocol over a pipe: nothing has to be installed."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = "chromium"
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-sync", "--disable-component-update", "--disable-dev-shm-usage", "--no-default-browser-check",
    "--remote-debugging-pipe",
)  # fmt: skip
LIMIT_S = 60.0
_START = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); os.execvp(sys.argv[3], sys.argv[3:])"
)
"""It wants its pipes to have the numbers 3 and 4."""


class Chromium:
    """One process. Commands and answers are JSON with a NUL behind each."""

    def __init__(self, folder: Path) -> None:
        theirs_in, ours_out = os.pipe()
        ours_in, theirs_out = os.pipe()
        high = [fcntl.fcntl(each, fcntl.F_DUPFD, 20) for each in (theirs_in, theirs_out)]
        arguments = [CHROMIUM, *FLAGS, f"--user-data-dir={folder}", "about:blank"]
        with (folder / "chromium.log").open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _START, *map(str, high), *arguments],
                pass_fds=high, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        for each in (theirs_in, theirs_out, *high):
            os.close(each)
        self._out, self._in = ours_out, ours_in
        self._unread = b""
        self._number = 0
        self.events: list[dict[str, Any]] = []

    def call(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """Do something; returns its result."""
        self._number += 1
        number = self._number
        told: dict[str, Any] = {"id": number, "method": method, "params": params}
        if session is not None:
            told["sessionId"] = session
        os.write(self._out, json.dumps(told).encode() + b"\0")
        found = self.wait(f"the answer to {method}", lambda event: event.get("id") == number)
        assert "error" not in found, (method, params, found["error"])
        return dict(found["result"])

    def wait(self, what: str, is_it: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The next message of this kind; the others before it are kept in ``events``."""
        deadline = time.monotonic() + LIMIT_S
        while True:
            message = self._next(what, deadline)
            self.events.append(message)
            if is_it(message):
                return message

    def _next(self, what: str, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._unread:
            ready, _, _ = select.select([self._in], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"waited too long for {what}"
            piece = os.read(self._in, 2**16)
            assert piece, f"Chromium ended while {what} was awaited"
            self._unread += piece
        message, _, self._unread = self._unread.partition(b"\0")
        return dict(json.loads(message))

    def new_browser(self) -> Tab:
        """A tab of a browser of its own: it shares no cookies with others."""
        context = self.call("Target.createBrowserContext")["browserContextId"]
        target = self.call("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable", session)
        return Tab(self, context, session)

    def close(self) -> None:
        os.close(self._out)
        os.close(self._in)
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Tab:
    """A page that is looked at."""

    def __init__(self, chromium: Chromium, context: str, session: str) -> None:
        self._chromium = chromium
        self._context = context
        self._session = session

    def go(self, url: str) -> None:
        """Open an address, as if it was typed."""
        with self._loading():
            self._chromium.call("Page.navigate", self._session, url=url)

    def click(self, selector: str) -> None:
        """Click what leads to another page."""
        with self._loading():
            self.run(f"document.querySelector({json.dumps(selector)}).click()")

    def fill(self, selector: str, text: str) -> None:
        self.run(f"document.querySelector({json.dumps(selector)}).value = {json.dumps(text)}")

    def has(self, selector: str) -> bool:
        return bool(self.run(f"document.querySelector({json.dumps(selector)}) !== null"))

    def run(self, script: str) -> Any:
        """The value of a script in the page. What a page may not do, it may not do here either."""
        told = {"expression": script, "awaitPromise": True, "returnByValue": True, "userGesture": True}
        result = self._chromium.call("Runtime.evaluate", self._session, **told)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    @property
    def url(self) -> str:
        return str(self.run("location.href"))

    @property
    def text(self) -> str:
        return str(self.run("document.body.innerText"))

    @property
    def cookies(self) -> dict[str, dict[str, Any]]:
        """All cookies of this browser, also those that pages do not see."""
        found = self._chromium.call("Storage.getCookies", browserContextId=self._context)["cookies"]
        return {each["name"]: each for each in found}

    @property
    def visited(self) -> list[str]:
        """The addresses that pages were asked for, redirects too, in order."""
        asked = [each["params"] for each in self._own("Network.requestWillBeSent")]
        return [str(each["request"]["url"]) for each in asked if each["type"] == "Document"]

    def fetched_by(self, site: str) -> list[str]:
        """What else the pages of ``site`` had the browser fetch."""
        asked = [each["params"] for each in self._own("Network.requestWillBeSent")]
        its = [each for each in asked if each["type"] != "Document" and each["documentURL"].startswith(site)]
        return [str(each["request"]["url"]) for each in its]

    def complaints_of(self, site: str) -> list[str]:
        """What the browser finds wrong with ``site``, such as what its content security policy forbids."""
        entries = [each["params"]["entry"] for each in self._own("Log.entryAdded")]
        return [str(each["text"]) for each in entries if each.get("url", "").startswith(site)]

    def _own(self, method: str) -> list[dict[str, Any]]:
        is_own = [each for each in self._chromium.events if each.get("sessionId") == self._session]
        return [each for each in is_own if each.get("method") == method]

    @contextlib.contextmanager
    def _loading(self) -> Iterator[None]:
        """Wait for the page to which something leads."""
        seen = len(self._own("Page.loadEventFired"))
        yield
        while len(self._own("Page.loadEventFired")) <= seen:
            self._chromium.wait("the page", lambda event: event.get("method") == "Page.loadEventFired")


@contextlib.contextmanager
def chromium() -> Iterator[Chromium]:
    """A process that runs. Skips where none is installed; fails where all must be tested."""
    if shutil.which(CHROMIUM) is None:
        assert not os.environ.get("CI"), "CI must have Chromium"
        pytest.skip("Chromium is not installed")
    folder = Path(tempfile.mkdtemp(prefix="first-", dir="/tmp"))
    made = Chromium(folder)
    try:
        yield made
    finally:
        made.close()
        shutil.rmtree(folder, ignore_errors=True)
