"""Shared by the tests of hostile engines, of overload and of long runs: labs, raw clients, the use of memory."""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml

from firstkit.testing.quick_engine import QuickEngine
from lab import Lab, one_model, wait_for

CHAT = "/v1/chat/completions"
LONG_ANSWER = 100_000
"""Tokens: more than any test waits for."""


# -- labs --------------------------------------------------------------------------------------------------------------


def external(url: str, cluster: str = "outside", **scale: int) -> dict[str, Any]:
    """A deployment at a service that somebody else runs."""
    return {"cluster": cluster, "engine": {"kind": "external", "url": url}, "scale": scale}


def piloted(engine: dict[str, Any], **scale: int) -> dict[str, Any]:
    """A deployment with one hot replica behind a pilot."""
    deployment: dict[str, Any] = one_model(engine, scale={"hot": 1, "max": 1, **scale})["m"]["deployments"][0]
    return deployment


@contextlib.contextmanager
def started(lab: Lab) -> Iterator[None]:
    """Start it, and close it in the end; a failure in between tells what was logged."""
    try:
        lab.start()
        yield
    except AssertionError as failure:
        raise AssertionError(f"{failure}\n{lab.logs()}") from failure
    finally:
        lab.close()


@contextlib.contextmanager
def lab_of(
    models: dict[str, list[dict[str, Any]]], limits: dict[str, int] | None = None, **server: Any
) -> Iterator[Lab]:
    """A lab whose models have these deployments, started, and live where they need a pilot."""
    lab = Lab.make({}, **server)
    try:
        config = yaml.safe_load(lab.config_path.read_text())
        config["clusters"] |= {"beyond": {"kind": "external"}}
        config["models"] = {name: {"deployments": deployments} for name, deployments in models.items()}
        if limits is not None:
            config["limits"] = limits
        lab.config_path.write_text(yaml.safe_dump(config))
        lab.start()
        batch = [name for name, deployments in models.items() if any(d["cluster"] == "here" for d in deployments)]
        wait_for("all replicas are ready", lambda: sum(r["state"] == "READY" for r in lab.replicas()) == len(batch))
        for name in batch:
            lab.wait_live(name)
        yield lab
    finally:
        lab.close()


def model_of(lab: Lab, model: str) -> dict[str, Any]:
    """The row of a model in /admin/status."""
    return next(row for row in lab.status()["models"] if row["id"] == model)


def in_flight(lab: Lab, model: str) -> int:
    return int(model_of(lab, model)["in_flight"])


def waiting(lab: Lab, model: str) -> int:
    return int(model_of(lab, model)["waiting"])


def rows_of(lab: Lab, model: str) -> list[Any]:
    """What the ledger has of a model, oldest first."""
    return sorted((row for row in lab.usage() if row["model"] == model), key=lambda row: row["at"])


def outcomes(lab: Lab, model: str) -> list[str]:
    """How the requests to a model ended, as the ledger has it, oldest first."""
    return [row["outcome"] for row in rows_of(lab, model)]


# -- engines -----------------------------------------------------------------------------------------------------------


class Record:
    """What an engine says that it did, wherever it runs: the oracle. Call it for the numbers of now."""

    def __init__(self, engine: QuickEngine | psutil.Process) -> None:
        self._engine = engine

    def __call__(self) -> dict[str, Any]:
        if isinstance(self._engine, QuickEngine):
            return asdict(self._engine.stats)
        return self._ask(f"/proc/{self._engine.pid}/cwd/engine.sock")  # the path itself may be too long

    def _ask(self, path: str) -> dict[str, Any]:
        connection = http.client.HTTPConnection("engine", timeout=20)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(20)
        connection.sock.connect(path)
        with contextlib.closing(connection):
            connection.request("GET", "/stats")
            stats: dict[str, Any] = json.loads(connection.getresponse().read())
            return stats


class EngineProcess:
    """A fake engine in a process of its own, which may be stopped and continued. Use as a context manager."""

    def __init__(self, behaviour: str, **options: object) -> None:
        argv = [sys.executable, "-m", "firstkit.testing.fake_engine", "--behaviour", behaviour, "--port", "0"]
        for name, value in options.items():
            argv += [f"--{name.replace('_', '-')}", str(value)]
        self.process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> EngineProcess:
        assert self.process.stdout is not None
        self.url = f"http://127.0.0.1:{int(self.process.stdout.readline())}/v1"
        return self

    def __exit__(self, *exc: object) -> None:
        self.process.kill()
        self.process.send_signal(signal.SIGCONT)
        self.process.communicate()


# -- clients -----------------------------------------------------------------------------------------------------------


@dataclass
class Answer:
    """What a client got. ``ending``: ``done`` ([DONE]), ``error`` (the event of one), ``whole`` (not a stream),
    ``reset``, or ``cut``: a stream that ended as if nothing were wrong, without saying that it is whole."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    ending: str = "reset"

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[Any]:
        """Objects of a stream; without ``[DONE]``."""
        said = [event[6:] for event in self.body.split(b"\n\n") if event.startswith(b"data: ")]
        return [json.loads(event) for event in said if event != b"[DONE]"]

    @property
    def tokens(self) -> int:
        chunks = [event for event in self.events if event.get("choices")]
        return sum(bool(chunk["choices"][0]["delta"].get("content")) for chunk in chunks)

    @property
    def code(self) -> str | None:
        """The code of the error that was told; None: none was."""
        if self.status >= 400:
            return str(self.json["error"]["code"])
        return str(self.events[-1]["error"]["code"]) if self.ending == "error" else None


class Asking:
    """One request on a connection of its own. Use as a context manager; ``hang_up`` is what leaving it does, too."""

    def __init__(
        self,
        lab: Lab,
        model: str = "m",
        said: str = "hello",
        key: str | None = None,
        headers: dict[str, str] | None = None,
        **fields: Any,
    ) -> None:
        self.answer = Answer()
        body = {"model": model, "messages": [{"role": "user", "content": said}], "stream": True, **fields}
        names = {"authorization": f"Bearer {key or lab.key}", "content-type": "application/json"}
        self._response: http.client.HTTPResponse | None = None
        self._connection = http.client.HTTPConnection("127.0.0.1", lab.port, timeout=60)
        try:
            self._connection.request("POST", CHAT, json.dumps(body), names | (headers or {}))
        except OSError:  # nobody will leave it
            self._connection.close()
            raise

    def __enter__(self) -> Asking:
        return self

    def __exit__(self, *exc: object) -> None:
        self.hang_up()

    def hang_up(self) -> None:
        if self._response is not None:
            self._response.close()
        self._connection.close()

    def head(self) -> http.client.HTTPResponse:
        """The answer, once its head is there."""
        if self._response is None:
            self._response = self._connection.getresponse()
            self.answer.status = self._response.status
            self.answer.headers = {name.lower(): value for name, value in self._response.getheaders()}
        return self._response

    def read_tokens(self, count: int = 1) -> None:
        """Read until so many tokens more have come; fails when the answer ends before."""
        response = self.head()
        while count:
            line = response.readline()
            assert line, f"no token came: {self.answer}"
            self.answer.body += line
            count -= b'"content": "' in line

    def rest(self) -> Answer:
        """Read to the end; returns the whole answer."""
        parts = [self.answer.body]
        try:
            response = self.head()
            while piece := response.read1(65536):
                parts.append(piece)
            is_whole = True
        except (ConnectionError, http.client.IncompleteRead, http.client.BadStatusLine):
            is_whole = False
        finally:
            self.hang_up()
        self.answer.body = b"".join(parts)
        if is_whole:
            self.answer.ending = _ending(self.answer)
        return self.answer


def _ending(answer: Answer) -> str:
    if not answer.headers["content-type"].startswith("text/event-stream"):
        return "whole"
    *_, last, rest = answer.body.split(b"\n\n")
    if rest:
        return "cut"
    if last == b"data: [DONE]":
        return "done"
    return "error" if last.startswith(b'data: {"error"') else "cut"


def ask(lab: Lab, model: str = "m", said: str = "hello", **options: Any) -> Answer:
    """One request and its whole answer; a stream unless ``stream=False``."""
    with Asking(lab, model, said, **options) as asking:
        return asking.rest()


# -- memory ------------------------------------------------------------------------------------------------------------


class Peak:
    """How far the memory of processes grows from now on, at its highest, in bytes."""

    def __init__(self, *pids: int) -> None:
        self._pids = pids
        for pid in pids:
            Path(f"/proc/{pid}/clear_refs").write_text("5")  # the highest is now
        self._before = [_peak_bytes(pid) for pid in pids]

    def grown(self) -> list[int]:
        return [_peak_bytes(pid) - before for pid, before in zip(self._pids, self._before, strict=True)]


def _peak_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
