"""GPUs of a host whose batch system counts them but gives none: which are ours.

Jobs of one user that share a host take theirs by locks on files, one a device, held for the life of the process that
took them: the kernel gives them back however it dies. Jobs of other users do not see these locks.
"""

from __future__ import annotations

import fcntl
import logging
import os
import time
from collections.abc import Sequence
from typing import Optional

from firstkit.onsite.own_folder import make_own

logger = logging.getLogger("firstkit.devices")

FOLDER = "/tmp/first-devices-{uid}"  # noqa: S108 - made 0700, and refused where it is somebody else's
WAIT_S = 15.0
"""A job before us may be about to end: its engines have some seconds for that."""
PAUSE_S = 0.2
_OPENED: list[int] = []
"""Files of devices that are ours, open until this process ends."""


class FolderRefused(OSError):
    """The folder of the locks belongs to somebody else, or others may write there."""


def take_devices(
    wanted: int, devices: Sequence[str], folder: Optional[str] = None, wait_s: float = WAIT_S
) -> tuple[str, ...]:
    """Take ``wanted`` of ``devices``, the first that are free, for as long as this process lives.

    Fewer where after ``wait_s`` seconds no more are free: replicas then say that they do not fit. Raises OSError where
    there is no folder for the locks.
    """
    folder = folder or FOLDER.format(uid=os.geteuid())
    if not make_own(folder):
        raise FolderRefused(f"{folder} is not a folder of this user alone: remove it")
    taken: dict[str, int] = {}
    give_up_at = time.monotonic() + wait_s
    while True:
        for device in devices:
            if len(taken) < wanted and device not in taken:
                handle = _lock(os.path.join(folder, device))
                if handle is not None:
                    taken[device] = handle
        if len(taken) >= wanted or time.monotonic() >= give_up_at:
            break
        time.sleep(PAUSE_S)
    _OPENED.extend(taken.values())
    if len(taken) < wanted:
        logger.warning(
            "%d of %d GPUs are free on this host: other jobs of this user have the others", len(taken), wanted,
            extra={"action": "devices_missing"},
        )  # fmt: skip
    return tuple(device for device in devices if device in taken)


def visible_variable(root: str = "/dev") -> str:
    """The variable by which an engine is shown its GPUs: that of the kind whose device files are here."""
    if os.path.exists(os.path.join(root, "nvidiactl")):
        return "CUDA_VISIBLE_DEVICES"
    if os.path.exists(os.path.join(root, "kfd")):
        return "ROCR_VISIBLE_DEVICES"
    return "ZE_AFFINITY_MASK" if os.path.isdir(os.path.join(root, "dri")) else "CUDA_VISIBLE_DEVICES"


def _lock(path: str) -> Optional[int]:
    """The open file of a device that is ours now; None where somebody else has it."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    return handle
