import ast
import importlib.util
import io
import multiprocessing
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

from firstkit.clusters.zipapp import build, content_hash, install, sources


def test_it_holds_what_runs_on_clusters_and_nothing_of_the_server() -> None:
    names = set(sources())
    assert {"__main__.py", "firstkit/wire.py", "firstkit/onsite/command.py", "firstkit/schedulers/keeper.py"} <= names
    assert {"h11/_connection.py", "h11/LICENSE.txt"} <= names
    assert not any(name.startswith(("firstkit/gateway", "firstkit/store", "h11/tests")) for name in names)
    assert "firstkit/links/gateway_end.py" not in names
    assert "firstkit/config.py" not in names


def test_whatever_it_imports_of_ours_is_inside() -> None:
    files = sources()
    known = {name[:-3].replace("/", ".").removesuffix(".__init__") for name in files if name.endswith(".py")}
    for name, data in files.items():
        if name.startswith("firstkit/") and name.endswith(".py"):
            for node in ast.walk(ast.parse(data)):
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("firstkit"):
                    assert node.module in known, f"{name} imports {node.module}"


def test_same_sources_make_the_same_name_and_other_sources_another() -> None:
    files = sources()
    assert content_hash(files) == content_hash(dict(reversed(list(files.items()))))
    assert content_hash(files) != content_hash({**files, "firstkit/wire.py": b""})
    assert content_hash({"a": b"bc"}) != content_hash({"ab": b"c"})


def test_the_archive_carries_no_time_and_no_path_of_the_builder() -> None:
    data = build(sources())
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert archive.testzip() is None
    assert str(Path(__file__).parent).encode() not in data
    assert str(Path.home()).encode() + b"/" not in data


def test_install_is_done_once_and_right(tmp_path: Path) -> None:
    path = install(tmp_path)
    first = path.stat()
    assert path.parent == tmp_path / "bin"
    assert stat.S_IMODE(first.st_mode) == 0o755
    assert install(tmp_path) == path
    assert path.stat().st_mtime_ns == first.st_mtime_ns
    assert list(path.parent.iterdir()) == [path]


def test_many_may_install_at_once(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        paths = pool.map(install, [tmp_path] * 8)
    assert len(set(paths)) == 1
    assert list((tmp_path / "bin").iterdir()) == [paths[0]]


def test_this_interpreter_runs_the_byte_code_and_others_the_sources(tmp_path: Path) -> None:
    own = build(sources())
    foreign = own.replace(importlib.util.MAGIC_NUMBER, b"\x00\x00\r\n")
    script = "import sys; sys.path.insert(0, sys.argv[1]); import firstkit.onsite.command as c; print(c.__file__)"
    for data, name in ((own, b"command.pyc"), (foreign, b"command.py")):
        path = tmp_path / "first.pyz"
        path.write_bytes(data)
        result = subprocess.run(
            [sys.executable, "-I", "-c", script, str(path)], capture_output=True, check=False, timeout=30
        )
        assert result.stdout.strip().rpartition(b"/")[2] == name
        run = [sys.executable, "-I", str(path), "cluster", "poll"]
        assert (
            b"state_dir: missing"
            in subprocess.run(run, input=b"{}", capture_output=True, check=False, timeout=30).stdout
        )


def test_nobody_else_may_look_into_the_folders(tmp_path: Path) -> None:
    state_dir = tmp_path / "clusters" / "here"
    path = install(state_dir)
    assert [folder.stat().st_mode & 0o777 for folder in (path.parent, state_dir)] == [0o700, 0o700]
