"""A FIRST for commands to be tried on: its configuration, its gateway, and somebody who is logged in there."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from firstkit.cli import saved_login
from firstkit.cli.admin import GatewayAway, fetch
from firstkit.cli.commands import build
from firstkit.cli.saved_login import Login
from lab import free_port, wait_for


class Installed:
    """One installation, that need not run."""

    def __init__(self, folder: Path, database_url: str, monkeypatch: pytest.MonkeyPatch, **sections: Any) -> None:
        """``sections``: of the configuration, beside or instead of the one model that has to be there."""
        self.folder = folder
        self._monkeypatch = monkeypatch
        self.listen = f"127.0.0.1:{free_port()}"
        self.config = folder / "first.yaml"
        engine = {"kind": "command", "argv": ["x"]}
        content = {
            "server": {"state_dir": str(folder), "database": database_url, "listen": self.listen},
            "clusters": {"here": {}},
            "models": {"m": {"deployments": [{"cluster": "here", "engine": engine}]}},
            **sections,
        }
        self.config.write_text(yaml.safe_dump(content))
        monkeypatch.setenv("FIRST_CONFIG", str(self.config))

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Its gateway runs meanwhile."""
        command = [sys.executable, "-m", "firstkit.gateway", "--config", str(self.config)]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as gateway:
            try:
                wait_for("the gateway answers", self._answers)
                yield
            finally:
                gateway.terminate()

    def _answers(self) -> bool:
        try:
            return fetch(self.folder, "/health") != b""
        except GatewayAway:
            return False

    def log_in(self, token: str) -> None:
        """From now on there is no configuration, but a login: any token that the gateway takes does for one."""
        for name in ("HOME", "XDG_STATE_HOME", "XDG_CONFIG_HOME"):
            self._monkeypatch.setenv(name, str(self.folder / "home"))
        self._monkeypatch.delenv("FIRST_CONFIG")
        saved_login.save(Login(f"http://{self.listen}/v1", "oidc", "", "", token, time.time() + 3600))


def first(*arguments: str, status: int = 0) -> Result:
    """Run a command; fails unless it ends with ``status``."""
    result = CliRunner().invoke(build(("budgets", "keys", "projects", "usage", "users")), arguments)
    assert result.exit_code == status, result.output
    return result
