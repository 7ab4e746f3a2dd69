"""Keys and usage straight out of an SQLite file, for commands that only read.

All else goes through SQLAlchemy, which takes longer to import than a command may take in all. The answers are those of
``api_keys.list_keys`` and ``usage_report``; tests hold them side by side. None, everywhere: this is no SQLite file of
this version, so the long way must be taken, which migrates it or says what is wrong.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

Row = dict[str, Any]
SCHEMA = "0001"
URL = "sqlite:///"
WAIT_S = 5.0
KEYS = """
SELECT k.prefix, k.name, u.name AS user, p.name AS project, k.scopes, k.created_at, k.expires_at, k.revoked_at
FROM api_keys k JOIN users u ON u.id = k.user_id JOIN projects p ON p.id = k.project_id
ORDER BY k.created_at, k.prefix
"""
GROUPS = {
    "day": "strftime('%Y-%m-%d', usage.at)",
    "project": "coalesce(projects.name, usage.project_id)",
    "user": "coalesce(users.name, usage.user_id)",
    "key": "usage.key_prefix",
    "model": "usage.model",
    "cluster": "coalesce(usage.cluster, '')",
}
SUMS = """
count(*) AS requests,
coalesce(sum(prompt_tokens), 0) AS prompt_tokens,
coalesce(sum(completion_tokens), 0) AS completion_tokens,
coalesce(sum(estimated), 0) AS estimated,
coalesce(sum(outcome <> 'complete'), 0) AS failed
FROM usage LEFT JOIN users ON users.id = usage.user_id LEFT JOIN projects ON projects.id = usage.project_id
WHERE usage.at >= ? AND usage.at < ?
"""


def list_keys(url: str, now: datetime, include_dead: bool) -> list[Row] | None:
    """Keys, oldest first, as ``first keys list`` shows them."""
    found = _read(url, KEYS)
    if found is None:
        return None
    rows = [_key(row, now) for row in found]
    return rows if include_dead else [row for row in rows if row["status"] == "living"]


def usage_report(url: str, by: Sequence[str], since: datetime | None, until: datetime | None) -> list[Row] | None:
    """Sums of usage in [since, until), broken down and ordered by ``by``."""
    columns = "".join(f"{GROUPS[name]} AS '{name}', " for name in by)
    query = f"SELECT {columns}{SUMS}" + (f"GROUP BY {', '.join(GROUPS[name] for name in by)}" if by else "")
    limits = (_text(since) if since else "", _text(until) if until else "~")  # no time is before "" or after "~"
    found = _read(url, query, limits)
    return None if found is None else sorted(map(dict, found), key=lambda row: tuple(row[name] for name in by))


def _read(url: str, query: str, values: Sequence[str] = ()) -> list[sqlite3.Row] | None:
    path = url.removeprefix(URL)
    if not url.startswith(URL) or "?" in path or not Path(path).is_file():
        return None
    try:
        with closing(sqlite3.connect(f"file:{quote(path)}?mode=ro", uri=True, timeout=WAIT_S)) as db:
            db.row_factory = sqlite3.Row
            versions = [row[0] for row in db.execute("SELECT version_num FROM alembic_version")]
            return db.execute(query, values).fetchall() if versions == [SCHEMA] else None
    except sqlite3.Error:
        return None


def _key(row: sqlite3.Row, now: datetime) -> Row:
    expires_at, revoked_at = _time(row["expires_at"]), _time(row["revoked_at"])
    is_over = expires_at is not None and expires_at <= now
    return {
        "name": row["name"],
        "prefix": f"first-{row['prefix']}",
        "user": row["user"],
        "project": row["project"],
        "scopes": json.loads(row["scopes"]),
        "status": "revoked" if revoked_at else "expired" if is_over else "living",
        "created_at": _time(row["created_at"]),
        "expires_at": expires_at,
        "revoked_at": revoked_at,
    }


def _time(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text).replace(tzinfo=UTC)


def _text(moment: datetime) -> str:
    """A time as the file holds it."""
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f")
