"""All fuzz targets, two side by side, each for ``--seconds``: ``PYTHONPATH=tests python -m fuzz --seconds 60``.

Each is a process of its own; the status is 1 when one of them found something.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

FOLDER = Path(__file__).parent
AT_A_TIME = 2


def run(path: Path, seconds: float) -> int:
    return subprocess.run([sys.executable, path, "--seconds", str(seconds)], check=False).returncode


def main() -> int:
    parser = argparse.ArgumentParser(prog="fuzz", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    seconds = parser.parse_args().seconds
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        statuses = list(pool.map(lambda path: run(path, seconds), sorted(FOLDER.glob("fuzz_*.py"))))
    return 1 if any(statuses) else 0


if __name__ == "__main__":
    sys.exit(main())
