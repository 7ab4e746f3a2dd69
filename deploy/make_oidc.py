"""``make oidc``: an OpenID provider for tests, in .cache/oidc, where npm is there."""

from __future__ import annotations

import hashlib
import shutil

from environment import ROOT, Environment, main

from firstkit.cli.demonstration import Unusable

FILES = tuple(ROOT / "tests" / "integration" / "oidc" / name for name in ("package.json", "package-lock.json"))


def install() -> None:
    """Raises Unusable where it cannot be had."""
    npm = shutil.which("npm")
    if npm is None:
        raise Unusable("npm is missing.", "Install nodejs and npm.")
    made = Environment("oidc")
    content = b"".join(path.read_bytes() for path in FILES)
    with made.making(f"{npm} {hashlib.sha256(content).hexdigest()}") as is_needed:
        if is_needed:
            made.tell("packages of Node")
            for path in FILES:
                shutil.copy(path, made.folder)
            made.run(npm, "ci", "--prefix", made.folder, "--ignore-scripts", "--no-audit", "--no-fund")


if __name__ == "__main__":
    main(install)
