"""How gateway and controller begin: one option, logs, a loop, and a fault of the configuration as a sentence."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import uvloop

from firstkit import logs
from firstkit.config import Config, load_config
from firstkit.errors import ConfigError


def main(prog: str, run: Callable[[Config], Coroutine[Any, Any, None]]) -> int:
    """Run until told to stop; the exit status, 2 when the configuration does not let it start."""
    parser = argparse.ArgumentParser(prog=prog)
    parser.add_argument("--config", type=Path, required=True)
    options = parser.parse_args()
    logs.configure()
    try:
        uvloop.run(run(load_config(options.config)))
    except ConfigError as error:
        print(error.message, file=sys.stderr)
        return 2
    return 0
