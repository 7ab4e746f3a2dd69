"""Streams outlive their connection: both ends as they are, on wires that are cut anywhere, at either end first."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from hypothesis import given, settings
from hypothesis import strategies as st

from firstkit.links.entrance import Entrance
from firstkit.links.frames import LIMIT_BYTES
from firstkit.links.gateway_end import GatewayLink
from firstkit.links.messages import Head, LinkSpec, Open, Outcome, PilotSpec, Tail
from firstkit.links.pilot_end import PilotLink
from firstkit.links.pilot_session import PilotSession
from unit.links.support import (
    JOB,
    RememberingOwner,
    RememberingService,
    RememberingSink,
)

DONE = Tail(Outcome.COMPLETE)


class Half:
    """One end's transport on a wire that delivers when it is told to."""

    def __init__(self) -> None:
        self.protocol: Any = None
        self.peer: Half
        self.out = bytearray()
        self.is_gone = False

    def write(self, data: bytes) -> None:
        if not self.is_gone:
            self.out += data

    def writelines(self, parts: list[Any]) -> None:
        for part in parts:
            self.write(part)

    def set_protocol(self, protocol: Any) -> None:
        self.protocol = protocol

    def set_write_buffer_limits(self, high: int) -> None: ...

    def get_extra_info(self, name: str) -> None: ...

    def abort(self) -> None:
        """This end is done with it; the other may not know for long."""
        self.is_gone = True

    close = abort

    def deliver(self, size: int) -> None:
        data = bytes(self.out[:size])
        del self.out[:size]
        if data and not self.is_gone and not self.peer.is_gone:
            self.peer.protocol.data_received(data)

    def lose(self) -> None:
        """This end hears that the connection is gone."""
        if not self.is_gone:
            self.is_gone = True
            self.protocol.connection_lost(ConnectionResetError())


class World:
    """A gateway and a pilot, in one turn of the loop after the other."""

    def __init__(self) -> None:
        self.owner = RememberingOwner()
        self.service = RememberingService()
        self.entrance = Entrance(self.owner)
        spec = PilotSpec(JOB, "here", LinkSpec(path="-", resume_s=60.0), "token")
        self.pilot = PilotLink(spec, self.service)
        self.sinks: list[RememberingSink] = []
        self.bodies: list[bytes] = []
        self.handles: list[Any] = []
        self.said: dict[int, bytes] = {}
        self.ended: set[int] = set()
        self.up: Half
        self.down: Half
        self.marks = 0

    async def dial(self) -> None:
        """The pilot dials, if it has no connection."""
        if self.up.is_gone:
            self._connect()
            await self.turn()

    def _connect(self) -> None:
        self.up, self.down = Half(), Half()
        self.up.peer, self.down.peer = self.down, self.up
        self.up.protocol, self.down.protocol = self.pilot._greet(), self.entrance.arrive()
        self.down.protocol.connection_made(self.down)
        self.up.protocol.connection_made(self.up)

    async def begin(self) -> None:
        self._connect()
        await self.settle()
        assert self.link.is_up

    @property
    def link(self) -> GatewayLink:
        return self.owner.made[-1]

    @property
    def session(self) -> PilotSession:
        return cast(PilotSession, self.pilot._session)

    async def turn(self) -> None:
        """What is due is done, and all that gathered is written."""
        for _ in range(4):
            await asyncio.sleep(0)
        for end in (*self.owner.made[-1:], self.pilot._session):
            if end is not None:
                end._flush()

    async def settle(self) -> None:
        """All arrives, over as many connections as it takes."""
        for _ in range(10_000):
            await self.turn()
            if self.up.is_gone or self.down.is_gone:
                self.up.lose()
                await self.dial()
            elif self.up.out or self.down.out:
                self.up.deliver(1 << 30)
                self.down.deliver(1 << 30)
            else:
                return
        raise AssertionError("it never ends")

    # -- what may happen ---------------------------------------------------------------------------------------

    async def open(self, size: int) -> None:
        if self.link.is_up:
            number, body = len(self.sinks), b"%07d" % len(self.sinks) * (size // 7)
            sink = RememberingSink()
            self.sinks.append(sink)
            self.bodies.append(body)
            self.handles.append(self.link.open(Open("rep-1", "POST", f"/{number}", len(body)), body, sink))

    async def say(self, which: int, size: int) -> None:
        live = [n for n in range(len(self.service.exchanges)) if n not in self.ended]
        if live:
            number = live[which % len(live)]
            exchange = self.service.exchanges[number]
            if number not in self.said:
                self.said[number] = b""
                exchange.sink.on_head(Head(200))
            self.marks += 1
            data = (b"%d." % self.marks) * (size // 3 + 1)
            self.said[number] += data
            exchange.sink.on_data(data)

    async def finish(self, which: int) -> None:
        live = [n for n in range(len(self.service.exchanges)) if n not in self.ended and n in self.said]
        if live:
            number = live[which % len(live)]
            self.ended.add(number)
            self.service.exchanges[number].sink.on_tail(DONE)

    async def deliver(self, is_up: bool, size: int) -> None:
        (self.up if is_up else self.down).deliver(size)

    async def pass_on(self) -> None:
        """All that is under way arrives, and both ends tell what they have."""
        for end in (self.session, self.link):
            if end.is_up:
                end.tell()
        await self.turn()
        for half in (self.up, self.down):
            half.deliver(1 << 30)

    async def cut(self, who: str) -> None:
        """The connection is gone, for one end at least."""
        for name, half in (("pilot", self.up), ("gateway", self.down)):
            if who in (name, "both"):
                half.lose()

    async def tell(self, is_up: bool) -> None:
        end = self.session if is_up else self.link
        if end.is_up:
            end.tell()

    async def pause(self, which: int, does: bool) -> None:
        if self.handles:
            handle = self.handles[which % len(self.handles)]
            if does:
                handle.pause()
            else:
                handle.resume()


ACTIONS = st.one_of(
    st.tuples(st.just("open"), st.sampled_from([0, 10, 70_000, 700_000])),
    st.tuples(st.just("say"), st.integers(0, 9), st.sampled_from([1, 100, 3000, 300_000])),
    st.tuples(st.just("finish"), st.integers(0, 9)),
    st.tuples(st.just("deliver"), st.booleans(), st.integers(1, 40) | st.integers(1, 400_000)),
    st.tuples(st.just("pass_on")),
    st.tuples(st.just("cut"), st.sampled_from(["pilot", "gateway", "both"])),
    st.tuples(st.just("dial")),
    st.tuples(st.just("tell"), st.booleans()),
    st.tuples(st.just("pause"), st.integers(0, 9), st.booleans()),
    st.tuples(st.just("turn")),
)


async def play(actions: list[tuple[Any, ...]]) -> World:
    world = World()
    await world.begin()
    await world.open(100)
    for name, *args in actions:
        await getattr(world, name)(*args)
        await world.turn()
        for kept in (world.link._kept, world.session._kept):
            assert kept is not None
            assert kept.size_bytes < world.session.kept_limit + LIMIT_BYTES * (1 + len(world.sinks))
        _check(world, is_over=False)
    for handle in world.handles:
        handle.resume()
    await world.settle()
    await world.open(70_000)
    await world.pass_on()
    await world.say(0, 300_000)
    await world.open(700_000)
    await world.pass_on()
    await world.cut("both")
    await world.settle()
    return world


def _check(world: World, is_over: bool) -> None:
    """What arrived is what was sent, once and in order; all of it when it is over."""
    opened = {int(exchange.request.path[1:]): n for n, exchange in enumerate(world.service.exchanges)}
    assert len(opened) == len(world.service.exchanges)
    for number, sink in enumerate(world.sinks):
        exchange = opened.get(number)
        assert exchange is None or world.service.exchanges[exchange].body == world.bodies[number]
        said = b"" if exchange is None else world.said.get(exchange, b"")
        assert said.startswith(sink.body)
        if is_over:
            assert sink.body == said
            assert sink.tails == ([DONE] if exchange in world.ended else [])
    assert world.owner.lost == []


@settings(max_examples=200, deadline=None)
@given(st.lists(ACTIONS, max_size=40))
def test_what_arrives_is_what_was_sent(actions: list[tuple[Any, ...]]) -> None:
    async def run() -> None:
        world = await play(actions)
        _check(world, is_over=True)
        assert len(world.service.exchanges) == len(world.bodies)
        world.pilot.close()
        world.entrance.close()

    asyncio.run(run())
