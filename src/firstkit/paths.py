"""Where state lives when nobody says; apart from the configuration, which takes a fifth of a second to import."""

from __future__ import annotations

import os
from pathlib import Path


def default_state_dir() -> Path:
    """FIRST_STATE_DIR, else ``first`` in the user's XDG state directory."""
    if explicit := os.environ.get("FIRST_STATE_DIR"):
        return Path(explicit)
    base = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(base) / "first"
