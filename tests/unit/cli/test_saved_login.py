"""The login that is kept: for its owner alone, whole or not at all, made new by one command at a time."""

from __future__ import annotations

import stat
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import typer

from firstkit.auth import oauth
from firstkit.cli import oidc_login, remote, saved_login
from firstkit.cli.oidc_login import LoginFailed, Provider, Tokens
from firstkit.cli.saved_login import Login

LOGIN = Login("https://first.example.org/v1", "oidc", "https://idp.example.org", "cli", "access", 0.0, "refresh-1")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    return tmp_path


def later(seconds: float) -> Login:
    return replace(LOGIN, expires_at=time.time() + seconds)


def test_it_is_kept_for_its_owner_alone(home: Path) -> None:
    saved_login.save(LOGIN)
    assert saved_login.load() == LOGIN
    assert stat.S_IMODE(saved_login.path().stat().st_mode) == 0o600
    assert stat.S_IMODE(saved_login.path().parent.stat().st_mode) == 0o700
    assert [path.name for path in (home / "first").iterdir()] == ["login.json"]
    saved_login.forget()
    saved_login.forget()
    assert saved_login.load() is None


def test_one_that_others_can_read_is_not_used(capsys: pytest.CaptureFixture[str]) -> None:
    saved_login.save(LOGIN)
    saved_login.path().chmod(0o644)
    with pytest.raises(typer.Exit):
        saved_login.load()
    assert "chmod 600" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"server": 1', "\xff"])
def test_what_is_no_login(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    saved_login.save(LOGIN)
    saved_login.path().write_bytes(text.encode("latin-1"))
    with pytest.raises(typer.Exit):
        saved_login.load()
    assert "first login --server" in capsys.readouterr().err


class _Provider:
    """Counts refreshes; each refresh token is good once."""

    def __init__(self) -> None:
        self.spent: list[str] = []

    def refresh(self, provider: Provider, refresh_token: str) -> Tokens:
        time.sleep(0.05)  # so that others come meanwhile
        if refresh_token in self.spent:
            raise LoginFailed("the login is over: the refresh token was used twice.")
        self.spent.append(refresh_token)
        return Tokens(f"access-{len(self.spent)}", time.time() + 3600, f"refresh-{len(self.spent) + 1}")


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch) -> _Provider:
    made = _Provider()
    monkeypatch.setattr(oidc_login, "discover", lambda *args: None)
    monkeypatch.setattr(oidc_login, "refresh", made.refresh)
    return made


def test_a_token_that_is_good_is_used_as_it_is(provider: _Provider) -> None:
    assert remote.logged_in() is None
    saved_login.save(later(600))
    found = remote.logged_in()
    assert found is not None
    assert (found.base_url, found.token, provider.spent) == ("https://first.example.org/v1", "access", [])


def test_one_that_ends_is_made_new_once_however_many_ask(provider: _Provider) -> None:
    saved_login.save(later(5))
    found: list[str] = []

    def ask() -> None:
        here = remote.logged_in()
        found.append("" if here is None else here.token)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == ["access-1"] * 8
    assert provider.spent == ["refresh-1"]
    kept = saved_login.load()
    assert kept is not None
    assert kept.refresh_token == "refresh-2"


@pytest.mark.parametrize("change", [{"refresh_token": ""}, {"refresh_token": "spent"}])
def test_a_login_that_is_over(provider: _Provider, change: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    provider.spent.append("spent")
    saved_login.save(replace(later(-1), **change))
    with pytest.raises(typer.Exit):
        remote.logged_in()
    assert "the login is over" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("address", "is_private"),
    [
        ("https://first.example.org/v1", True),
        ("http://127.0.0.1:8000/v1", True),
        ("http://localhost:8000", True),
        ("http://[::1]:8000", True),
        ("http://first.example.org", False),
        ("http://127.0.0.1.example.org", False),
        ("ftp://localhost", False),
    ],
)
def test_a_login_goes_nowhere_where_others_can_read_it(address: str, is_private: bool) -> None:
    assert oauth.is_private(address) is is_private
