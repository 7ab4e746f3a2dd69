from __future__ import annotations

import os
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from firstkit.engines.engine import Address, Head, Place
from firstkit.onsite.allotment import Share
from firstkit.onsite.nodes import NoNodes
from firstkit.onsite.place import (
    Seat,
    clear_place,
    environment,
    free_port,
    is_port_free,
    make_place,
    write_files,
)

SHARE = Share((0, 1), ("GPU-a",), 5)


def engine(takes_socket: bool) -> Any:
    return SimpleNamespace(takes_socket=takes_socket)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_a_place_with_a_socket_needs_no_key(tmp_path: Path) -> None:
    folder = tmp_path / "replicas" / "rep-1"
    place = make_place(str(folder), engine(takes_socket=True), SHARE)
    assert place == Place(str(folder), (0, 1), ("GPU-a",), Address(socket="engine.sock"))
    assert mode(folder) == mode(folder / "tmp") == mode(folder / "cache") == 0o700


def test_a_place_with_a_port_has_a_key_in_a_private_file(tmp_path: Path) -> None:
    places = [make_place(str(tmp_path / "rep-1"), engine(takes_socket=False), SHARE) for _ in range(2)]
    keys = [place.key for place in places]
    assert keys[0] != keys[1]
    assert all(key is not None and len(key) == 52 for key in keys)
    assert places[1].key_file is not None
    assert Path(places[1].key_file).read_text() == keys[1]
    assert mode(Path(places[1].key_file)) == 0o600
    clear_place(places[1].folder)
    assert list((tmp_path / "rep-1").iterdir()) == []


def test_files_of_an_engine_are_for_this_user_alone(tmp_path: Path) -> None:
    os.umask(os.umask(0o022))
    for text in ("api-key: long-one\n", "k: ä\n"):
        write_files(str(tmp_path), {"sglang.yaml": text, "b": ""})
        assert (tmp_path / "sglang.yaml").read_text(encoding="utf-8") == text
        assert mode(tmp_path / "sglang.yaml") == mode(tmp_path / "b") == 0o600
    (tmp_path / "engine.log").touch()
    clear_place(str(tmp_path), ("sglang.yaml", "b"))
    assert [path.name for path in tmp_path.iterdir()] == ["engine.log"]


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../x", "a/b", "/x", ".hidden", "engine.sock", "engine.key", "engine.log", "engine.log.1", "tmp",
     "a\nb", "a\0", "x" * 101],
)  # fmt: skip
def test_a_name_that_is_none_writes_nothing(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    with pytest.raises(ValueError, match="no name for a file of an engine"):
        write_files(str(folder), {"good": "x", name: "x"})
    assert list(folder.iterdir()) == []
    assert list(tmp_path.iterdir()) == [folder]


def test_of_counted_cores_an_engine_is_told_no_more_than_there_are(tmp_path: Path) -> None:
    there = len(os.sched_getaffinity(0))
    for takes_socket in (True, False):
        place = make_place(str(tmp_path), engine(takes_socket), Share(tuple(range(there + 9)), is_bound=False))
        assert (len(place.cpus), place.is_bound) == (there, False)


def test_a_port_that_is_taken_is_not_free() -> None:
    port = free_port()
    assert is_port_free(port)
    with socket.create_server(("127.0.0.1", port)):
        assert not is_port_free(port)


def test_an_engine_gets_no_more_of_the_environment_than_it_needs() -> None:
    env = {
        "PATH": "/bin",
        "HF_TOKEN": "canary",
        "AWS_SECRET_ACCESS_KEY": "canary",
        "MODULEPATH": "/modules",
        "FIRST_JOB_ID": "job-1",
        "CUDA_VISIBLE_DEVICES": "GPU-b,GPU-a",
    }
    place = Place("/job/replicas/rep-1", (0,), ("GPU-a",), Address(port=1), "the key", "/job/key")
    assert environment(place, env) == {
        "PATH": "/bin",
        "MODULEPATH": "/modules",
        "FIRST_JOB_ID": "job-1",
        "CUDA_VISIBLE_DEVICES": "GPU-a",
        "TMPDIR": "/job/replicas/rep-1/tmp",
        "XDG_CACHE_HOME": "/job/replicas/rep-1/cache",
        "HF_HUB_OFFLINE": "1",
        "PYTHONUNBUFFERED": "1",
    }


def test_tmpdir_is_short_enough_for_the_sockets_of_engines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = tmp_path / ("x" * 100)
    place = make_place(str(job / "replicas" / "rep-1"), engine(takes_socket=True), SHARE)
    monkeypatch.chdir(job)
    tmpdir = environment(place, {})["TMPDIR"]
    assert len(tmpdir) <= 60
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{tmpdir}/{'u' * 36}")
    assert os.listdir(job / "replicas" / "rep-1" / "tmp") == ["u" * 36]


def test_the_first_of_several_ranks_chooses_where_it_awaits_the_others(tmp_path: Path) -> None:
    place = make_place(str(tmp_path / "rep-1"), engine(takes_socket=True), SHARE, Seat(0, ("n1", "n2"), None, "lo"))
    assert (place.rank, place.ranks, place.host_address, place.interface) == (0, 2, "127.0.0.1", "lo")
    assert place.head.address == "127.0.0.1"
    assert is_port_free(place.head.port)
    second = Seat(1, ("n1", "n2"), Head("192.0.2.1", 7), "lo")
    other = make_place(str(tmp_path / "rep-1" / "rank-1"), engine(takes_socket=True), SHARE, second)
    assert (other.rank, other.head) == (1, Head("192.0.2.1", 7))
    env = environment(other, {"PATH": "/bin", "SECRET": "x"})
    assert (env["NCCL_SOCKET_IFNAME"], env["GLOO_SOCKET_IFNAME"]) == ("=lo", "lo")
    assert "SECRET" not in env


def test_a_rank_without_its_interface_has_no_place(tmp_path: Path) -> None:
    with pytest.raises(NoNodes, match="the interface 'no-such'"):
        make_place(str(tmp_path), engine(takes_socket=True), SHARE, Seat(0, ("n1", "n2"), None, "no-such"))


def test_an_engine_on_one_node_is_told_of_no_interface() -> None:
    env = environment(Place("/job", (0,), (), Address(port=1)), {})
    assert not [name for name in env if name.endswith("_IFNAME")]
