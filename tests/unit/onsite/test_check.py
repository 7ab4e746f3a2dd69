import json
import os
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from firstkit.engines.engine import EngineSpec, ReplicaSpec
from firstkit.onsite import check
from firstkit.onsite.allowed import Allowed, AllowedEngine
from firstkit.onsite.check import FAILED, OK, TRIAL_RESULT, Finding, TrialResult, look, look_at_replicas
from firstkit.onsite.trial import main as trial_main
from firstkit.onsite.trial import reach
from firstkit.wire import decode, encode, to_dict

JOB = "job-abcdefghijklmn23"
ENGINE = EngineSpec("command", "own", argv=(sys.executable, "{socket}"))


def replica(weights: str | None = None, **engine: Any) -> ReplicaSpec:
    return ReplicaSpec("rep-1", "m", "m@here", replace(ENGINE, **engine), weights=weights)


def by_what(findings: Iterator[Finding] | tuple[Finding, ...]) -> dict[str, Finding]:
    return {finding.what: finding for finding in findings}


def test_a_good_place(tmp_path: Path) -> None:
    site = look(str(tmp_path), None, (replica(str(tmp_path)),), None, "/x/bin/first-1.pyz")
    assert (site.program, site.host, site.trial) == ("first-1.pyz", os.uname().nodename, None)
    assert sys.executable in site.python
    found = by_what(site.findings)
    assert {"state directory", "allowed.json", "m@here: program", "m@here: weights"} <= set(found)
    assert {finding.status for finding in found.values()} <= {"ok", "warning"}
    assert [path.name for path in tmp_path.iterdir()] == ["jobs"]
    assert list((tmp_path / "jobs").iterdir()) == []


def test_state_that_cannot_be_kept(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    found = by_what(look(str(tmp_path / "file"), None, (), None, "x").findings)
    assert found["state directory"].status == FAILED
    assert str(tmp_path / "file") in found["state directory"].found
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs").chmod(0o755)
    found = by_what(look(str(tmp_path), None, (), None, "x").findings)
    assert "chmod 700" in found["state directory"].fix


@pytest.mark.parametrize(
    ("spec", "what", "words"),
    [
        (replica(argv=("/no/such/program", "{socket}")), "m@here: program", "/no/such/program is not on"),
        (replica("/no/such/weights"), "m@here: weights", "there is nothing at /no/such/weights"),
        (replica(argv=("x",)), "m@here", "engine.argv"),
        (replica("/x", kind="sglang", argv=()), "m@here: program", "has no package sglang"),
    ],
)
def test_what_replicas_lack(spec: ReplicaSpec, what: str, words: str) -> None:
    finding = by_what(look_at_replicas((spec,), None))[what]
    assert finding.status == FAILED
    assert words in finding.found
    assert finding.fix


@pytest.mark.parametrize(
    "engine",
    [
        {"argv": ("some-server", "{socket}"), "setup": "module load x"},
        {"kind": "vllm", "argv": (), "setup": "conda activate vllm"},
        {"argv": ("own-server", "{socket}"), "env": {"PATH": "BIN"}},
    ],
)
def test_programs_that_a_setup_or_path_finds(tmp_path: Path, engine: dict[str, Any]) -> None:
    (tmp_path / "own-server").write_text("")
    (tmp_path / "own-server").chmod(0o755)
    engine = {**engine, "env": {name: str(tmp_path) for name in engine.get("env", {})}}
    assert by_what(look_at_replicas((replica("/", **engine),), None))["m@here: program"].status == OK


def test_of_what_is_not_allowed_nothing_is_told(tmp_path: Path) -> None:
    allowed = Allowed(engines=(AllowedEngine(ENGINE),), weights=(str(tmp_path / "models"),), path="/x")
    for there in (tmp_path, tmp_path / "nowhere"):
        [finding] = look_at_replicas((replica(str(there)),), allowed)
        assert finding.status == FAILED
        assert "are not at a place that /x allows" in finding.found


def test_the_file_system_of_a_folder(tmp_path: Path) -> None:
    assert check._file_system("/proc/self") == "proc"
    assert check._file_system(str(tmp_path)) != "proc"


def test_the_result_of_a_trial_once_it_is_there(tmp_path: Path) -> None:
    assert look(str(tmp_path), None, (), JOB, "x").trial is None
    (tmp_path / "jobs" / JOB).mkdir()
    (tmp_path / "jobs" / JOB / TRIAL_RESULT).write_bytes(b"{")
    assert look(str(tmp_path), None, (), JOB, "x").trial is None
    result = TrialResult("n1", "3.9", (Finding("a", OK, "b"),))
    (tmp_path / "jobs" / JOB / TRIAL_RESULT).write_bytes(encode(result))
    assert look(str(tmp_path), None, (), JOB, "x").trial == result


# -- the trial job -----------------------------------------------------------------------------------------------------


@contextmanager
def answering(answer: bytes) -> Iterator[str]:
    """A server that says the same to everybody."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        thread.join(10)


def test_what_can_be_reached() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        assert reach(address) == ""
    assert "refused" in reach(address)
    for strange in ("", "x", "127.0.0.1:", "127.0.0.1:99999", "127.0.0.1:x", "a\r\nb:1", "a b:1"):
        assert reach(strange) != "", strange


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"HTTP/1.1 200 Connection established\r\n\r\n", ""),
        (b"HTTP/1.1 403 Forbidden\r\n\r\n", "the proxy says 'HTTP/1.1 403 Forbidden'"),
        (b"", "the proxy says ''"),
        (b"x" * 9000, "the proxy says 'xxx"),
    ],
)
def test_a_proxy_on_the_way(answer: bytes, words: str) -> None:
    with answering(answer) as proxy:
        fault = reach("first.example.org:8443", f"http://{proxy}")
    assert fault.startswith(words)
    assert bool(fault) == bool(words)


def trial_folder(tmp_path: Path, **trial: Any) -> Path:
    folder = tmp_path / "jobs" / JOB
    folder.mkdir(parents=True)
    (folder / "pilot.json").write_text(json.dumps({"trial": trial}))
    return folder


def test_a_trial_writes_down_what_it_finds(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        addresses = ["127.0.0.1:1", f"127.0.0.1:{server.getsockname()[1]}"]
        folder = trial_folder(tmp_path, addresses=addresses, replicas=[to_dict(replica("/no/weights"))])
        assert trial_main([str(folder)]) == 0
    result = decode(TrialResult, (folder / TRIAL_RESULT).read_bytes())
    found = by_what(result.findings)
    assert result.host == os.uname().nodename
    assert (found["link"].status, found["m@here: weights"].status) == (OK, FAILED)


def test_a_trial_that_reaches_nobody(tmp_path: Path) -> None:
    folder = trial_folder(tmp_path, addresses=["127.0.0.1:1"])
    assert trial_main([str(folder)]) == 0
    [finding] = decode(TrialResult, (folder / TRIAL_RESULT).read_bytes()).findings
    assert (finding.what, finding.status) == ("link", FAILED)


def test_a_trial_without_orders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert trial_main([]) == 2
    assert trial_main([str(tmp_path)]) == 2
    folder = trial_folder(tmp_path)
    (folder / "pilot.json").write_text("[]")
    assert trial_main([str(folder)]) == 2
    assert "this trial cannot be made" in capsys.readouterr().err
    assert not (folder / TRIAL_RESULT).exists()
