"""The kinds of value in the configuration: each cast once, and refused with a sentence that says what is allowed."""

from __future__ import annotations

import re
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from firstkit.engines.engine import CAPABILITIES

GIB = 1024**3
LONGEST_S = 100 * 365 * 86400.0
_MULTIPLES = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def _seconds(value: Any) -> Any:
    """``90``, ``90s``, ``1.5h``: seconds."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError("must be a duration such as 90s, 5m, 24h or 7d")
    if isinstance(value, str):
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)?", value.strip())
        if not match:
            raise ValueError("must be a duration such as 90s, 5m, 24h or 7d")
        return float(match[1]) * _UNITS[match[2] or "s"]
    return value


def _count(value: Any) -> Any:
    """``5000``, ``50M``, ``2G``: a whole number."""
    if isinstance(value, str):
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kMGT])?", value.strip())
        if not match:
            raise ValueError("must be a whole number such as 5000, 50M or 2G")
        value = float(match[1]) * _MULTIPLES[match[2] or ""]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != int(value):
        raise ValueError("must be a whole number such as 5000, 50M or 2G")
    return int(value)


def _uuid(value: str) -> str:
    if not re.fullmatch(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}", value):
        raise ValueError("must be a UUID such as 0123abcd-0123-0123-0123-0123456789ab")
    return value.lower()


def _domain(value: str) -> str:
    if not re.fullmatch(r"(?!-)[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+", value):
        raise ValueError("must be a domain such as example.org")
    return value.lower()


def _web(value: str) -> str:
    if not re.fullmatch(r"https?://[A-Za-z0-9.\[\]:-]+(/[\w.~/-]*)?", value):
        raise ValueError("must be an address such as https://first.example.org")
    return value.rstrip("/")


def _network(value: str) -> str:
    try:
        return str(ip_network(value))
    except ValueError:
        raise ValueError("must be an address or a network, such as 127.0.0.1 or 10.0.0.0/8") from None


def _name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", value):
        raise ValueError("must be letters, digits, '.', '_' or '-', at most 100, starting with a letter or digit")
    return value


def _model_name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,199}", value):
        raise ValueError("must be letters, digits or any of ._:/@+- , at most 200, starting with a letter or digit")
    return value


def _listen(value: str) -> str:
    host, _, port = value.rpartition(":")
    if not host or not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65535:
        raise ValueError("must be HOST:PORT, for example 127.0.0.1:8000")
    return value


LONGEST_S = 100 * 365 * 86400.0


def _folder(value: Path) -> Path:
    if "\0" in str(value):
        raise ValueError("must be a path")
    return value


def _text(value: str) -> str:
    if not value or not value.isprintable():
        raise ValueError("must be printable text on one line")
    return value


def _capability(value: str) -> str:
    if value not in CAPABILITIES and not re.fullmatch(r"tasks/[a-z0-9][a-z0-9_-]{0,49}", value):
        raise ValueError(f"must be one of {', '.join(CAPABILITIES)}, or tasks/NAME")
    return value


Seconds = Annotated[float, BeforeValidator(_seconds), Field(ge=0, le=LONGEST_S)]
Count = Annotated[int, BeforeValidator(_count), Field(ge=0, le=2**62)]
Uuid = Annotated[str, AfterValidator(_uuid)]
Domain = Annotated[str, AfterValidator(_domain)]
Network = Annotated[str, AfterValidator(_network)]
Web = Annotated[str, AfterValidator(_web)]
Name = Annotated[str, AfterValidator(_name)]
ModelName = Annotated[str, AfterValidator(_model_name)]
HostPort = Annotated[str, AfterValidator(_listen)]
Folder = Annotated[Path, AfterValidator(_folder)]
Line = Annotated[str, AfterValidator(_text)]
Capability = Annotated[str, AfterValidator(_capability)]


class Section(BaseModel):
    """Unknown keys are refused: a rule that is not enforced must not look as if it were."""

    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=True, allow_inf_nan=False)
