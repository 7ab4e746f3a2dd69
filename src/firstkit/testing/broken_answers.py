"""Answers of HTTP that are none: what a fake service says when it is told to fail."""

from __future__ import annotations

import json
import math

from firstkit.testing.tiny_http import Connection

FAULTS = ("silence", "garbage", "deep", "cut", "drip", "flood", "elsewhere")
"""How an answer can be broken, beside a status: none ever comes; it is no JSON; it is nested too deeply; it ends before
its end; it comes a byte at a time, for ever; it is endless; it says to ask the same at another path."""


async def answer_wrongly(fault: int | str, connection: Connection) -> None:
    """Answer wrongly, until the client has had enough of it."""
    if isinstance(fault, int):
        await connection.answer(fault, {"error": "told_to_fail", "errors": [{"code": "TOLD_TO_FAIL"}]})
    elif fault == "silence":
        await connection.sleep(math.inf)
    elif fault == "garbage":
        await connection.head(200, "text/html", 6)
        await connection.raw(b"<html>")
    elif fault == "deep":
        await connection.head(200, "application/json", 200_000)
        await connection.raw(b"[" * 200_000)
    elif fault == "cut":
        await connection.head(200, "application/json", 1000)
        await connection.raw(json.dumps({"active": True}).encode())
        connection.keeps_alive = False
    elif fault == "elsewhere":
        await connection.raw(b"HTTP/1.1 307 X\r\nlocation: /elsewhere\r\ncontent-length: 0\r\n\r\n")
    else:
        await _go_on_and_on(fault, connection)


async def _go_on_and_on(fault: str, connection: Connection) -> None:
    is_slow = fault == "drip"
    await connection.head(200, "application/json", 10**12)
    while True:
        await connection.raw(b" " if is_slow else b" " * 65_536)
        await connection.sleep(0.05 if is_slow else 0.0)
