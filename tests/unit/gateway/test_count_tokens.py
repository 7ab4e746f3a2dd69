"""Counting the tokens of a prompt: an engine does it where one can, else the gateway estimates, and says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from firstkit.config import parse_config
from firstkit.gateway.reach import Reach
from firstkit.states import ReplicaState
from unit.gateway.support import CONFIG, Answer, Served, limits_of, request, route, serving
from unit.gateway.upstreams import ByHand, settle

PATH = "/v1/messages/count_tokens"
BODY: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "x" * 4000}]}
COUNTS = frozenset({"chat", "messages", "count_tokens"})
CHATS = frozenset({"chat"})


@pytest.fixture
async def counting(folder: Path) -> Served:
    """A gateway whose one replica, played by hand, chats and does not count; the model is on two clusters."""
    served = serving(folder, limits=limits_of(concurrency_per_key=100))
    config = f"server: {{state_dir: /x}}\n{CONFIG}".replace("[completions]", "[chat, messages, count_tokens]")
    served.gateway.reach = Reach(parse_config(config))
    served.gateway.table.pools["m"].routes[0].capabilities = CHATS
    return served


async def count(served: Served, body: Any = BODY, *lines: str, path: str = PATH) -> Answer:
    visit = served.connect()
    visit.say(request(*lines, path=path, body=body))
    return await visit.answer()


def is_estimate(answer: Answer) -> bool:
    assert answer.status == 200
    assert answer.json.keys() == {"input_tokens"}
    return answer.headers.get(b"x-first-estimated") == b"true"


def add(served: Served, cluster: str, state: ReplicaState = ReplicaState.READY) -> ByHand:
    """One more replica, which counts."""
    upstream = ByHand()
    found = route(f"rep-{cluster}", 4, state, cluster=cluster, upstream=upstream)
    found.capabilities = COUNTS
    served.gateway.table.add(found)
    return upstream


async def test_an_engine_that_only_chats_is_not_asked(counting: Served) -> None:
    answer = await count(counting)
    assert is_estimate(answer)
    assert 1000 <= answer.json["input_tokens"] <= 1010
    assert counting.replica.opened == []
    assert b"x-first-cluster" not in answer.headers
    assert len(counting.gateway.relay.spool) == 0, "what uses no tokens has no line of usage"
    assert counting.body_bytes == 0
    assert counting.under_way == 0


async def test_a_cold_model_is_not_woken(counting: Served) -> None:
    counting.gateway.table.remove(counting.gateway.table.pools["m"].routes[0])
    add(counting, "outside", ReplicaState.STARTING)
    assert is_estimate(await count(counting))
    assert counting.gateway.room.waiting("m") == 0


async def test_an_engine_that_counts_is_asked(counting: Served) -> None:
    """It, and none of the others, of whatever cluster they are."""
    able = add(counting, "outside")
    for number in range(4):
        visit = counting.connect()
        visit.say(request(path=PATH, body=BODY))
        await settle()
        able.opened[number].answer(b'{"input_tokens":7}')
        answer = await visit.answer()
        assert not is_estimate(answer)
        assert (answer.json["input_tokens"], answer.headers[b"x-first-cluster"]) == (7, b"outside")
    assert able.last.request.path == PATH
    assert counting.replica.opened == []


async def test_only_clusters_that_may_be_asked_are(counting: Served) -> None:
    able = add(counting, "outside")
    assert is_estimate(await count(counting, BODY, "x-first-cluster: here"))
    assert able.opened == []


async def test_a_cluster_on_which_not_all_count_is_not_asked(counting: Served) -> None:
    able = add(counting, "here")
    assert is_estimate(await count(counting))
    assert able.opened == []


async def test_one_replica_that_counts_is_asked_as_for_anything(served: Served) -> None:
    served.gateway.table.pools["m"].routes[0].capabilities = COUNTS
    visit = served.connect()
    visit.say(request(path=PATH, body=BODY))
    served.replica.last.answer(b'{"input_tokens":7}')
    assert not is_estimate(await visit.answer())
    assert set(served.gateway.room._uses) == {("m", None), ("m", frozenset({"here"})), ("org/embedder", None)}


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"model": "m"}, 400),
        ({"model": "m", "messages": [1]}, 400),
        ({**BODY, "mcp_servers": [{"url": "http://x"}]}, 400),
        ({**BODY, "tools": [{"type": "web_search_20250305", "name": "w"}]}, 400),
        ({**BODY, "model": "other"}, 404),
        ({**BODY, "model": "org/embedder"}, 400),
    ],
)
async def test_wrong_requests_are_refused_as_others_are(counting: Served, body: Any, status: int) -> None:
    answer = await count(counting, body)
    assert answer.status == status
    assert answer.json["type"] == "error"
    assert b"x-first-estimated" not in answer.headers


async def test_the_connection_goes_on(counting: Served) -> None:
    visit = counting.connect()
    visit.say(request(path=PATH, body=BODY))
    await visit.answered(1)
    visit.say(request(path=PATH, body=BODY))
    first, second = await visit.answered(2)
    assert first.json == second.json
