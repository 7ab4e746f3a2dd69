import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstkit.errors import ConfigError
from firstkit.onsite.allowed import Allowed, NotAllowed
from firstkit.onsite.command import REQUEST_LIMIT_BYTES, VERBS, Request
from firstkit.onsite.gate import at_gate, settings_at_gate

LIST = Allowed("slurm", {"SLURM_CONF": "/etc/slurm.conf"}, partitions=("gpu",), path="/x/allowed.json")
ASKED = {"kind": "slurm", "env": {"SLURM_CONF": "/etc/slurm.conf"}}


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    (tmp_path / "allowed.json").write_text("{}")
    (tmp_path / "allowed.json").chmod(0o600)
    return tmp_path


def knock(state_dir: Path, verb: str | None, data: bytes, *args: str) -> subprocess.CompletedProcess[bytes]:
    env = {} if verb is None else {"SSH_ORIGINAL_COMMAND": verb}
    argv = [sys.executable, "-I", "-m", "firstkit.onsite", "gate", *(args or ("--state-dir", str(state_dir)))]
    return subprocess.run(argv, input=data, env=env, capture_output=True, timeout=30, check=False)


def test_a_verb_is_answered(state_dir: Path) -> None:
    done = knock(state_dir, "capacity", json.dumps({"state_dir": str(state_dir)}).encode())
    assert (done.returncode, done.stderr) == (0, b"")
    assert json.loads(done.stdout)["ok"] is True


@pytest.mark.parametrize(
    "verb", [None, "", "capacity ", "capacity\n", "cluster capacity", "sh", "-c", "install", "gate"]
)
def test_anything_else_is_not(state_dir: Path, verb: str | None) -> None:
    done = knock(state_dir, verb, b"{}")
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"] == "invalid"
    assert "this key is for the verbs" in json.loads(done.stdout)["message"]


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"\xff", b" " * (REQUEST_LIMIT_BYTES + 1), b"[" * 90_000])
def test_bytes_that_are_no_request_get_an_answer(state_dir: Path, data: bytes) -> None:
    done = knock(state_dir, "poll", data)
    assert (done.returncode, done.stderr) == (0, b"")
    assert json.loads(done.stdout)["error"] == "invalid"


@pytest.mark.parametrize("args", [("--state-dir", "relative"), ("--state-dir",), ("x",), ("--state", "/tmp")])
def test_a_gate_that_is_set_up_wrongly_says_so(state_dir: Path, args: tuple[str, ...]) -> None:
    done = knock(state_dir, "poll", b"{}", *args)
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"usage:" in done.stderr


def test_a_request_for_another_state_directory_is_refused(state_dir: Path) -> None:
    for other in (str(state_dir.parent), f"{state_dir}x", "/"):
        with pytest.raises(ConfigError, match="this key is for"):
            at_gate(str(state_dir), Request(other))
    request, allowed = at_gate(str(state_dir), Request(f"{state_dir}/jobs/.."))
    assert request.state_dir == str(state_dir)
    assert allowed is not None


def test_a_gate_without_a_list_answers_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no list of what is allowed"):
        at_gate(str(tmp_path), Request(str(tmp_path)))


def test_the_request_cannot_bring_its_own_list(state_dir: Path) -> None:
    engine = {"kind": "command", "name": "x", "argv": ["/bin/sh"]}
    replica = {"replica_id": "r", "model": "m", "deployment": "d", "engine": engine}
    job = {"job_id": "job-aaaaaaaaaaaaaaaa", "resources": {}, "pilot": {"replicas": [replica]}}
    mine = {"engines": [{"engine": engine, "args": "any"}], "allowed": {"engines": [{"engine": engine}]}}
    request = {"state_dir": str(state_dir), "scheduler": {}, "job": job, **mine}
    answer = json.loads(knock(state_dir, "submit", json.dumps(request).encode()).stdout)
    assert (answer["error"], answer["message"]) == ("refused", f'the engine "x" is not in {state_dir}/allowed.json')
    assert not (state_dir / "jobs").exists()


def test_settings_are_those_of_the_list_and_what_does_no_harm() -> None:
    asked: dict[str, Any] = {**ASKED, "partition": "gpu", "gpu_type": "a100", "command_timeout": 5.0, "account": None}
    more = {"directives": ["--output=/x"], "sbatch": "/tmp/x", "keep": ["/bin/sh"]}
    assert settings_at_gate(LIST, {**asked, **more}) == {
        "kind": "slurm",
        "env": {"SLURM_CONF": "/etc/slurm.conf"},
        "partition": "gpu",
        "gpu_type": "a100",
        "command_timeout": 5.0,
    }
    assert settings_at_gate(LIST, {}) == ASKED


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kind": "local"}, "scheduler.kind is not what /x/allowed.json says"),
        ({"env": {}}, "scheduler.env is not"),
        ({"env": {"SLURM_CONF": "/tmp/mine"}}, "scheduler.env is not"),
        ({"env": {**ASKED["env"], "LD_PRELOAD": "/x.so"}}, "scheduler.env is not"),  # type: ignore[dict-item]
        ({"cpus": "4"}, "scheduler.cpus: a number"),
        ({"cpus": True}, "scheduler.cpus: a number"),
        ({"gpu_type": 4}, "scheduler.gpu_type: text"),
        ({"gpu_type": "a\n#SBATCH"}, "the gpu_type is no printable text"),
        ({"partition": "cpu"}, 'the partition "cpu" is not in'),
    ],
)
def test_settings_that_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises((ConfigError, NotAllowed)) as caught:
        settings_at_gate(LIST, {**ASKED, **changes})
    assert words in caught.value.message


PBS_LIST = Allowed("pbs", {}, partitions=("prod",), accounts=("p",), projects=(None,), path="/x/allowed.json")


def test_settings_of_pbs_are_those_that_name_no_program() -> None:
    asked: dict[str, Any] = {
        "kind": "pbs", "queue": "prod", "account": "p", "project": None, "filesystems": ["home", "eagle"],
        "devices": ["0", "1"], "assigns_gpus": False, "gpu_resource": "ngpus", "constraint": "a=1", "env": {},
    }  # fmt: skip
    found = settings_at_gate(PBS_LIST, {**asked, "qsub": "/tmp/x"})
    assert found == {name: value for name, value in asked.items() if value is not None}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"queue": "debug"}, 'the queue "debug" is not in'),
        ({"account": "q"}, 'the account "q" is not in'),
        ({"project": "x"}, 'the project "x" is not in'),
        ({"assigns_gpus": "no"}, "scheduler.assigns_gpus: true or false"),
        ({"devices": "0"}, "scheduler.devices: a list"),
        ({"devices": [0]}, "scheduler.devices: text"),
        ({"filesystems": ["a\n"]}, "the filesystems is no printable text"),
    ],
)
def test_settings_of_pbs_that_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises((ConfigError, NotAllowed)) as caught:
        settings_at_gate(PBS_LIST, {"kind": "pbs", **changes})
    assert words in caught.value.message


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(["kind", "env", "cpus", "partition", "gpu_type", "directives", "PATH"]), JSON))
def test_no_settings_name_a_program(asked: dict[str, Any]) -> None:
    try:
        found = settings_at_gate(LIST, asked)
    except (ConfigError, NotAllowed):
        return
    assert found["env"] == LIST.env
    assert set(found) <= {"kind", "env", "cpus", "partition", "gpu_type"}


def test_all_verbs_are_those_of_the_command() -> None:
    assert VERBS == ("submit", "poll", "cancel", "capacity", "estimate", "check")
