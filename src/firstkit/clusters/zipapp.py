"""Builds the program that runs on clusters: one file with our on-site modules and h11, for Python 3.9 and newer.

Its name carries the hash of its contents, so jobs that run keep the file that they started from, and a file that
exists is complete. Compiled modules of this interpreter lie next to the sources, which other versions fall back to.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import io
import marshal
import os
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

MODULES = ("__init__", "states", "errors", "ids", "clock", "wire", "heap")
GATEWAY_ONLY = ("bodies.py", "entrance.py", "gateway_end.py", "private_ca.py")
PACKAGES = ("engines", "schedulers", "onsite")
MAIN = b"import sys\nfrom firstkit.onsite.__main__ import main\nsys.exit(main())\n"
SHEBANG = b"#!/usr/bin/env python3\n"
_UNCHECKED_HASH = (1).to_bytes(4, "little")
"""Flags of PEP 552: named by the hash of its source, not checked."""
_EPOCH = (1980, 1, 1, 0, 0, 0)


def install(state_dir: str | Path) -> Path:
    """Place the zipapp as ``<state_dir>/bin/first-<hash>.pyz`` if it is not there; returns its path.

    Any number of processes may do so at once. Raises OSError when the folder cannot be written.
    """
    files = sources()
    path = Path(state_dir) / "bin" / f"first-{content_hash(files)}.pyz"
    if not path.exists():
        for folder in (path.parent.parent, path.parent):  # the mode is that of the last folder only
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _place(path, build(files))
    return path


def sources() -> dict[str, bytes]:
    """Name in the archive -> bytes, in a fixed order: all that the zipapp is made of."""
    root = Path(__file__).parent.parent
    files = {"__main__.py": MAIN}
    for path in sorted(_our_files(root)):
        files[f"firstkit/{path.relative_to(root).as_posix()}"] = path.read_bytes()
    files.update(_h11_files())
    return files


def content_hash(files: dict[str, bytes]) -> str:
    """16 hexadecimal digits over all names and bytes, and the interpreter that compiles them."""
    total = hashlib.sha256(importlib.util.MAGIC_NUMBER)
    for name, data in sorted(files.items()):
        total.update(f"{name}\0{len(data)}\0".encode())
        total.update(data)
    return total.hexdigest()[:16]


def build(files: dict[str, bytes]) -> bytes:
    """The archive: not compressed, which starts faster, with one time stamp for all."""
    buffer = io.BytesIO()
    buffer.write(SHEBANG)
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, data in sorted(files.items()):
            _add(archive, name, data)
            if name.endswith(".py") and "/" in name:
                _add(archive, f"{name}c", _compiled(name, data))
    return buffer.getvalue()


def _our_files(root: Path) -> Iterator[Path]:
    yield from (root / f"{name}.py" for name in MODULES)
    yield from (path for path in (root / "links").glob("*.py") if path.name not in GATEWAY_ONLY)
    for package in PACKAGES:
        yield from (root / package).glob("*.py")


def _h11_files() -> dict[str, bytes]:
    """The modules of h11, without its tests, and its license, which has to go with it."""
    files = {}
    for entry in importlib.metadata.files("h11") or ():
        is_module = entry.suffix == ".py" and entry.parent.as_posix() == "h11"
        if is_module or entry.name.upper().startswith("LICENSE"):
            name = entry.as_posix() if is_module else f"h11/{entry.name}"
            files[name] = entry.read_binary()
    return files


def _compiled(name: str, data: bytes) -> bytes:
    """Byte code that is never compared with its source: both come in one file, under one hash."""
    code = compile(data, name, "exec", dont_inherit=True, optimize=0)
    return importlib.util.MAGIC_NUMBER + _UNCHECKED_HASH + importlib.util.source_hash(data) + marshal.dumps(code)


def _add(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    info = zipfile.ZipInfo(name, _EPOCH)
    info.external_attr = 0o100644 << 16
    archive.writestr(info, data)


def _place(path: Path, data: bytes) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".first-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            os.fchmod(file.fileno(), 0o755)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        os.unlink(temporary)
        raise


if __name__ == "__main__":
    sys.stdout.write(f"{install(sys.argv[1])}\n")
