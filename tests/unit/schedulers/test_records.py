import stat
import subprocess
import sys
from pathlib import Path

import pytest

from firstkit.errors import SchedulerSilent
from firstkit.schedulers.records import FINAL, GRANT, JOB, Final, JobRecord, Order, load, locked, write_file
from firstkit.schedulers.scheduler import Resources
from firstkit.states import JobState

HOLDER = """
import sys, time
from firstkit.schedulers.records import locked
with locked(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_record_comes_back_as_it_was_written(tmp_path: Path) -> None:
    job = JobRecord("job-a", str(tmp_path))
    order = Order("job-a", Resources(cpus_per_node=2, walltime_s=5), ("/bin/true", "x y"), 12.5)
    final = Final(JobState.FAILED, "exit status 3", 13.5, 3)
    job.write(JOB, order)
    job.write(FINAL, final)
    found = load(str(tmp_path))
    assert (found.order, found.final, found.grant, found.keeper) == (order, final, None, None)
    assert found.is_known


def test_an_empty_folder_is_no_job(tmp_path: Path) -> None:
    assert not load(str(tmp_path)).is_known


def test_files_are_private_and_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "x"
    write_file(str(path), b"old")
    write_file(str(path), b"new")
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_a_file_that_cannot_be_understood_is_silence_and_not_a_guess(tmp_path: Path) -> None:
    (tmp_path / GRANT).write_bytes(b"{half")
    with pytest.raises(SchedulerSilent, match=r"grant\.json cannot be understood"):
        load(str(tmp_path))


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_held_lock_is_silence_and_ends_with_its_holder(tmp_path: Path, kind: str) -> None:
    path = tmp_path if kind == "folder" else tmp_path / "lock"
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(SchedulerSilent, match="held by another process"), locked(str(path), 0.05):
            pass
        holder.kill()
        holder.wait()
    with locked(str(path), 1.0):
        pass
