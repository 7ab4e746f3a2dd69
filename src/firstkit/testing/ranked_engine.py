"""A fake engine that is one of several on several nodes: healthy when all are there, at an end when one goes."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys

from firstkit.testing.quick_engine import QuickEngine
from firstkit.testing.tiny_http import Connection, Request, serve

ALONE = 3
"""Exit status of a rank that has lost another."""
RETRY_S = 0.05


class RankedEngine(QuickEngine):
    """Rank 0 answers requests and awaits the others at ``--head ADDRESS:PORT``; they connect, say their number, and
    serve nobody. It is loaded when all are there, and ends with status ALONE as soon as one goes."""

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__(options)
        self.rank: int = options.rank
        self.ranks: int = options.ranks
        host, _, port = options.head.rpartition(":")
        self.head = (host, int(port))
        self.joined: set[int] = set()

    @property
    def is_loaded(self) -> bool:
        return super().is_loaded and len(self.joined) == self.ranks - 1

    async def handle(self, request: Request, connection: Connection) -> None:
        if request.path == "/ranks":
            await connection.answer(200, {"ranks": self.ranks, "joined": sorted(self.joined)})
        else:
            await super().handle(request, connection)

    async def meet(self) -> None:
        """Be among the others until one of them is gone; then end this process."""
        await (self._await_others() if self.rank == 0 else self._join())
        sys.stderr.write(f"rank {self.rank}: another rank is gone\n")
        raise SystemExit(ALONE)

    async def _await_others(self) -> None:
        gone = asyncio.Event()

        async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError, ValueError):
                self.joined.add(int(await reader.readline()))
                await reader.read()
            writer.close()
            gone.set()

        async with await asyncio.start_server(hold, *self.head):
            await gone.wait()

    async def _join(self) -> None:
        while True:
            try:
                reader, writer = await asyncio.open_connection(*self.head)
                break
            except OSError:
                await asyncio.sleep(RETRY_S)
        writer.write(b"%d\n" % self.rank)
        with contextlib.suppress(OSError):
            await reader.read()
        writer.close()


async def run(options: argparse.Namespace) -> None:
    """Be this rank until the process is ended, or another is gone."""
    engine = RankedEngine(options)
    if engine.rank:
        await engine.meet()
    server = await serve(engine.handle, options.socket, None)
    async with server:
        await engine.meet()


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="ranked_engine", description="One rank of an engine without a model.")
    parser.add_argument("--rank", type=int, required=True)
    parser.add_argument("--ranks", type=int, required=True)
    parser.add_argument("--head", required=True, help="where rank 0 awaits the others: ADDRESS:PORT")
    parser.add_argument("--socket", required=True, help="rank 0 answers requests on this UNIX socket")
    parser.add_argument("--model", default="fake-model")
    parser.add_argument("--tokens", type=int, default=8, help="tokens of an answer")
    parser.add_argument("--token-delay", type=float, help="seconds before each token")
    parser.add_argument("--load-delay", type=float, help="seconds until /health answers 200")
    usual = {"after": 3, "variant": "bad-sse", "while_there": "", "good_every": 1, "key_env": None}
    parser.set_defaults(**usual)
    return parser.parse_args(argv)


if __name__ == "__main__":
    asyncio.run(run(parse()))
