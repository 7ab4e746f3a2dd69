"""A folder for this user alone at a place where others may write, such as /tmp."""

from __future__ import annotations

import os
import stat


def make_own(folder: str) -> bool:
    """Make ``folder`` with mode 0700; False where there is something of that name that is not a folder of this user
    alone. Raises OSError."""
    try:
        os.mkdir(folder, 0o700)
    except FileExistsError:
        found = os.lstat(folder)
        return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o077
    return True
