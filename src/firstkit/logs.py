"""Logs: one JSON object a line, a sentence for people and fields for machines; secrets pass one scrubber."""

from __future__ import annotations

import json
import logging
import re
import sys
from datetime import UTC, datetime
from typing import Any

_SECRETS = re.compile(r"(first-[a-z2-7]{12}-)[a-z2-7]{52,}|(?i:(bearer |basic ))[^\s\"']+|[a-z2-7]{52,}")
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}


def scrub(text: str) -> str:
    """``text`` with everything that looks like a key, a token or a secret of ours replaced by ``[secret]``."""
    return _SECRETS.sub(lambda match: (match[1] or match[2] or "") + "[secret]", text)


def _scrubbed(value: Any) -> Any:
    """``value`` as JSON types, with every text in it scrubbed: afterwards an escape could stand against a secret."""
    if isinstance(value, dict):
        return {scrub(str(key)): _scrubbed(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_scrubbed(item) for item in value]
    return value if value is None or isinstance(value, (bool, int, float)) else scrub(str(value))


class JsonLines(logging.Formatter):
    """A record as one line: time, level, logger, message, and what was passed as ``extra``."""

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        entry.update({key: value for key, value in vars(record).items() if key not in _STANDARD})
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(_scrubbed(entry))


def configure(level: int = logging.INFO) -> None:
    """Send all logs of this process to standard error as JSON lines."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=level, handlers=[handler], force=True)
