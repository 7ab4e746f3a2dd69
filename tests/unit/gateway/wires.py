"""What an answer needs of a connection, and what it comes from: as little of both as will do."""

from __future__ import annotations

from collections.abc import Callable

from unit.gateway.support import Answer, parsed


class Written:
    """The part of a transport that an answer needs."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.unsent_bytes = 0
        self.is_aborted = False
        self.on_write: Callable[[bytes], None] = lambda data: None

    def write(self, data: bytes) -> None:
        self.on_write(data)
        self.data += data

    def get_write_buffer_size(self) -> int:
        return self.unsent_bytes

    def abort(self) -> None:
        self.is_aborted = True


class Wire:
    """A connection that keeps what is written on it."""

    def __init__(self, keeps_alive: bool = True, knows_chunks: bool = True) -> None:
        self.transport = Written()
        self.keeps_alive = keeps_alive
        self.knows_chunks = knows_chunks
        self.ends = 0

    def common_headers(self) -> bytes:
        return b"date: now\r\n"

    def answered(self) -> None:
        self.ends += 1

    @property
    def answers(self) -> list[Answer]:
        return parsed(bytes(self.transport.data), self.ends > 0)

    @property
    def answer(self) -> Answer:
        [answer] = self.answers
        return answer


class Source:
    """What an answer comes from."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def cancel(self) -> None:
        self.calls.append("cancel")

    def pause(self) -> None:
        self.calls.append("pause")

    def resume(self) -> None:
        self.calls.append("resume")
