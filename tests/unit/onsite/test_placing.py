import json
import shlex
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from firstkit.onsite import placing
from firstkit.onsite.allowed import Allowed, allowed_document
from firstkit.onsite.placing import CannotPlace, key_line, main, make_private, place_list, set_up
from firstkit.wire import WireError


@pytest.fixture
def program(tmp_path: Path) -> str:
    path = tmp_path / "brought"
    path.write_bytes(b"the program")
    return str(path)


def order(state_dir: Path, **more: Any) -> dict[str, Any]:
    return {"state_dir": str(state_dir), "allowed": allowed_document(Allowed()), **more}


def test_all_that_is_placed_is_for_its_owner_alone(tmp_path: Path, program: str) -> None:
    state_dir = tmp_path / "a" / "state"
    lines = set_up(program, "first-1.pyz", order(state_dir, public_key="ssh-ed25519 AAAA"))
    assert (state_dir / "bin" / "first-1.pyz").read_bytes() == b"the program"
    assert lines[-1] == key_line(sys.executable, str(state_dir), "ssh-ed25519 AAAA")
    for path in [state_dir, *state_dir.rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
    assert {path.name for path in (state_dir / "bin").iterdir()} == {"first", "first-1.pyz"}


def test_a_later_program_leaves_the_earlier_one_to_running_jobs(tmp_path: Path, program: str) -> None:
    set_up(program, "first-1.pyz", order(tmp_path))
    set_up(program, "first-2.pyz", order(tmp_path))
    assert (tmp_path / "bin" / "first-1.pyz").exists()
    assert "'first-2.pyz'" in (tmp_path / "bin" / "first").read_text()


def test_a_list_that_was_changed_by_hand_stays(tmp_path: Path) -> None:
    path, document = tmp_path / "allowed.json", allowed_document(Allowed())
    assert "allows what the configuration says" in place_list(str(tmp_path), document)
    assert json.loads(path.read_text()) == document
    later = allowed_document(Allowed(weights=("/x",)))
    assert "allows what" in place_list(str(tmp_path), later)
    assert json.loads(path.read_text()) == later
    for text in (json.dumps({**later, "max_nodes": 1}), "{}", "[]", "{ half"):
        path.write_text(text)
        assert "was changed by hand and stays" in place_list(str(tmp_path), document)
        assert path.read_text() == text
        assert json.loads((tmp_path / placing.NEW_ALLOWED_FILE).read_text()) == document
    with pytest.raises(WireError):
        place_list(str(tmp_path), {"wrong": 1})


def test_folders_of_others_are_not_used(tmp_path: Path, program: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "open"
    folder.mkdir(mode=0o777)
    folder.chmod(0o777)
    with pytest.raises(CannotPlace, match=f"chmod 700 {folder}"):
        make_private(str(folder))
    assert main(program, "first-1.pyz", order(folder)) == 1
    assert capsys.readouterr().err.startswith(f"Error: {folder} may be written by others")
    assert main(program, "first-1.pyz", order(Path(program))) == 1
    assert program in capsys.readouterr().err
    folder.chmod(0o755)
    make_private(str(folder))
    assert main(program, "first-1.pyz", order(folder)) == 0
    assert "first-1.pyz is in place." in capsys.readouterr().out


def test_the_line_of_the_key_survives_strange_names(tmp_path: Path) -> None:
    state_dir = f'{tmp_path}/a "quoted" $(id) folder'
    line = key_line("/usr/bin/python3", state_dir, "ssh-ed25519 AAAA")
    assert line.startswith('restrict,command="')
    command = line.removeprefix('restrict,command="').removesuffix('" ssh-ed25519 AAAA').replace('\\"', '"')
    said = subprocess.run(["/bin/sh", "-c", f"printf '%s\\n' {command}"], capture_output=True, text=True, check=True)
    words = ["/usr/bin/python3", "-I", f"{state_dir}/bin/first", "gate", "--state-dir", state_dir]
    assert said.stdout.splitlines() == words == shlex.split(command)
