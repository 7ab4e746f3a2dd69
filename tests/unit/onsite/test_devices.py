import os
import subprocess
import sys
from pathlib import Path

import pytest

from firstkit.onsite import devices
from firstkit.onsite.devices import FolderRefused, take_devices, visible_variable

HOLDS = """
import sys
from firstkit.onsite.devices import take_devices
print(*take_devices(int(sys.argv[2]), ["0", "1", "2", "3"], sys.argv[1], 0.0), flush=True)
sys.stdin.read()
"""


class Pilot:
    """A process that holds its devices until it ends."""

    def __init__(self, folder: Path, wanted: int) -> None:
        command = [sys.executable, "-c", HOLDS, str(folder), str(wanted)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        assert self.process.stdout is not None
        self.devices = tuple(self.process.stdout.readline().decode().split())

    def die(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture(autouse=True)
def _gives_back(monkeypatch: pytest.MonkeyPatch) -> object:
    opened: list[int] = []
    monkeypatch.setattr(devices, "_OPENED", opened)
    yield
    for handle in opened:
        os.close(handle)


def test_two_pilots_of_a_host_never_share_a_device(tmp_path: Path) -> None:
    folder = tmp_path / "devices"
    first, second = Pilot(folder, 2), Pilot(folder, 2)
    try:
        assert (first.devices, second.devices) == (("0", "1"), ("2", "3"))
        assert take_devices(1, ["0", "1", "2", "3"], str(folder), 0.0) == ()
    finally:
        first.die()
        second.die()


def test_devices_of_a_pilot_that_is_gone_are_free(tmp_path: Path) -> None:
    folder = tmp_path / "devices"
    other = Pilot(folder, 4)
    assert other.devices == ("0", "1", "2", "3")
    other.die()
    assert take_devices(3, ["3", "2", "1", "0"], str(folder), 0.0) == ("3", "2", "1")


def test_a_job_waits_for_the_one_before_it(tmp_path: Path) -> None:
    folder = tmp_path / "devices"
    other = Pilot(folder, 4)
    ends = subprocess.Popen(["sh", "-c", f"sleep 0.3; kill -9 {other.process.pid}"])
    try:
        assert take_devices(2, ["0", "1", "2", "3"], str(folder), 30.0) == ("0", "1")
    finally:
        ends.wait()
        other.die()


def test_fewer_are_better_than_none(tmp_path: Path) -> None:
    folder = tmp_path / "devices"
    other = Pilot(folder, 3)
    try:
        assert take_devices(2, ["0", "1", "2", "3"], str(folder), 0.0) == ("3",)
    finally:
        other.die()


def test_engines_that_a_pilot_starts_do_not_hold_its_devices(tmp_path: Path) -> None:
    folder = tmp_path / "devices"
    take_devices(1, ["0"], str(folder), 0.0)
    engine = subprocess.Popen(["sleep", "100"])
    try:
        for handle in devices._OPENED:
            os.close(handle)
        devices._OPENED.clear()
        assert take_devices(1, ["0"], str(folder), 0.0) == ("0",)
    finally:
        engine.kill()
        engine.wait()


def test_a_folder_that_others_could_write_to_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "devices"
    folder.mkdir(mode=0o777)
    folder.chmod(0o777)
    with pytest.raises(FolderRefused, match="not a folder of this user alone"):
        take_devices(1, ["0"], str(folder))
    link = tmp_path / "link"
    link.symlink_to(tmp_path)
    with pytest.raises(FolderRefused):
        take_devices(1, ["0"], str(link))


@pytest.mark.parametrize(
    ("files", "variable"),
    [
        (["nvidiactl", "kfd"], "CUDA_VISIBLE_DEVICES"),
        (["kfd", "dri/"], "ROCR_VISIBLE_DEVICES"),
        (["dri/"], "ZE_AFFINITY_MASK"),
        ([], "CUDA_VISIBLE_DEVICES"),
    ],
)
def test_the_variable_of_the_kind_of_gpu_that_is_there(tmp_path: Path, files: list[str], variable: str) -> None:
    for name in files:
        (tmp_path / name).mkdir() if name.endswith("/") else (tmp_path / name).touch()
    assert visible_variable(str(tmp_path)) == variable
