"""Direct links: the gateway dials, and both show certificates; real handshakes with right ones and wrong ones."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from firstkit.links.direct import listening
from firstkit.links.entrance import Arrival
from firstkit.links.frames import FrameType
from firstkit.links.messages import Head, LinkSpec, Outcome, PilotSpec, Refusal, Tail
from firstkit.links.pilot_end import PilotLink
from firstkit.links.private_ca import PrivateCa, job_name
from unit.links.support import JOB, Ends, ManualExchange, Peer, RememberingSink, request
from waiting import until

DONE = Tail(Outcome.COMPLETE)


class Direct:
    """A pilot that waits to be dialled."""

    def __init__(self, ends: Ends, ca: PrivateCa) -> None:
        self.ends = ends
        self.ca = ca
        self.addresses: list[str] = []
        self.pilot: PilotLink

    def listen(self, job_id: str = JOB, **times: Any) -> None:
        link = LinkSpec(
            "direct", ca_pem=self.ca.certificate_pem, identity_pem=self.ca.identity_pem(job_id), resume_s=20.0
        )
        spec = PilotSpec(JOB, "here", link, "token-1")
        self.pilot = PilotLink(spec, self.ends.service, on_address=self.addresses.append, **times)
        self.ends._pilots.append((self.pilot, asyncio.get_running_loop().create_task(self.pilot.run())))

    async def dial(
        self, make: Any = None, context: ssl.SSLContext | None = None, name: str = job_name(JOB)
    ) -> asyncio.Transport:
        await until(lambda: self.addresses, "the address")
        host, _, port = self.addresses[0].rpartition(":")
        transport, _ = await asyncio.get_running_loop().create_connection(
            make or (lambda: Arrival(self.ends.entrance, JOB)),
            host.strip("[]"),
            int(port),
            ssl=context or self.ca.client_context(),
            server_hostname=name,
        )
        return transport


@pytest.fixture
async def direct(ends: Ends, folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Direct]:
    monkeypatch.chdir(folder)
    ends.enter()
    yield Direct(ends, PrivateCa(folder))
    ends.entrance.close()
    await ends.close()


def echo(exchange: ManualExchange) -> None:
    exchange.sink.on_head(Head(200))
    exchange.sink.on_data(exchange.body)
    exchange.sink.on_tail(DONE)


async def test_after_the_hello_it_is_a_link_as_any_other(ends: Ends, direct: Direct, folder: Path) -> None:
    direct.listen()
    transport = await direct.dial()
    await until(lambda: ends.owner.up, "the link")
    link, sink = ends.owner.up[0], RememberingSink()
    ends.service.answer = echo
    link.open(request(b"question"), b"question", sink)
    assert await sink.tail() == DONE
    assert sink.body == b"question"
    assert await link.call("status") == {"verb": "status"}
    assert ends.owner.hellos[0].token == "token-1"
    assert not list(folder.glob("*.pem.*"))
    assert {path.name for path in folder.iterdir()} <= {"pilots-ca.pem", "pilots-server.pem"}, "no key is left behind"
    transport.abort()
    await until(lambda: not link.is_up)
    ends.service.answer = None
    await direct.dial()
    await until(lambda: link.is_up, "the same session")
    assert ends.owner.news == ["up", "down", "up"]


async def test_a_second_dial_replaces_the_first_and_loses_nothing(ends: Ends, direct: Direct) -> None:
    """The gateway may think a connection dead that the pilot thinks alive."""
    direct.listen()
    await direct.dial()
    await until(lambda: ends.owner.up, "the link")
    link, sink = ends.owner.up[0], RememberingSink()
    link.open(request(), b"", sink)
    exchange = await ends.service.exchange()
    exchange.sink.on_head(Head(200))
    sent = b""
    for n in range(5):
        exchange.sink.on_data(b"%d " % n * 1000)
        sent += b"%d " % n * 1000
        await direct.dial()
    exchange.sink.on_tail(DONE)
    assert await sink.tail() == DONE
    assert sink.body == sent
    assert ends.owner.made == [link]


async def test_only_the_gateway_may_dial(ends: Ends, direct: Direct, folder: Path) -> None:
    """No certificate, one of another CA, one of another pilot: none of them hears a word, the secret least of all."""
    direct.listen()
    (folder / "other").mkdir()
    nothing = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    nothing.load_verify_locations(cadata=direct.ca.certificate_pem)
    foreign = PrivateCa(folder / "other").client_context()
    foreign.load_verify_locations(cadata=direct.ca.certificate_pem)
    another = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    another.load_verify_locations(cadata=direct.ca.certificate_pem)
    (folder / "another.pem").write_text(direct.ca.identity_pem("job-2"))
    another.load_cert_chain(folder / "another.pem")
    for context in (nothing, foreign, another):
        peer = Peer()
        try:
            await direct.dial(lambda peer=peer: peer, context)
        except (ssl.SSLError, ConnectionError):
            continue
        await until(lambda peer=peer: peer.is_gone, "the end")
        assert peer.frames == []
    assert not direct.pilot.is_up


async def test_a_certificate_that_may_be_a_clients_but_is_not_the_gateways(
    ends: Ends, direct: Direct, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from firstkit.clock import now
    from firstkit.links import private_ca

    direct.listen()
    made = direct.ca._make(job_name("job-2"), now(), private_ca.JOB_LIFE, private_ca._GATEWAY)
    (folder / "another.pem").write_bytes(made.pem())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=direct.ca.certificate_pem)
    context.load_cert_chain(folder / "another.pem")
    peer = Peer()
    await direct.dial(lambda: peer, context)
    await until(lambda: peer.is_gone, "the end")
    assert peer.frames == []
    assert "somebody dialled who is not the gateway" in caplog.text


async def test_the_gateway_talks_to_the_pilot_of_the_job_only(ends: Ends, direct: Direct) -> None:
    direct.listen(job_id="job-2")
    with pytest.raises(ssl.SSLCertVerificationError, match="job-1"):
        await direct.dial()
    assert ends.owner.hellos == []


async def test_a_pilot_that_says_it_is_of_another_job_is_refused(ends: Ends, direct: Direct) -> None:
    """The certificate says one thing and the hello another: somebody took the pilot's key."""
    direct.listen(job_id="job-2")
    arrival = Arrival(ends.entrance, "job-2")
    await direct.dial(lambda: arrival, name=job_name("job-2"))
    assert await arrival.link is None
    assert ends.owner.hellos == []


async def test_an_older_greeting_that_is_answered_late_counts_no_more(ends: Ends, direct: Direct) -> None:
    direct.listen()
    ends.owner.may_admit.clear()
    first, second = Peer(), Peer()
    await direct.dial(lambda: first)
    await until(lambda: first.got(FrameType.HELLO))
    await direct.dial(lambda: second)
    await until(lambda: second.got(FrameType.HELLO))
    await until(lambda: first.is_gone, "the end of the older one")
    second.send(FrameType.RESET, 0, Refusal("over", "this job is over"))
    await until(lambda: ends.service.overs == 1)
    for peer in (first, second):
        await until(lambda peer=peer: peer.is_gone)


async def test_it_listens_on_an_interface_that_others_reach(direct: Direct) -> None:
    direct.listen()
    await until(lambda: direct.addresses)
    host, _, port = direct.addresses[0].rpartition(":")
    assert host
    assert int(port)


@pytest.mark.parametrize("lacks", ["ca_pem", "identity_pem"])
async def test_a_link_that_lacks_something(direct: Direct, lacks: str) -> None:
    spec = LinkSpec("direct", ca_pem=direct.ca.certificate_pem, identity_pem=direct.ca.identity_pem(JOB))
    with pytest.raises(ValueError, match=lacks):
        async with listening(asyncio.Protocol, replace(spec, **{lacks: None})):
            pass
    with pytest.raises(ValueError, match=lacks):
        async with listening(asyncio.Protocol, replace(spec, **{lacks: "nonsense"})):
            pass


def test_keys_are_not_shown(folder: Path) -> None:
    assert "PRIVATE" not in repr(LinkSpec("direct", identity_pem=PrivateCa(folder).identity_pem(JOB)))
