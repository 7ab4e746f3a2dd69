"""Heads that are known again: what is read of them, and that nothing else is ever taken for one."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstkit.auth.permissions import Membership, ProjectNotFound
from firstkit.engines.familiar import LONGEST_HEAD_BYTES, MOST_DIGITS, FamiliarHead
from firstkit.gateway.apis import CHAT, EMBEDDINGS
from firstkit.gateway.call import Patience
from firstkit.gateway.callers import Caller, familiar, read_caller
from firstkit.gateway.dialects import CHUNKS
from firstkit.gateway.request import RequestHead
from firstkit.ids import digest
from unit.gateway.support import CHAT_BODY, HOST, IDENTITY, Served, get, request
from unit.gateway.upstreams import settle

USUAL = Patience(2, 300)
JSON = (b"content-type", b"application/json")
KEY = (b"authorization", b"Bearer key")


def caller_of(*headers: tuple[bytes, bytes], version: str = "1.1", keeps_alive: bool = True) -> Caller:
    return read_caller(RequestHead("POST", CHAT.path, [HOST, *headers], version), CHAT, keeps_alive, USUAL)


GOOD = caller_of(KEY, JSON)


# -- what is read of a head --------------------------------------------------------------------------------------------


def test_a_good_head() -> None:
    said = {"keeps_alive": True, "knows_chunks": True, "awaits_go_on": False, "path": CHAT.path}
    assert Caller(CHAT, CHUNKS, digest("key"), USUAL, **said) == GOOD  # type: ignore[arg-type]


def test_what_else_it_may_say() -> None:
    headers = (
        KEY, JSON, (b"expect", b"100-continue"), (b"x-first-hold", b"5"), (b"x-first-project", b" sun "),
        (b"x-first-priority", b"batch"), (b"x-forwarded-for", b"192.0.2.7"), (b"x-forwarded-for", b"10.0.0.1"),
    )  # fmt: skip
    caller = caller_of(*headers, version="1.0", keeps_alive=False)
    assert (caller.keeps_alive, caller.knows_chunks, caller.awaits_go_on) == (False, False, True)
    assert (caller.patience, caller.refusal) == (Patience(5, 300), None)
    assert (caller.project, caller.is_batch, caller.forwarded) == ("sun", True, (b"192.0.2.7", b"10.0.0.1"))


def test_it_is_charged_to_the_project_that_it_names() -> None:
    both = (Membership("p", "sun"), Membership("q", "moon"))
    somebody = replace(IDENTITY, project_id="p", project_name="sun", memberships=both)
    assert GOOD.charged(somebody) is somebody
    caller = caller_of(KEY, JSON, (b"x-first-project", b"moon"))
    charged = caller.charged(somebody)
    assert (charged.project_id, charged.user_id) == ("q", somebody.user_id)
    assert caller.charged(somebody) is charged, "which takes a while to make"
    with pytest.raises(ProjectNotFound):
        caller.charged(replace(somebody, memberships=both[:1]))


@pytest.mark.parametrize(
    ("path", "headers", "pin"),
    [
        ("/v1/chat/completions", [], None),
        ("/v1/clusters/here/chat/completions", [], "here"),
        ("/v1/chat/completions", [(b"x-first-cluster", b"here")], "here"),
        ("/v1/clusters/here/chat/completions", [(b"x-first-cluster", b" here ")], "here"),
    ],
)
def test_the_cluster_that_is_asked_for(path: str, headers: list[tuple[bytes, bytes]], pin: str | None) -> None:
    caller = read_caller(RequestHead("POST", path, [HOST, KEY, JSON, *headers]), CHAT, True, USUAL)
    assert (caller.pin, caller.refusal) == (pin, None)


def test_two_clusters_at_once() -> None:
    head = RequestHead("POST", "/v1/clusters/here/embeddings", [HOST, KEY, JSON, (b"x-first-cluster", b"there")])
    refusal = read_caller(head, EMBEDDINGS, True, USUAL).refusal
    assert refusal is not None
    assert (refusal.status, refusal.param) == (400, "x-first-cluster")


@pytest.mark.parametrize(
    ("headers", "status", "is_known"),
    [
        ([KEY, JSON, (b"x-first-cluster", b"a"), (b"x-first-cluster", b"a")], 400, True),
        ([JSON], 401, False),
        ([KEY, KEY, JSON], 400, False),
        ([KEY], 415, True),
        ([KEY, (b"content-type", b"text/plain")], 415, True),
        ([KEY, JSON, JSON], 400, True),
        ([KEY, JSON, (b"x-first-hold", b"soon")], 400, True),
        ([KEY, JSON, (b"x-first-priority", b"high")], 400, True),
        ([KEY, JSON, (b"x-first-project", b"a"), (b"x-first-project", b"a")], 400, True),
    ],
)
def test_what_is_wrong_with_it_is_for_those_who_may_come_in(
    headers: list[tuple[bytes, bytes]], status: int, is_known: bool
) -> None:
    caller = caller_of(*headers)
    assert caller.refusal is not None
    assert caller.refusal.status == status
    assert caller.key_digest == (digest("key") if is_known else "")


# -- heads known by their bytes ----------------------------------------------------------------------------------------


def known(data: bytes, caller: Caller = GOOD) -> FamiliarHead:
    head = familiar(data, caller)
    assert head is not None
    return head


def test_the_same_head_with_another_body() -> None:
    head = known(request(body=b"[1]"))
    assert head.what is GOOD
    assert head.body_of(request(body=b"[1]")) == b"[1]"
    assert head.body_of(request(body=b"[1, 2, 3, 4, 5]")) == b"[1, 2, 3, 4, 5]"
    assert head.body_of(request(body=b"")) == b""


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\r\n" + request(body=b"[1]"),
        request(body=b"[1]") + b" ",
        request(body=b"[1]")[:-1],
        request(body=b"[1]") + request(body=b"[1]"),
        request(body=b"[1]").partition(b"\r\n\r\n")[0],
        request("x: y", body=b"[1]"),
        request(body=b"[1]", key="other"),
        request(body=b"[1]", host="other"),
        request(body=b"[1]", version="1.0"),
        request(body=b"[1]", path="/v1/completions"),
        request(body=b"[1]").replace(b"content-length", b"Content-Length"),
        request(body=b"[1]").replace(b"content-length: 3", b"content-length: +3"),
        request(body=b"[1]").replace(b"content-length: 3", b"content-length: 3 "),
        request(body=b"[1]").replace(b"content-length: 3", b"content-length: "),
        request(body=b"[1]").replace(b"content-length: 3", b"content-length: 000000003"),
        request(body=b"[1]").replace(b"content-length: 3", b"content-length: 3\r\ncontent-length: 3"),
        request(body=b"[1]").replace(b"content-length: 3", b"content-length: \xb3"),
        request(body=b"[1]").replace(b"content-length: 3", b"transfer-encoding: chunked"),
    ],
)
def test_nothing_else_is(data: bytes) -> None:
    assert known(request(body=b"[1]")).body_of(data) is None


@pytest.mark.parametrize(
    ("data", "caller"),
    [
        (request(body=b"[1]"), caller_of(JSON)),
        (request(body=b"[1]"), caller_of(KEY)),
        (request(body=b"[1]"), caller_of(KEY, JSON, (b"expect", b"100-continue"))),
        (request(body=b"[1]") + b" ", GOOD),
        (request(body=b"[1]") + get(), GOOD),
        (request(body=b"[1]")[:-1], GOOD),
        (request("transfer-encoding: chunked", body=None) + b"0\r\n\r\n", GOOD),
        (request("x: " + "y" * LONGEST_HEAD_BYTES, body=b"[1]"), GOOD),
        (request("content-length : 3", body=None) + b"[1]", GOOD),
        (b"\r\n\r\n", GOOD),
        (b"", GOOD),
    ],
)
def test_what_is_not_remembered(data: bytes, caller: Caller) -> None:
    assert familiar(data, caller) is None


PIECES = st.lists(st.sampled_from([b"a", b"0", b"9", b"12", b"\r\n", b"\r\n\r\n", b": "]), max_size=6).map(b"".join)


@given(PIECES, PIECES.map(lambda after: after + b"\r\n\r\n"), st.data())
def test_a_body_is_what_follows_the_whole_head_and_as_long_as_it_says(
    before: bytes, after: bytes, data: st.DataObject
) -> None:
    head = FamiliarHead(before, after, GOOD)
    body = data.draw(PIECES)
    whole = before + data.draw(st.sampled_from([b"", b"%d" % len(body), b"0%d" % len(body)]) | PIECES) + after + body
    sent = data.draw(st.sampled_from([whole, whole[: data.draw(st.integers(0, len(whole)))]]))
    found = head.body_of(sent)
    if found is not None:
        digits = sent[len(before) : len(sent) - len(found) - len(after)]
        assert sent == before + digits + after + found
        assert digits.isdigit()
        assert len(digits) <= MOST_DIGITS
        assert int(digits) == len(found)


def test_a_head_that_was_cut_behind_its_length_is_not_whole() -> None:
    head = known(request(body=b"[1]"))
    before, after = request(body=b"[1]").split(b"3", 1)
    after = after[: -len(b"[1]")]
    for digits in range(1, 8):
        value = len(before) + digits + 2 - len(after)
        assert head.body_of(before + b"%0*d" % (digits, value) + b"0") is None


# -- on connections ----------------------------------------------------------------------------------------------------


def bodies(served: Served) -> list[bytes]:
    return [exchange.body for exchange in served.replica.opened]


async def test_every_request_of_a_connection_is_what_it_says(served: Served) -> None:
    visit = served.connect()
    for count, text in enumerate(["a", "b" * 1000, "", "c"], 1):
        visit.say(request(body={**CHAT_BODY, "user": text}))
        assert b'"user":"%b"' % text.encode() in served.replica.last.body
        assert len(served.replica.opened) == count
        served.replica.last.answer(b'"%b"' % text.encode())
    assert [answer.json for answer in visit.answers] == ["a", "b" * 1000, "", "c"]
    ids = {answer.headers[b"x-request-id"] for answer in visit.answers}
    assert len(ids) == 4
    assert visit.is_open
    assert served.body_bytes == 0


async def test_a_key_that_is_known_no_more_is_asked_for_again(served: Served) -> None:
    visit = served.connect()
    visit.say(request())
    served.replica.last.answer()
    del served.keys.identities["key"]
    visit.say(request())
    answers = await visit.answered(2)
    assert answers[1].error["code"] == "invalid_api_key"
    assert served.keys.asked == ["key"]
    assert len(served.replica.opened) == 1


async def test_what_a_key_may_do_is_looked_at_each_time(served: Served) -> None:
    visit = served.connect()
    visit.say(request())
    served.replica.last.answer()
    served.keys.identities["key"] = replace(IDENTITY, scopes=frozenset({"metrics"}))
    visit.say(request())
    assert visit.answers[1].error["code"] == "insufficient_scope"


async def test_another_key_on_the_same_connection_is_another_caller(served: Served) -> None:
    visit = served.connect()
    visit.say(request())
    served.replica.last.answer()
    visit.say(request(key="bad"))
    answers = await visit.answered(2)
    assert answers[1].error["code"] == "invalid_api_key"


async def test_a_known_head_in_two_pieces(served: Served) -> None:
    data = request()
    for at in (1, 40, len(data) - 70, len(data) - 1):
        visit = served.connect()
        visit.say(data)
        served.replica.last.answer(b"1")
        visit.say(data[:at], data[at:])
        await settle()
        served.replica.last.answer(b"2")
        assert [answer.body for answer in visit.answers] == [b"1", b"2"]


async def test_what_comes_behind_a_known_head_is_parsed(served: Served) -> None:
    visit = served.connect()
    visit.say(request())
    served.replica.last.answer()
    visit.say(request() + get())
    served.replica.last.answer()
    assert [answer.status for answer in await visit.answered(3)] == [200, 200, 200]
    visit.say(request())
    served.replica.last.answer()
    visit.say(b"\0")
    assert [answer.status for answer in await visit.answered(5)] == [200] * 4 + [400]


async def test_while_one_is_answered_the_next_waits_though_its_head_is_known(served: Served) -> None:
    visit = served.connect()
    visit.say(request())
    served.replica.last.answer(b"1")
    visit.say(request(), request())
    assert len(served.replica.opened) == 2
    served.replica.last.answer(b"2")
    (await served.replica.asked(3)).answer(b"3")
    assert [answer.body for answer in await visit.answered(3)] == [b"1", b"2", b"3"]
