"""What runs on clusters runs under Python 3.9: shown by running it where there is one, and by vermin everywhere."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from firstkit.clusters.zipapp import install, sources


def working_python39() -> str | None:
    """A Python 3.9 that starts; a shim on PATH may be there without one behind it."""
    candidates = [shutil.which("python3.9"), *sorted((Path.home() / ".pyenv" / "versions").glob("3.9*/bin/python3.9"))]
    for candidate in candidates:
        if candidate is None:
            continue
        probe = subprocess.run(
            [candidate, "-c", "import sys; print(sys.version_info[:2] == (3, 9))"],
            capture_output=True,
            check=False,
            timeout=30,
        )
        if probe.stdout.strip() == b"True":
            return str(candidate)
    return None


PYTHON39 = working_python39()
needs_python39 = pytest.mark.skipif(PYTHON39 is None, reason="no working python3.9 on PATH or in ~/.pyenv/versions")


@needs_python39
def test_scheduler_commands_answer_under_python_3_9(tmp_path: Path) -> None:
    zipapp = install(tmp_path)
    request = json.dumps({"state_dir": str(tmp_path), "scheduler": {"kind": "local"}}).encode()
    for verb in ("capacity", "poll"):
        result = subprocess.run(
            [str(PYTHON39), "-I", str(zipapp), "cluster", verb],
            input=request,
            capture_output=True,
            check=False,
            timeout=30,
        )
        assert (result.returncode, result.stderr) == (0, b"")
        assert json.loads(result.stdout)["ok"] is True


@needs_python39
def test_every_module_imports_under_python_3_9(tmp_path: Path) -> None:
    zipapp = install(tmp_path)
    names = sorted(
        name[:-3].replace("/", ".").removesuffix(".__init__")
        for name in sources()
        if name.endswith(".py") and name.startswith("firstkit/")
    )
    # Annotations of dataclasses are evaluated by firstkit.wire; all others never are. One module is only for where
    # httptools is, and imported by a caller that does without it.
    script = """
import dataclasses, importlib, sys, typing
sys.path.insert(0, sys.argv[1])
for name in sys.argv[2:]:
    try:
        module = importlib.import_module(name)
    except ImportError as exc:
        if (name, exc.name) != ("firstkit.engines.parsing_httptools", "httptools"):
            raise
        continue
    for value in vars(module).values():
        if dataclasses.is_dataclass(value) and isinstance(value, type):
            typing.get_type_hints(value)
"""
    result = subprocess.run(
        [str(PYTHON39), "-I", "-W", "error", "-c", script, str(zipapp), *names],
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert result.stderr.decode() == ""
    assert result.returncode == 0


def test_vermin_finds_nothing_newer_than_python_3_9(tmp_path: Path) -> None:
    for name, data in sources().items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    result = subprocess.run(
        [
            str(Path(sys.executable).with_name("vermin")),
            "-t=3.9-",
            "--no-tips",
            "--no-eval-annotations",
            "--violations",
            str(tmp_path),
        ],
        capture_output=True,
        check=False,
        timeout=120,
    )
    assert result.returncode == 0, result.stdout.decode()
