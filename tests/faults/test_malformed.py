"""Malformed and odd requests, byte by byte: each gets one answer, its own, and the gateway goes on."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator

import pytest

from faults.malformed import BODY, CASES, JSON, Case, post
from faults.outside import EchoEngine, Outside, assert_sound, descriptors, gateway, log_of
from faults.wire import Answer, Wire, chat_request
from lab import Lab, wait_for

PROBE = b"GET /health?probe HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
TRICKLED = 1500
"""Up to so many bytes a case is sent one by one."""
MIB = 1024**2


@pytest.fixture(scope="module")
def lab(engines: Outside, engine: EchoEngine) -> Iterator[Lab]:
    engines.add("slow", token_delay=0.02)
    with gateway(engines) as lab:
        few = descriptors(lab)
        yield lab
        assert_sound(lab)
        wait_for("no connection is forgotten", lambda: descriptors(lab) < few + 80, 20)


def named(cases: list[Case]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", cases, ids=lambda case: case.name)


# -- what must hold of each answer -------------------------------------------------------------------------------------


def check(lab: Lab, wire: Wire, case: Case) -> None:
    """The answer to ``case`` comes, is one of those allowed, and is the only one."""
    answer = wire.answer(case.is_head)
    assert answer.status in case.statuses, answer
    check_shape(lab, answer, case)
    if answer.says_close:
        assert wire.end() == b""
        return
    assert case.stays, "the connection must not live on"
    wire.send(PROBE)
    probe = wire.answer()
    assert (probe.status, probe.json, probe.says_close) == (200, {"status": "ok"}, True)
    assert wire.rest() == b""


def check_shape(lab: Lab, answer: Answer, case: Case) -> None:
    """A refusal is an error of OpenAI's shape and repeats no secret; all else is what was asked for."""
    assert answer.interim == () or b"100-continue" in case.data.lower()
    assert answer.status < 400 or answer.interim == (), "who is refused is not asked for more"
    assert lab.key.encode() not in answer.body
    if answer.status >= 400 and not case.is_head:
        error = answer.error
        assert error["message"]
        assert error["code"]
        assert error["type"] in ("invalid_request_error", "authentication_error", "not_found_error"), error
    elif BODY in case.data:
        assert answer.said == "odd"


def test_the_table_is_large() -> None:
    assert len(CASES) >= 100
    assert len({case.name for case in CASES}) == len(CASES)


@named(CASES)
def test_alone(lab: Lab, case: Case) -> None:
    with Wire(lab.port) as wire:
        wire.send(case.bytes_for(lab.key))
        check(lab, wire, case)


@named([case for case in CASES if len(case.data) < TRICKLED])
def test_in_single_bytes(lab: Lab, case: Case) -> None:
    with Wire(lab.port) as wire:
        wire.trickle(case.bytes_for(lab.key))
        check(lab, wire, case)


@named(CASES)
def test_right_behind_a_good_request(lab: Lab, case: Case) -> None:
    """First the answer of the good one, though the refusal is known long before it, then the refusal."""
    with Wire(lab.port) as wire:
        wire.send(chat_request(lab.key, f"good before {case.name}", "slow") + case.bytes_for(lab.key))
        good = wire.answer()
        assert (good.status, good.said) == (200, f"good before {case.name}")
        check(lab, wire, case)


@named(CASES)
def test_behind_a_head_that_is_known(lab: Lab, case: Case) -> None:
    """Clients send the same head again and again. What only resembles it gets no benefit from that."""
    with Wire(lab.port) as wire:
        for body in (BODY, BODY + b" ", BODY):
            wire.send(post(body=body).replace(b"@KEY@", lab.key.encode()))
            assert wire.answer().said == "odd"
        wire.send(case.bytes_for(lab.key))
        check(lab, wire, case)


@named([case for case in CASES if not case.stays and "without end" not in case.name])
def test_nothing_behind_a_refusal_is_read(lab: Lab, engine: EchoEngine, case: Case) -> None:
    """Where the bounds of a request are in doubt, what follows may be a part of it."""
    with Wire(lab.port) as wire:
        wire.send(case.bytes_for(lab.key) + chat_request(lab.key, f"behind {case.name}"))
        answer = wire.answer(case.is_head)
        assert answer.status in case.statuses
        assert answer.says_close
        assert wire.end() == b""
    assert not [body for body in engine.bodies if f"behind {case.name}".encode() in body]


def test_refused_connections_are_closed(lab: Lab) -> None:
    """By the gateway, also when the client does not think of it: soon, but late enough for it to read why."""
    wires: list[Wire] = []
    for case in CASES:
        if not case.stays and len(wires) < 20:
            wires.append(Wire(lab.port))
            wires[-1].send(case.bytes_for(lab.key))
    for wire in wires:
        assert wire.answer().says_close
        assert wire.rest() == b""
        wire.sock.close()


# -- single things -----------------------------------------------------------------------------------------------------


def test_the_body_is_asked_for_when_it_is_wanted(lab: Lab) -> None:
    """100 Continue comes before the body, once, and the body behind it is answered."""
    request = chat_request(lab.key, "continued")
    head, _, body = request.partition(b"\r\n\r\n")
    with Wire(lab.port) as wire:
        wire.send(head + b"\r\nexpect: 100-continue\r\n\r\n")
        wire.until(b"HTTP/1.1 100 Continue\r\n\r\n")
        wire.send(body)
        answer = wire.answer()
    assert (answer.said, answer.interim) == ("continued", (100,))


def test_the_body_of_a_page_is_asked_for_as_well(lab: Lab) -> None:
    with Wire(lab.port) as wire:
        head = f"POST /admin/keys HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {lab.key}\r\nexpect: 100-continue\r\n"
        wire.send(f"{head}content-length: 2\r\n".encode() + JSON + b"\r\n")
        wire.until(b"HTTP/1.1 100 Continue\r\n\r\n")
        wire.send(b"{}")
        assert wire.answer().status == 400


@pytest.mark.parametrize("framing", ["length", "chunks"])
@pytest.mark.parametrize(("path", "limit"), [("/v1/chat/completions", 32 * MIB), ("/admin/keys", MIB)])
def test_who_sends_too_much_can_read_the_refusal(lab: Lab, path: str, limit: int, framing: str) -> None:
    """A client that writes all of a body before it reads anything must not find its connection reset."""
    lines = f"POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {lab.key}\r\n".encode() + JSON
    piece = b" " * MIB
    with Wire(lab.port) as wire:
        if framing == "length":
            wire.send(lines + b"content-length: %d\r\n\r\n" % (limit + 8 * MIB))
            wire.send(piece * (limit // MIB + 8))
        else:
            wire.send(lines + b"transfer-encoding: chunked\r\n\r\n")
            wire.send((b"100000\r\n" + piece + b"\r\n") * (limit // MIB + 8))
        answer = wire.answer()
        assert (answer.status, answer.error["code"]) == (413, "request_too_large")
        assert wire.end() == b""


def test_who_has_no_key_can_read_the_refusal(lab: Lab) -> None:
    with Wire(lab.port) as wire:
        wire.send(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n" % (30 * MIB) + JSON + b"\r\n"
        )
        wire.until(b"HTTP/1.1 401 ")
        wire.send(b" " * 30 * MIB)
        assert wire.answer().error["code"] == "invalid_api_key"


def test_ten_requests_in_one_write_are_answered_in_order(lab: Lab) -> None:
    """With slow and quick, streamed and plain, and a page among them."""
    wanted = [("slow" if i % 3 == 0 else "echo", i % 2 == 0, f"prompt {i}") for i in range(10)]
    requests = [chat_request(lab.key, prompt, model, stream=stream) for model, stream, prompt in wanted]
    with Wire(lab.port) as wire:
        wire.send(b"".join(requests[:5]) + PROBE.replace(b"connection: close\r\n", b"") + b"".join(requests[5:]))
        said = [wire.answer().said for _ in range(5)]
        assert wire.answer().json == {"status": "ok"}
        said += [wire.answer().said for _ in range(5)]
        wire.send(PROBE)
        assert wire.answer().says_close
        assert wire.rest() == b""
    assert said == [prompt for _, _, prompt in wanted]


def test_a_large_request_and_half_of_the_next_in_one_write(lab: Lab) -> None:
    """The bytes of a whole request are none of the head that begins behind it."""
    first, second = (chat_request(lab.key, f"prompt {i}", filler="x" * 100_000) for i in range(2))
    with Wire(lab.port) as wire:
        wire.send(first + second[:20])
        assert wire.answer().said == "prompt 0"
        wire.send(second[20:])
        assert wire.answer().said == "prompt 1"


def test_a_thousand_small_requests_in_one_write(lab: Lab) -> None:
    page = PROBE.replace(b"connection: close\r\n", b"")
    with Wire(lab.port) as wire:
        wire.send(page * 1000 + PROBE)
        assert [wire.answer().status for _ in range(1001)] == [200] * 1001
        assert wire.rest() == b""


@pytest.mark.parametrize("path", ["/health", "/docs/swagger-ui-bundle.js", "/v1/models"])
def test_clients_that_ask_and_leave_at_once(lab: Lab, path: str) -> None:
    """With several requests under way, by an end or a reset, before or in the middle of an answer: no fault of ours."""
    since = len(log_of(lab))
    page = f"GET {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {lab.key}\r\n\r\n".encode()
    for i in range(40):
        with Wire(lab.port) as wire:
            wire.send(page * 3)
            if i % 2:
                wire.until(b"HTTP/1.1 200 ")
            if i % 4 < 2:
                wire.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    assert_sound(lab, since)


def test_a_stream_to_http_1_0_has_no_chunks(lab: Lab) -> None:
    with Wire(lab.port) as wire:
        wire.send(chat_request(lab.key, "old", stream=True).replace(b"HTTP/1.1", b"HTTP/1.0"))
        data = wire.rest()
    head, _, body = data.partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head.lower()
    assert body.startswith(b"data: {")
    assert body.endswith(b"data: [DONE]\n\n")


def test_many_ranges_are_cheap(lab: Lab) -> None:
    """Thousands of parts of a file in one header (CVE-2025-62727): one short answer."""
    ranges = b",".join(b"%d-%d" % (i, i + 1) for i in range(0, 6000, 2))
    with Wire(lab.port) as wire:
        head = b"GET /docs/swagger-ui.css HTTP/1.1\r\nhost: x\r\nconnection: close\r\nauthorization: Bearer "
        wire.send(head + lab.key.encode() + b"\r\nrange: bytes=" + ranges + b"\r\n\r\n")
        assert wire.answer().status in (200, 206, 400, 416)
