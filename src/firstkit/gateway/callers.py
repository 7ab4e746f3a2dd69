"""What the head of a hot request says, read once: clients send the same head again and again, with another length."""

from __future__ import annotations

import re
from dataclasses import dataclass

from firstkit.errors import ApiError
from firstkit.gateway.call import Api, Patience, patience
from firstkit.gateway.request import RequestHead, api_key, expects_json
from firstkit.ids import digest

LONGEST_HEAD_BYTES = 4096
MOST_DIGITS = 8
_LENGTH = re.compile(rb"\r\n[Cc]ontent-[Ll]ength: ([0-9]+)\r\n")


@dataclass(slots=True)
class Caller:
    """A head that passed the guard, taken apart.

    ``refusal``: what is wrong with it, for those who may come in.
    """

    api: Api
    key_digest: str
    patience: Patience
    keeps_alive: bool
    knows_chunks: bool
    awaits_go_on: bool
    refusal: ApiError | None = None


def read_caller(head: RequestHead, api: Api, keeps_alive: bool, usual: Patience) -> Caller:
    """Never raises: a head without a key has an empty digest, and no key has that."""
    caller = Caller(
        api=api,
        key_digest="",
        patience=usual,
        keeps_alive=keeps_alive,
        knows_chunks=head.version != "1.0",
        awaits_go_on=bool(head.values(b"expect")),
    )
    try:
        caller.key_digest = digest(api_key(head))
        expects_json(head)
        caller.patience = patience(head, usual)
    except ApiError as refusal:
        caller.refusal = refusal
    return caller


class FamiliarHead:
    """A head that was parsed and accepted on a connection, to be known again by its bytes.

    The same bytes would be parsed and judged the same again; other digits in ``Content-Length`` change nothing but the
    length, and that is compared with what is there. It holds the key for as long as the connection lasts, no longer.
    """

    __slots__ = ("_after", "_before", "caller")

    def __init__(self, before: bytes, after: bytes, caller: Caller) -> None:
        """``before`` and ``after`` the digits of the length, to the end of the head."""
        self._before = before
        self._after = after
        self.caller = caller

    def body_of(self, data: bytes) -> bytes | None:
        """The body, where ``data`` is one whole request with this head and nothing else."""
        before = self._before
        if not data.startswith(before):
            return None
        start = len(before)
        end = data.find(self._after, start, start + MOST_DIGITS + len(self._after))
        digits = data[start:end]
        begin = end + len(self._after)
        if end < 0 or not digits.isdigit() or int(digits) != len(data) - begin:
            return None
        return data[begin:]


def familiar(data: bytes, caller: Caller) -> FamiliarHead | None:
    """What is to be remembered of ``data``, which was parsed as one whole request; None: nothing of this one."""
    end = data.find(b"\r\n\r\n", 0, LONGEST_HEAD_BYTES)
    length = _LENGTH.search(data, 0, end + 2) if end > 0 else None
    if length is None or caller.refusal is not None or caller.awaits_go_on or not caller.key_digest:
        return None
    head = FamiliarHead(data[: length.start(1)], data[length.end(1) : end + 4], caller)
    return head if head.body_of(data) is not None else None
