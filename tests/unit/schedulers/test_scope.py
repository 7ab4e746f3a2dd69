import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from firstkit.schedulers import scope

BUSCTL = "busctl"


def test_without_systemd_the_job_stays_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os.path, "isdir", lambda path: False)
    assert not scope.leave_service("job-a")


def test_a_manager_that_refuses_is_no_reason_to_fail(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os.path, "isdir", lambda path: True)
    (tmp_path / BUSCTL).write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / BUSCTL).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not scope.leave_service("job-a")
    assert "no scope of its own for this job" in capfd.readouterr().err


def test_it_waits_until_the_process_has_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []
    groups = iter(["0::/first.service", "0::/first.service", "0::/first-job-a.scope", "0::/first-job-a.scope"])
    monkeypatch.setattr(os.path, "isdir", lambda path: True)
    monkeypatch.setattr(scope, "_own_group", lambda: next(groups))

    def run(argv: list[str], **options: Any) -> None:
        asked.append(argv)

    monkeypatch.setattr(subprocess, "run", run)
    assert scope.leave_service("job-a", pid=77)
    assert asked == [scope.scope_command("job-a", 77, os.getuid() == 0)]


def test_the_call_of_the_manager() -> None:
    assert scope.scope_command("job-a", 77, is_root=False) == [
        *("busctl", "--user", "call", "org.freedesktop.systemd1", "/org/freedesktop/systemd1"),
        *("org.freedesktop.systemd1.Manager", "StartTransientUnit", "ssa(sv)a(sa(sv))", "first-job-a.scope", "fail"),
        *("1", "PIDs", "au", "1", "77", "0"),
    ]
