from __future__ import annotations

from pathlib import Path

import pytest

from firstkit.errors import ConfigError
from firstkit.store import urls

MOUNTS = """\
/dev/vda / ext4 rw 0 0
server:/home /home nfs4 rw 0 0
/dev/sdb /home/local xfs rw 0 0
lustre@tcp:/eagle /eagle\\040two lustre rw 0 0
user@host:/x /mnt/x fuse.sshfs rw 0 0
overlay /home/local tmpfs rw 0 0
broken line
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/var/lib/first/first.db", "ext4"),
        ("/home/me/first.db", "nfs4"),
        ("/homely/first.db", "ext4"),
        ("/home/local/first.db", "tmpfs"),
        ("/eagle two/first.db", "lustre"),
        ("/mnt/x/y/first.db", "fuse.sshfs"),
    ],
)
def test_file_system_of(path: str, kind: str) -> None:
    assert urls.file_system_of(Path(path), MOUNTS) == kind


@pytest.mark.parametrize("kind", ["nfs", "nfs4", "lustre", "gpfs", "beegfs", "cifs", "fuse.sshfs", "fuse.juicefs"])
def test_network_file_systems_are_refused(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(urls, "file_system_of", lambda path, mounts: kind)
    with pytest.raises(ConfigError, match=kind):
        urls.refuse_network_files(Path("/data/first.db"))


def test_local_file_systems_are_taken(tmp_path: Path) -> None:
    urls.refuse_network_files(tmp_path / "first.db")


@pytest.mark.parametrize("kind", ["ext4", "xfs", "tmpfs", "overlay", "btrfs", "zfs", "fuse.fuse-overlayfs"])
def test_names_of_local_file_systems(kind: str) -> None:
    assert not urls.NETWORK_FILE_SYSTEMS.fullmatch(kind)


def test_sqlite_path() -> None:
    url = urls.database_url("sqlite:////var/lib/first.db")
    assert (url.drivername, url.database) == ("sqlite+aiosqlite", "/var/lib/first.db")


def test_postgresql_with_the_ssl_mode_of_libpq() -> None:
    url = urls.database_url("postgresql://first:pw@db/first?sslmode=require")
    assert url.drivername == "postgresql+asyncpg"
    assert dict(url.query) == {"ssl": "require"}


def test_missing_driver_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(urls, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"firstkit\[postgres\]"):
        urls.database_url("postgresql://db/first")


@pytest.mark.parametrize(
    "text",
    ["", "nonsense", "mysql://canary-pw@db/x", "sqlite://", "sqlite:///:memory:", "postgresql://u:canary-pw@h:x/d"],
)
def test_other_urls_are_refused_without_showing_them(text: str) -> None:
    with pytest.raises(ConfigError, match=r"server\.database") as caught:
        urls.database_url(text)
    assert "canary" not in str(caught.value)
    assert caught.value.__cause__ is None
