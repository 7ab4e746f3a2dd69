"""An environment of Python below .cache, for a program that would not fit into .venv."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from firstkit.cli.demonstration import Unusable

ROOT = Path(__file__).parents[1]
TORCH = "torch==2.13.0+cpu"
"""Not all sources of packages have this build: PIP_EXTRA_INDEX_URL may name that of the PyTorch project."""


class Environment:
    """``.cache/NAME``. It is complete when the file of that name in it says what it was made from."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.folder = ROOT / ".cache" / name
        self.python = self.folder / "bin" / "python"
        self._complete = self.folder / "complete"
        self._started = time.monotonic()

    @property
    def packages(self) -> Path:
        (found,) = (self.folder / "lib").glob("python*/site-packages")
        return found

    @contextlib.contextmanager
    def making(self, made_from: str) -> Iterator[bool]:
        """Whether anything has to be made; when the context ends well, it is complete. One at a time: whoever comes
        second waits, and finds it done."""
        made_from = f"{self.folder} {made_from}"  # an environment cannot be moved
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if self._complete.exists() and self._complete.read_text() == made_from:
                yield False
                return
            self._complete.unlink(missing_ok=True)
            yield True
            self._complete.write_text(made_from)
            self.tell("complete")

    def make(self, *versions: str) -> None:
        """The environment, empty, by a Python of one of these versions, the first that is found."""
        if not self.python.exists():
            self.tell("environment")
            self.run(_find_python(versions), "-m", "venv", "--without-pip", self.folder)

    def install_torch(self) -> None:
        """PyTorch in its build for CPUs: the usual one brings gigabytes of CUDA."""
        self.tell("PyTorch")
        try:
            self.pip(TORCH)
        except Unusable as exc:
            step = "Set PIP_EXTRA_INDEX_URL to PyTorch's index for CPUs, and run it again."
            raise Unusable(str(exc), step) from None

    def pip(self, *arguments: str | Path) -> None:
        """By the pip of this Python, into that environment, which needs none."""
        fixed = ("--quiet", "--disable-pip-version-check", "--no-input", "--only-binary", ":all:")
        self.run(sys.executable, "-m", "pip", "--python", self.python, "install", *fixed, *arguments)

    def run(self, *command: str | Path) -> None:
        """Raises Unusable with the end of what a command said, where it fails."""
        env = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
        done = subprocess.run(command, check=False, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if done.returncode:
            said = (done.stderr or done.stdout)[-2000:]
            raise Unusable(f"{' '.join(map(str, command))} failed:\n{said}", "Run it again: it goes on from here.")

    def tell(self, what: str) -> None:
        print(f"{self.name}: {what} ({time.monotonic() - self._started:.0f} s)", flush=True)


def main(install: Callable[[], None]) -> None:
    """Run ``install``. With --or-skip a machine that cannot have it is none of our business: the suite skips. Where all
    must be tested, it is."""
    try:
        install()
    except Unusable as exc:
        print(f"{exc}\n{exc.next_step}", file=sys.stderr)
        sys.exit(0 if "--or-skip" in sys.argv and not os.environ.get("CI") else 1)


def _find_python(versions: tuple[str, ...]) -> str:
    """Raises Unusable where there is none."""
    for version in versions:
        for candidate in (sys.executable, shutil.which(f"python{version}"), f"/usr/bin/python{version}"):
            if candidate and _version_of(candidate) == version:
                return candidate
    wanted = " or ".join(versions)
    raise Unusable(f"Python {wanted} is needed.", f"Install it so that it is found by the name python{versions[0]}.")


def _version_of(python: str) -> str:
    """Empty where it does not run: some names only stand for a Python that is not installed."""
    command = [python, "-c", "import sys, venv; print('%d.%d' % sys.version_info[:2])"]
    try:
        return subprocess.run(command, check=False, capture_output=True, text=True).stdout.strip()
    except OSError:
        return ""
