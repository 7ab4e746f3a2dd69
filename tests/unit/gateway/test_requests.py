"""What became of a request: for its owner and administrators, wherever it is on its way into the ledger."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import insert
from starlette.types import ASGIApp

from firstkit.accounting import spool as spool_module
from firstkit.accounting.entries import UsageEntry
from firstkit.accounting.ledger import Loader
from firstkit.accounting.spool import Spool, find_ended
from firstkit.auth.permissions import Identity
from firstkit.gateway.app import build_app
from firstkit.gateway.guard import Guard
from firstkit.gateway.state import Gateway
from firstkit.store.tables import usage
from unit.gateway.support import CHAT_BODY, IDENTITY, Answer, Served, ask, request
from unit.gateway.upstreams import USAGE, until
from usage_entries import open_entry, usage_entry

OWNER = replace(IDENTITY, user_id="u1", scopes=frozenset({"inference"}))
STRANGER = replace(IDENTITY, user_id="u2", scopes=frozenset({"inference"}))
OPERATOR = replace(IDENTITY, user_id="u3", scopes=frozenset({"admin"}))
METRICS = replace(OWNER, scopes=frozenset({"metrics"}))
ID = "req-0123456789abcdef0123456789abcdef"
OTHER = "req-ffffffffffffffffffffffffffffffff"
FACTS: dict[str, Any] = {"engine": "vLLM 0.32", "revision": "abc", "endpoint": "chat/completions", "ttft_s": None}


async def look(app: ASGIApp, who: Identity = OWNER, request_id: str = ID) -> Answer:
    return await ask(app, f"/v1/requests/{request_id}", identity=who)


def told(entry: UsageEntry) -> dict[str, Any]:
    """The answer for a request that ended."""
    same = ("model", "endpoint", "cluster", "engine", "revision", "prompt_tokens", "completion_tokens", "estimated")
    times = ("queue_s", "ttft_s", "duration_s")
    return {
        "id": entry.request_id,
        "object": "request",
        "status": entry.outcome,
        "replica": entry.replica_id,
        "at": entry.at.isoformat().replace("+00:00", "Z"),
        **{name: getattr(entry, name) for name in (*same, *times)},
    }


async def test_one_that_is_under_way(gateway: Gateway, app: ASGIApp) -> None:
    gateway.relay.spool.opened(open_entry(ID))
    found = (await look(app)).json
    assert (found["id"], found["status"], found["model"]) == (ID, "in_progress", "m")
    assert {found[name] for name in ("cluster", "replica", "prompt_tokens", "estimated", "duration_s")} == {None}


@pytest.mark.parametrize("outcome", ["complete", "rejected", "failed", "timeout", "cancelled", "lost"])
async def test_one_that_ended_before_it_is_loaded_and_after(gateway: Gateway, app: ASGIApp, outcome: str) -> None:
    spool, entry = gateway.relay.spool, usage_entry(ID, outcome=outcome, **FACTS)
    spool.opened(open_entry(ID))
    spool.opened(open_entry(OTHER))
    spool.ended(entry)
    assert (await look(app)).json == told(entry), "it is in the newest file"
    spool.turn_over()
    spool.ended(usage_entry("another"))
    assert (await look(app)).json == told(entry), "it is in a file that waits to be loaded"
    assert await Loader(spool.folder, gateway.db).load_once() == 1
    assert (await look(app)).json == told(entry), "it is in the ledger"
    assert (await look(app, request_id=OTHER)).json["status"] == "in_progress"


async def test_one_whose_end_the_disk_refuses(gateway: Gateway, app: ASGIApp, monkeypatch: pytest.MonkeyPatch) -> None:
    spool, entry = gateway.relay.spool, usage_entry(ID)
    spool.opened(open_entry(ID))
    with monkeypatch.context() as patch:
        patch.setattr(spool_module, "_write_whole", _refuse)
        with pytest.raises(Exception, match="cannot be written"):
            spool.ended(entry)
    assert (await look(app)).json == told(entry)


def _refuse(*_: Any) -> None:
    raise OSError(28, "No space left on device")


async def test_who_sees_it(gateway: Gateway, app: ASGIApp) -> None:
    unknown = await look(app, request_id=OTHER)
    assert (unknown.status, unknown.error["code"]) == (404, "request_not_found")
    for step in ("open", "ended", "loaded"):
        if step == "open":
            gateway.relay.spool.opened(open_entry(ID))
        elif step == "ended":
            gateway.relay.spool.ended(usage_entry(ID))
        else:
            gateway.relay.spool.turn_over()
            await Loader(gateway.relay.spool.folder, gateway.db).load_once()
        for who in (OWNER, replace(OWNER, key_prefix="another"), OPERATOR):
            assert (await look(app, who)).status == 200
        theirs = await look(app, STRANGER)
        assert (theirs.status, theirs.body) == (404, unknown.body), "as if it were not there"
        assert (await look(app, METRICS)).status == 403


@pytest.mark.parametrize("request_id", ["req-1", ID.upper(), ID + "0", "x" * 1000, "req-%00" + "0" * 29, "..", "*"])
async def test_what_is_no_id_is_not_looked_for(app: ASGIApp, request_id: str) -> None:
    assert (await look(app, request_id=request_id)).status == 404


async def test_one_that_waits_or_works(served: Served) -> None:
    """From the client's end: the id is in the head of the stream that waits."""
    served.gateway.room.table.pools["m"].routes[0].max_in_flight = 1
    served.gateway.room.table.refresh()
    app = Guard(build_app(served.gateway))
    first, second = served.connect(), served.connect()
    first.say(request(body={**CHAT_BODY, "stream": True}))
    await served.replica.asked()
    second.say(request("x-first-hold: 0", body={**CHAT_BODY, "stream": True}))
    await until("a comment", lambda: len(second.answers) == 1 and second.answers[0].status == 200)
    name = second.answers[0].headers[b"x-request-id"].decode()
    waiting = await ask(app, f"/v1/requests/{name}", identity=IDENTITY)
    assert (waiting.status, waiting.json["status"]) == (200, "in_progress")
    assert (await ask(app, f"/v1/requests/{name}", identity=STRANGER)).status == 404
    (await served.replica.asked()).answer()
    (await served.replica.asked(2)).complete()
    assert served.gateway.relay.in_line == {}
    await second.answer()
    ended = await ask(app, f"/v1/requests/{name}", identity=IDENTITY)
    assert (ended.json["status"], ended.json["replica"]) == ("complete", "rep-1")
    assert (ended.json["prompt_tokens"], ended.json["cluster"]) == (USAGE.prompt_tokens, "here")


async def test_the_ledger_alone(gateway: Gateway, app: ASGIApp) -> None:
    entry = usage_entry(ID, cluster=None, replica_id=None, outcome="lost", estimated=True)
    values = {column.name: getattr(entry, column.name) for column in usage.columns}
    async with gateway.db.begin() as conn:
        await conn.execute(insert(usage).values(values))
    assert (await look(app)).json == told(entry)


# -- looking in the spool ----------------------------------------------------------------------------------------------


def test_an_end_is_found_wherever_it_stands(served_spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool_module, "_SEARCHED_AT_ONCE", 700)
    names = [f"req-{number:032x}" for number in range(60)]
    for name in names:
        served_spool.ended(usage_entry(name))
        if name == names[30]:
            served_spool.turn_over()
    for name in names:
        assert find_ended(served_spool.folder, name) == usage_entry(name)
    assert find_ended(served_spool.folder, ID) is None
    assert find_ended(served_spool.folder, names[0][:-1]) is None, "only the whole id"


def test_no_more_is_searched_than_is_said(served_spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    served_spool.ended(usage_entry(ID))
    for number in range(20):
        served_spool.ended(usage_entry(f"req-{number:032x}"))
    assert find_ended(served_spool.folder, ID) is not None
    monkeypatch.setattr(spool_module, "MOST_SEARCHED_BYTES", 2000)
    assert find_ended(served_spool.folder, ID) is None
    assert find_ended(served_spool.folder, f"req-{19:032x}") is not None
    served_spool.turn_over()
    assert find_ended(served_spool.folder, f"req-{19:032x}") is not None


@pytest.fixture
def served_spool(tmp_path: Any) -> Any:
    made = Spool(tmp_path / "spool")
    yield made
    made.close()
