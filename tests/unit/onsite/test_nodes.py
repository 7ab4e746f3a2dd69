"""The nodes of a job, as Slurm and PBS name them."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstkit.onsite import nodes
from firstkit.onsite.nodes import NoNodes, Spot, expand, hosts_of, launcher, rank_of, spot

PROGRAM = ["python3", "-I", "first.pyz", "rank", "/job", "rep-1"]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", []),
        ("login", ["login"]),
        ("n1,n2", ["n1", "n2"]),
        ("alpha-n[1-2]", ["alpha-n1", "alpha-n2"]),
        ("n[01-03,7],login", ["n01", "n02", "n03", "n7", "login"]),
        ("r[1-2]n[8-9]", ["r1n8", "r1n9", "r2n8", "r2n9"]),
        ("x[9-10]-ib", ["x9-ib", "x10-ib"]),
        ("n[098-101]", ["n098", "n099", "n100", "n101"]),
    ],
)
def test_a_list_of_nodes_as_slurm_writes_it(text: str, names: list[str]) -> None:
    assert expand(text) == names


@pytest.mark.parametrize("text", ["n[", "n]", "n[a-b]", "n[1-]", "n[1-2", "n[]", "n[1-9999999]", "n[0-99999],m[0-9]"])
def test_what_is_no_list_of_nodes_is_said_to_be_none(text: str) -> None:
    with pytest.raises(NoNodes):
        expand(text)


@given(st.text(alphabet="n[]0123456789,- .x", max_size=30))
def test_any_text_is_a_list_or_none(text: str) -> None:
    try:
        names = expand(text)
    except NoNodes:
        return
    assert all(names)


def test_the_nodes_of_jobs(tmp_path: Path) -> None:
    file = tmp_path / "nodes"
    file.write_text("x1.example.org\nx2.example.org\nx1.example.org\n\n")
    here = (socket.gethostname(),)
    assert hosts_of({"SLURM_JOB_ID": "1", "SLURM_JOB_NODELIST": "n[1-2]"}) == ("n1", "n2")
    assert hosts_of({"PBS_JOBID": "1.pbs", "PBS_NODEFILE": str(file)}) == ("x1.example.org", "x2.example.org")
    assert hosts_of({}) == here


@pytest.mark.parametrize(
    "env", [{"SLURM_JOB_ID": "1", "SLURM_JOB_NODELIST": "n["}, {"SLURM_JOB_ID": "1"}, {"PBS_NODEFILE": "/no/such"}]
)
def test_a_job_whose_nodes_are_not_known_has_this_one(env: dict[str, str]) -> None:
    assert hosts_of(env) == (socket.gethostname(),)


def test_slurm_starts_one_on_each_node_after_the_first() -> None:
    argv = launcher({"SLURM_JOB_ID": "1"}, 3, 8, PROGRAM)
    assert argv[:5] == ["srun", "--nodes=3", "--ntasks=3", "--ntasks-per-node=1", "--cpus-per-task=8"]
    assert {"--relative=1", "--overlap", "--kill-on-bad-exit=1"} <= set(argv)
    assert argv[-len(PROGRAM) :] == PROGRAM


def test_pbs_starts_one_on_each_by_its_own_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes, "PBS_BIN", str(tmp_path))
    env = {"PBS_JOBID": "1.pbs", "PATH": str(tmp_path), "PBS_EXEC": str(tmp_path)}
    with pytest.raises(NoNodes, match="pbsdsh"):
        launcher(env, 1, 1, PROGRAM)
    program = tmp_path / "bin" / "pbsdsh"
    program.parent.mkdir()
    program.touch(0o755)
    assert launcher(env, 1, 1, PROGRAM) == [str(program), "--", *PROGRAM]


def test_a_job_of_neither_has_no_other_nodes() -> None:
    with pytest.raises(NoNodes, match="only jobs of Slurm and PBS"):
        launcher({"FIRST_JOB_ID": "job-1"}, 1, 1, PROGRAM)


def test_a_rank_finds_its_number() -> None:
    hosts = ("x1.example.org", "x2.example.org")
    assert rank_of({"SLURM_STEP_ID": "0", "SLURM_PROCID": "0"}, hosts, "any") == 1
    assert rank_of({"SLURM_STEP_ID": "0", "SLURM_PROCID": "1"}, hosts, "any") is None
    assert rank_of({"SLURM_PROCID": "0"}, hosts, "x1") is None
    assert rank_of({}, hosts, "x2") == 1
    assert rank_of({}, hosts, "x2.other.org") == 1
    assert rank_of({}, hosts, "x3") is None


def test_the_address_on_an_interface(monkeypatch: pytest.MonkeyPatch) -> None:
    assert spot("lo") == Spot("127.0.0.1", "lo")
    with pytest.raises(NoNodes, match="the interface 'no-such' has no IPv4 address"):
        spot("no-such")


@pytest.mark.parametrize(
    ("address", "why"), [("127.0.1.1", "where no other node reaches it"), ("192.0.2.7", "which no interface has")]
)
def test_a_name_that_leads_nowhere_asks_for_an_interface(
    address: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "gethostbyname", lambda name: address)
    with pytest.raises(NoNodes, match=f"{why}; name the cluster's interface"):
        spot(None)


def test_a_name_with_an_address_leads_to_its_interface(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostbyname", lambda name: "198.51.100.4")
    monkeypatch.setattr(socket, "if_nameindex", lambda: [(1, "lo"), (2, "hsn0")])
    monkeypatch.setattr(nodes, "_address_on", {"lo": "127.0.0.1", "hsn0": "198.51.100.4"}.get)
    assert spot(None) == Spot("198.51.100.4", "hsn0")
