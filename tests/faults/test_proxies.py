"""The gateway behind a real nginx and a real HAProxy: all works as without, and no client gets another's answer."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from faults.malformed import CASES, Case
from faults.outside import EchoEngine, GatedEngine, Outside, assert_sound, gateway
from faults.proxies import KINDS, Kind, Proxy, proxy
from faults.smuggling import shapes
from faults.wire import Answer, Wire, chat_body, chat_request
from lab import Lab

MIB = 1024**2


@pytest.fixture(scope="module")
def gated(engines: Outside) -> GatedEngine:
    engine: GatedEngine = engines.add("gated", GatedEngine)
    return engine


@pytest.fixture(scope="module")
def lab(engines: Outside, engine: EchoEngine, gated: GatedEngine) -> Iterator[Lab]:
    engines.serve("nobody", {"kind": "external", "url": "http://127.0.0.1:1/v1"})
    with gateway(engines) as lab:
        yield lab
        assert_sound(lab)


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: kind.name)
def front(lab: Lab, request: pytest.FixtureRequest) -> Iterator[Proxy]:
    kind: Kind = request.param
    with proxy(kind, lab.port) as front:
        yield front


@pytest.fixture(scope="module", params=[kind for kind in KINDS if kind.is_lenient], ids=lambda kind: kind.name)
def lenient(lab: Lab, request: pytest.FixtureRequest) -> Iterator[Proxy]:
    """One that passes on as much as it can be made to."""
    kind: Kind = request.param
    with proxy(kind, lab.port) as front:
        yield front


def ask(front: Proxy, request: bytes) -> Answer:
    with Wire(front.port) as wire:
        wire.send(request)
        return wire.answer()


# -- as without --------------------------------------------------------------------------------------------------------


def test_a_chat(lab: Lab, front: Proxy) -> None:
    answer = ask(front, chat_request(lab.key, "hello"))
    assert (answer.status, answer.said) == (200, "hello")
    assert answer.headers["x-request-id"].startswith("req-")


def test_a_stream_comes_as_it_is_made(lab: Lab, front: Proxy, gated: GatedEngine) -> None:
    """Its first token is there while the engine has not made the second."""
    gated.gate.clear()
    with Wire(front.port) as wire:
        wire.send(chat_request(lab.key, "second", "gated", stream=True))
        wire.until(b"first ")
        assert b"second" not in wire.received
        gated.gate.set()
        assert wire.answer().said == "first second"


def test_a_client_that_leaves_its_stream(lab: Lab, front: Proxy, gated: GatedEngine) -> None:
    """The proxy tells the gateway, the gateway the engine; and the next one is served."""
    gated.gate.clear()
    with Wire(front.port) as wire:
        wire.send(chat_request(lab.key, "never", "gated", stream=True))
        wire.until(b"first ")
    gated.gate.set()
    assert ask(front, chat_request(lab.key, "next")).said == "next"


def test_a_large_body(lab: Lab, front: Proxy, engine: EchoEngine) -> None:
    body = chat_body("large", filler="x" * 30 * MIB)
    assert ask(front, chat_request(lab.key, "large", filler="x" * 30 * MIB)).said == "large"
    assert len(engine.bodies[-1]) >= len(body)
    engine.bodies.clear()


def test_chunks(lab: Lab, front: Proxy) -> None:
    body = chat_body("in chunks")
    head, _, _ = chat_request(lab.key, "in chunks").partition(b"content-length")
    pieces = b"".join(b"1\r\n%b\r\n" % body[i : i + 1] for i in range(len(body)))
    assert ask(front, head + b"transfer-encoding: chunked\r\n\r\n" + pieces + b"0\r\n\r\n").said == "in chunks"


def test_an_expectation(lab: Lab, front: Proxy) -> None:
    head, _, body = chat_request(lab.key, "expected").partition(b"\r\n\r\n")
    assert ask(front, head + b"\r\nexpect: 100-continue\r\n\r\n" + body).said == "expected"


def test_errors_are_those_of_the_gateway(lab: Lab, front: Proxy) -> None:
    good = chat_request(lab.key, "hello")
    wanted = {
        401: good.replace(lab.key.encode(), b"first-wrong"),
        404: chat_request(lab.key, "hello", "gpt-99"),
        415: good.replace(b"application/json", b"text/plain"),
        502: chat_request(lab.key, "hello", "nobody"),
        405: b"GET /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer %b\r\n\r\n" % lab.key.encode(),
    }
    for status, request in wanted.items():
        answer = ask(front, request)
        assert answer.status == status
        assert answer.error["message"]


def test_too_much_is_refused_in_our_words(lab: Lab, front: Proxy) -> None:
    answer = ask(front, chat_request(lab.key, "much", filler="x" * 40 * MIB))
    assert (answer.status, answer.error["code"]) == (413, "request_too_large")
    assert ask(front, chat_request(lab.key, "next")).said == "next"


# -- whose answer is it ------------------------------------------------------------------------------------------------


def test_two_clients_share_a_connection(lab: Lab, front: Proxy) -> None:
    """The ground of what follows: what one leaves behind on it, the other would find."""
    ask(front, chat_request(lab.key, "one"))
    before = front.behind()
    assert len(before) == 1
    ask(front, chat_request(lab.key, "two"))
    assert front.behind() == before


@pytest.mark.parametrize("name", sorted(shapes("key")))
def test_nobody_gets_the_answer_of_another(lab: Lab, front: Proxy, engine: EchoEngine, name: str) -> None:
    """Whatever becomes of the odd request: others, before and after it on the same connection, get their own."""
    attack = shapes(lab.key)[name]
    engine.bodies.clear()
    with Wire(front.port) as early, Wire(front.port) as attacker:
        early.send(chat_request(lab.key, "early"))
        assert early.answer().said == "early"
        attacker.send(attack)
        for turn in range(2):
            early.send(chat_request(lab.key, f"early {turn}"))
            assert early.answer().said == f"early {turn}"
            assert ask(front, chat_request(lab.key, f"fresh {turn}")).said == f"fresh {turn}"
        got = attacker.end()
        for turn in range(2, 4):
            early.send(chat_request(lab.key, f"early {turn}"))
            assert early.answer().said == f"early {turn}"
            assert ask(front, chat_request(lab.key, f"fresh {turn}")).said == f"fresh {turn}"
    assert b"early" not in got
    assert b"fresh" not in got
    for body in engine.bodies:
        text = json.loads(body)["messages"][-1]["content"]
        assert text in ("early", "smuggled", "odd") or text.startswith(("early ", "fresh ")), body


@pytest.mark.parametrize("case", [each for each in CASES if len(each.data) < 4000], ids=lambda case: case.name)
def test_malformed_requests_behind_a_proxy(lab: Lab, lenient: Proxy, case: Case) -> None:
    """The table of malformed requests once more: the next client is none the worse for any of them."""
    with Wire(lenient.port) as attacker:
        attacker.send(case.bytes_for(lab.key))
        assert ask(lenient, chat_request(lab.key, f"behind {case.name}")).said == f"behind {case.name}"
        got = attacker.end()
        assert ask(lenient, chat_request(lab.key, f"behind {case.name}")).said == f"behind {case.name}"
    assert b"behind" not in got
