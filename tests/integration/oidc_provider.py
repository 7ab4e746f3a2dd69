"""A real OpenID provider, oidc-provider of npm, and people who log in there without a browser."""

from __future__ import annotations

import contextlib
import html.parser
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import httpx
import pytest
from joserfc.jwk import RSAKey

from lab import free_port, wait_for

PACKAGES = Path(__file__).parents[2] / ".cache" / "oidc" / "node_modules"
PROGRAM = Path(__file__).parent / "oidc" / "provider.mjs"
SECRET = "canary-client-secret"
DEVICE = "urn:ietf:params:oauth:grant-type:device_code"
MOST_PAGES = 10


def check_installed() -> None:
    """Skip the test where the provider is not installed; fail where all must be tested."""
    if not (shutil.which("node") and PACKAGES.is_dir()):
        lacking = "node and npm are missing" if not shutil.which("npm") else "run make oidc"
        assert not os.environ.get("CI"), f"CI must have the OpenID provider: {lacking}"
        pytest.skip(f"the OpenID provider is not installed: {lacking}")


@dataclass
class RealProvider:
    """The provider in a process of its own. Its port stays, its keys and its kind of tokens may change.

    ``redirect_uris``: those of its client ``first-gateway``; ``life_s``: that of access tokens.
    """

    folder: Path
    redirect_uris: list[str] = field(default_factory=lambda: ["http://127.0.0.1/auth/callback"])
    format: str = "jwt"
    life_s: int = 600
    key: RSAKey = field(default_factory=lambda: new_key("one"))
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[str] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        program = self.folder / PROGRAM.name
        if not program.exists():
            shutil.copy(PROGRAM, program)
            (self.folder / "node_modules").symlink_to(PACKAGES)
        with (self.folder / "provider.log").open("ab") as log:
            self.process = subprocess.Popen(
                ["node", program, str(self.port)], stdin=subprocess.PIPE, stdout=log, stderr=log, text=True
            )
        settings = {"format": self.format, "redirect_uris": self.redirect_uris, "life_s": self.life_s}
        settings |= {"secret": SECRET, "keys": {"keys": [self.key.as_dict(private=True)]}}
        assert self.process.stdin is not None
        with self.process.stdin as pipe:
            pipe.write(json.dumps(settings))
        wait_for("the OpenID provider answers", self._answers)

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(20)
            self.process = None

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, (self.folder / "provider.log").read_text()
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"{self.url}/.well-known/openid-configuration").status_code == 200
        return False

    # -- people ------------------------------------------------------------------------------------------------

    def by_device(self, user: str, scope: str = "openid email groups offline_access") -> dict[str, Any]:
        """The tokens of somebody who logs in on another device."""
        begun = self.post("device/auth", client_id="first-cli", scope=scope)
        log_in(begun["verification_uri_complete"], user)
        return self.post("token", grant_type=DEVICE, client_id="first-cli", device_code=begun["device_code"])

    def refreshed(self, refresh_token: str) -> dict[str, Any]:
        return self.post("token", grant_type="refresh_token", client_id="first-cli", refresh_token=refresh_token)

    def revoke(self, token: str) -> None:
        answer = httpx.post(f"{self.url}/token/revocation", data={"client_id": "first-cli", "token": token})
        assert answer.status_code == 200, answer.text

    def of_a_program(self) -> dict[str, Any]:
        """The tokens of a client that is no person's, for another service."""
        form = {"grant_type": "client_credentials", "client_id": "somebody-else", "client_secret": SECRET}
        return self.post("token", **form)

    def post(self, path: str, **form: str) -> dict[str, Any]:
        answer = httpx.post(f"{self.url}/{path}", data=form)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())


@contextlib.contextmanager
def real_provider(folder: Path, **options: Any) -> Iterator[RealProvider]:
    """One that runs; ``options`` as of ``RealProvider``."""
    check_installed()
    provider = RealProvider(folder, **options)
    try:
        provider.start()
        yield provider
    finally:
        provider.stop()


def new_key(kid: str) -> RSAKey:
    return RSAKey.generate_key(2048, {"kid": kid, "use": "sig", "alg": "RS256"})


def log_in(url: str, user: str) -> httpx.Response:
    """Go from page to page and do what each wants: name and password, consent, confirmation. Returns the last page."""
    with httpx.Client(follow_redirects=True) as browser:
        page = browser.get(url)
        for _ in range(MOST_PAGES):
            form = Form(page.text)
            if form.action is None:
                return page
            if "login" in form.fields:
                form.fields |= {"login": user, "password": "any"}
            page = browser.post(urljoin(str(page.url), form.action), data=form.fields)
    raise AssertionError(f"the login does not end: {page.text}")


class Form(html.parser.HTMLParser):
    """The first form of a page. ``action``: None where there is none."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.action: str | None = None
        self.fields: dict[str, str] = {}
        self._is_over = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        told = {name: value or "" for name, value in attrs}
        if tag == "form" and self.action is None:
            self.action = told["action"]
        elif tag in ("input", "button") and not self._is_over and told.get("name"):
            self.fields[told["name"]] = told.get("value", "")

    def handle_endtag(self, tag: str) -> None:
        self._is_over |= tag == "form"
