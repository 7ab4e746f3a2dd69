"""The libraries of docs/howto/clients in .cache/clients: those of Python, and those of Node where npm is there."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys

from environment import ROOT, Environment, main

from firstkit.cli.demonstration import Unusable

LOCK = ROOT / "requirements" / "clients.lock"
NODE = tuple(ROOT / "requirements" / "node" / name for name in ("package.json", "package-lock.json"))


def install() -> None:
    """Raises Unusable where something cannot be had."""
    made = Environment("clients")
    npm = shutil.which("npm")
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    content = b"".join(path.read_bytes() for path in (LOCK, *NODE))
    with made.making(f"{version} {npm} {hashlib.sha256(content).hexdigest()}") as is_needed:
        if not is_needed:
            return
        made.make(version)
        made.tell("packages of Python")
        made.pip("--require-hashes", "-r", LOCK)
        if npm is not None:
            made.tell("packages of Node")
            for path in NODE:
                shutil.copy(path, made.folder)
            made.run(npm, "ci", "--prefix", made.folder, "--ignore-scripts", "--no-audit", "--no-fund")
        elif os.environ.get("CI"):
            raise Unusable("npm is missing.", "Install nodejs and npm.")


if __name__ == "__main__":
    main(install)
