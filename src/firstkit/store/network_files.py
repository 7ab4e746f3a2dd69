"""Which file systems several hosts share: SQLite loses data there."""

from __future__ import annotations

import re
from pathlib import Path

NETWORK_FILE_SYSTEMS = re.compile(
    r"(fuse\.)?(afs|beegfs|ceph|cifs|coda|dvs|fhgfs|gfs2|glusterfs|gpfs|juicefs|lustre|ncpfs|nfs4?|ocfs2|orangefs"
    r"|panfs|pvfs2|rclone|s3fs|smb3|smbfs|sshfs|wekafs)"
)
"""Where the locks and the shared memory of SQLite's write-ahead log do not work across hosts."""


def file_system_of(path: Path, mounts: str) -> str | None:
    """The file system type of an absolute ``path``, by the text of /proc/mounts; a later mount hides an earlier one."""
    found: tuple[int, str] | None = None
    for line in mounts.splitlines():
        fields = line.split()
        if len(fields) < 3:
            continue
        point = Path(re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), fields[1]))
        if path.is_relative_to(point) and (found is None or len(point.parts) >= found[0]):
            found = len(point.parts), fields[2]
    return found[1] if found else None
