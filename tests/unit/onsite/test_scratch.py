"""The folder of a job on a scratch disk: ours alone, locked, and removed by the next one when its owner died."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from firstkit.onsite import scratch
from firstkit.onsite.scratch import LOCK, ScratchUnfit, claim, filled_in, remove_leftovers

HOLD = (
    "import sys; from firstkit.onsite.scratch import claim; claim(*sys.argv[1:]); print(flush=True); sys.stdin.read()"
)


def root_of(folder: Path) -> Path:
    return folder / f"first-{os.geteuid()}"


class Other:
    """A process that holds the folder of a job, with a copy in it."""

    def __init__(self, folder: Path, job_id: str) -> None:
        argv = [sys.executable, "-c", HOLD, str(folder), job_id]
        self.process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"\n"
        self.folder = root_of(folder) / job_id
        (self.folder / "copy").mkdir()
        (self.folder / "copy" / "weights").write_text("x")

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


def test_a_claimed_folder_is_for_its_user_alone_and_goes_as_a_whole(tmp_path: Path) -> None:
    ours = claim(str(tmp_path), "job-1")
    assert ours.folder == str(root_of(tmp_path) / "job-1")
    assert {path.stat().st_mode & 0o777 for path in (root_of(tmp_path), Path(ours.folder))} == {0o700}
    (Path(ours.folder) / "copy").mkdir()
    ours.remove()
    assert list(root_of(tmp_path).iterdir()) == []


def test_what_a_dead_process_left_is_removed_and_what_a_living_one_holds_stays(tmp_path: Path) -> None:
    alive, dead = Other(tmp_path, "job-alive"), Other(tmp_path, "job-dead")
    dead.kill()
    (root_of(tmp_path) / "something").mkdir()
    remove_leftovers(str(root_of(tmp_path)))
    assert sorted(path.name for path in root_of(tmp_path).iterdir()) == ["job-alive", "something"]
    assert (alive.folder / "copy" / "weights").exists()
    alive.kill()
    remove_leftovers(str(root_of(tmp_path)))
    assert [path.name for path in root_of(tmp_path).iterdir()] == ["something"]


def test_a_folder_that_another_process_holds_is_refused(tmp_path: Path) -> None:
    other = Other(tmp_path, "job-1")
    with pytest.raises(ScratchUnfit, match="is in use"):
        claim(str(tmp_path), "job-1")
    other.kill()
    claim(str(tmp_path), "job-1").remove()


def test_what_another_node_left_on_a_shared_disk_is_neither_taken_nor_removed(tmp_path: Path) -> None:
    folder = root_of(tmp_path) / "job-1"
    folder.mkdir(parents=True, mode=0o700)
    root_of(tmp_path).chmod(0o700)
    (folder / LOCK).write_text("another-node")
    remove_leftovers(str(root_of(tmp_path)))
    assert (folder / LOCK).read_text() == "another-node"
    with pytest.raises(ScratchUnfit, match="another node if this disk is shared"):
        claim(str(tmp_path), "job-1")


def test_a_folder_that_is_removed_while_it_is_claimed_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lock of a file that has no name any more is worth nothing."""
    really_lock, gone = scratch._lock, []

    def lock(handle: int) -> bool:
        if not gone:
            gone.append(handle)
            folder = root_of(tmp_path) / "job-1"
            (folder / LOCK).unlink()
            folder.rmdir()
        return really_lock(handle)

    monkeypatch.setattr(scratch, "_lock", lock)
    ours = claim(str(tmp_path), "job-1")
    assert (Path(ours.folder) / LOCK).read_text() == os.uname().nodename
    ours.remove()


@pytest.mark.parametrize("job_id", ["", "..", "../job-1", "a/b", "job-1\n"])
def test_an_id_that_is_no_name_is_refused(tmp_path: Path, job_id: str) -> None:
    with pytest.raises(ScratchUnfit, match="no name for a folder"):
        claim(str(tmp_path), job_id)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_somebody_else_may_have_made_is_refused(tmp_path: Path) -> None:
    root_of(tmp_path).mkdir()
    root_of(tmp_path).chmod(0o770)
    with pytest.raises(ScratchUnfit, match="not a folder of this user alone"):
        claim(str(tmp_path), "job-1")
    root_of(tmp_path).rmdir()
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    root_of(tmp_path).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ScratchUnfit, match="not a folder of this user alone"):
        claim(str(tmp_path), "job-1")


def test_a_disk_on_which_everybody_may_rename_everything_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(ScratchUnfit, match="sticky bit"):
        claim(str(tmp_path), "job-1")
    tmp_path.chmod(0o1777)
    claim(str(tmp_path), "job-1").remove()


def test_a_disk_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(ScratchUnfit, match=r"no/such of .*: No such file or directory\."):
        claim(f"{tmp_path}/no/such", "job-1")


def test_variables_of_the_job_are_filled_in() -> None:
    env = {"TMPDIR": "/tmp/pbs.1", "EMPTY": "", "HERE": "here"}
    assert filled_in("$TMPDIR", env) == "/tmp/pbs.1"
    assert filled_in("${TMPDIR}/x/$HERE", env) == "/tmp/pbs.1/x/here"
    assert filled_in("/scratch", env) == "/scratch"
    for text, sentence in (("$NOPE/x", "no NOPE"), ("$EMPTY", "no EMPTY"), ("$HERE", "an absolute path is needed")):
        with pytest.raises(ScratchUnfit, match=sentence):
            filled_in(text, env)
