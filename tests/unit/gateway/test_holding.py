"""What a request holds of limits and budgets: taken before work is given out, given back once, however it ends."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from firstkit.accounting.estimate import ADDED_TOKENS, FIRST_MEAN_TOKENS
from firstkit.accounting.periods import Period
from firstkit.accounting.tallies import Tally
from firstkit.accounting.terms import Scope, Terms
from firstkit.auth.permissions import Membership
from firstkit.clock import now
from firstkit.config import Limits as Configured
from firstkit.config import ModelLimits
from firstkit.gateway import holding
from firstkit.links.messages import Outcome, Usage
from firstkit.metrics import REGISTRY
from firstkit.routing.admission import Claim
from unit.gateway.endings import ENDINGS, STREAM, fill, one
from unit.gateway.support import (
    CHAT_BODY,
    IDENTITY,
    Served,
    Visit,
    limits_of,
    request,
    route,
    serving,
)
from unit.gateway.upstreams import CHUNK, ByHand, settle

AT = 1000.0
"""When all of it happens, monotonic seconds."""
AMPLE = 1_000_000
EVERYTHING = dict.fromkeys(Configured.model_fields, AMPLE)
OF_MODEL = dict.fromkeys(ModelLimits.model_fields, AMPLE)
SIZE = len(json.dumps(CHAT_BODY))
PROMPT = -(-len(json.dumps(CHAT_BODY["messages"])) // 3)


@pytest.fixture(autouse=True)
def stopped_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holding, "monotonic", lambda: AT)


def limited(folder: Path, models: dict[str, dict[str, int]] | None = None, /, **limits: int) -> Served:
    return serving(folder, limits=limits_of(models, **limits))


def tokens_counted(served: Served) -> set[int]:
    """The tokens that count for each of those who are limited: by key, user, project and model."""
    limits = served.port.limits
    kinds = [*limits._kinds, *(kind for kinds in limits._of_models.values() for kind in kinds)]
    return {
        round(max(0.0, subject.tokens_due - AT) / kind.token_step_s)
        for kind in kinds
        for subject in kind.subjects.values()
        if kind.token_step_s
    }


def under_way(served: Served) -> set[int]:
    limits = served.port.limits
    kinds = [*limits._kinds, *(kind for kinds in limits._of_models.values() for kind in kinds)]
    return {subject.running for kind in kinds for subject in kind.subjects.values()}


def budget(served: Served, tokens: int, *, is_hard: bool = True, used: int = 0) -> Tally:
    """Have the project a budget; returns what is used and reserved of it."""
    books, at = served.gateway.budgets._books, now()
    scope = Scope("tokens", Period.TOTAL, project_id=IDENTITY.project_id)
    deque(books.install([Terms(scope, tokens, is_hard, 0.8, project="sun")], at), maxlen=0)
    for _, page in books.incomplete("tokens", at):
        page.is_complete = True
    served.gateway.relay.spool.on_ended = served.gateway.budgets._count
    [book] = books.of("tokens")
    tally = book.pages[0].of("")
    tally.used = used
    return tally


def asked(served: Served, body: dict[str, Any], *lines: str, path: str = "/v1/chat/completions") -> Visit:
    visit = served.connect()
    visit.say(request(*lines, path=path, body=body))
    return visit


def sent(replica: ByHand) -> dict[str, Any]:
    """The last body that an engine got."""
    return dict(json.loads(replica.last.body))


# -- every ending ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ENDINGS, ids=lambda ending: ending.__name__)
async def test_whatever_the_end_what_was_used_is_what_counts(folder: Path, ending: Callable[[Served], None]) -> None:
    """By every limit and budget: no more, no less, and nothing is held."""
    served = limited(folder, {"m": OF_MODEL}, **EVERYTHING)
    tally = budget(served, AMPLE)
    ending(served)
    await settle()
    used = sum(line["prompt_tokens"] + line["completion_tokens"] for line in served.lines())
    assert (tally.used, tally.reserved) == (used, 0)
    assert under_way(served) <= {0}
    assert tokens_counted(served) <= ({used} if used else {0})


async def test_a_task_that_is_cancelled_holds_nothing(folder: Path) -> None:
    served = limited(folder, {"m": OF_MODEL}, **EVERYTHING)
    tally = budget(served, AMPLE)
    fill(served)
    one(served)
    await settle()
    assert (under_way(served), tally.reserved > 0) == ({1}, True)
    for task in list(served.gateway.relay.waiting):
        task.cancel()
    await settle()
    assert (under_way(served), tally.reserved, tokens_counted(served)) == ({0}, 0, {0})


async def test_what_is_tried_at_another_replica_is_held_until_that_has_ended(folder: Path) -> None:
    served = limited(folder, {"m": OF_MODEL}, **EVERYTHING)
    tally = budget(served, AMPLE)
    other = ByHand()
    served.gateway.table.add(route("rep-2", 8, upstream=other))
    one(served, STREAM)
    first, second = (served.replica, other) if served.replica.opened else (other, served.replica)
    held = tally.reserved
    assert held > 0
    first.last.end(Outcome.LOST, usage=None)
    assert (tally.reserved, under_way(served)) == (held, {1})
    second.last.stream(CHUNK)
    second.last.complete()
    assert (tally.reserved, tally.used, under_way(served), tokens_counted(served)) == (0, 5, {0}, {5})


async def test_a_fault_of_ours_holds_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fault(*_: object) -> None:
        raise ValueError

    served = limited(folder, {"m": OF_MODEL}, **EVERYTHING)
    tally = budget(served, AMPLE)
    for part, name in (
        (served.gateway.relay, "serve"),
        (served.gateway.room, "take"),
        (served.gateway.relay.spool, "begin"),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(part, name, fault)
            assert (await one(served).answer()).error["code"] == "internal_error"
        assert (tally.reserved, under_way(served), tokens_counted(served)) == (0, {0}, {0})
    [replica] = served.gateway.table.routes()
    assert replica.in_flight == 0
    fill(served)
    visit = one(served)
    await settle()
    monkeypatch.setattr(served.gateway.relay.spool, "begin", fault)
    replica.in_flight = 0
    served.gateway.table.pools["m"].refresh()
    served.gateway.room.pump("m")
    assert (await visit.answer()).error["code"] == "internal_error"
    assert (tally.reserved, under_way(served), replica.in_flight) == (0, {0}, 0)


async def test_a_count_that_we_make_ourselves_uses_none(folder: Path) -> None:
    served = limited(folder, {"m": {"requests_per_minute": 2, "tokens_per_minute": 5, "concurrency": 1}})
    served.gateway.table.pools["m"].routes[0].capabilities = frozenset({"chat"})
    body = {"model": "m", "messages": [{"role": "user", "content": "x" * 900}]}
    for status in (200, 200, 429):
        answer = await asked(served, body, path="/v1/messages/count_tokens").answer()
        assert answer.status == status
    assert served.replica.opened == []
    assert (under_way(served), tokens_counted(served)) == ({0}, {0})


# -- limits ------------------------------------------------------------------------------------------------------------


async def test_tokens_are_charged_in_advance_and_put_right(folder: Path) -> None:
    served = limited(folder, tokens_per_minute_per_user=1000)
    visit = asked(served, {**CHAT_BODY, "max_tokens": 600})
    assert tokens_counted(served) == {PROMPT + 600}
    refused = await asked(served, {**CHAT_BODY, "max_tokens": 600}).answer()
    assert (refused.status, refused.error["code"]) == (429, "rate_limit_exceeded")
    assert refused.error["message"] == "This user may have 1000 tokens a minute."
    assert refused.error["limit"] == "limits.tokens_per_minute_per_user"
    assert 1 <= int(refused.headers[b"retry-after"]) <= 20
    assert int(refused.headers[b"x-ratelimit-remaining-tokens"]) == 1000 - PROMPT - 600
    served.replica.last.answer()
    answer = await visit.answer()
    assert answer.headers[b"x-ratelimit-limit-tokens"] == b"1000"
    assert int(answer.headers[b"x-ratelimit-remaining-tokens"]) == 1000 - PROMPT - 600
    assert tokens_counted(served) == {5}
    assert len(served.replica.opened) == 1


async def test_choices_are_charged_each(folder: Path) -> None:
    served = limited(folder, tokens_per_minute_per_user=1000)
    answer = await asked(served, {**CHAT_BODY, "max_tokens": 400, "n": 3}).answer()
    assert (answer.status, answer.error["code"]) == (400, "over_token_limit")
    assert b"retry-after" not in answer.headers
    assert "1200 for its answer" in answer.error["message"]
    assert answer.headers[b"x-ratelimit-remaining-tokens"] == b"1000"
    asked(served, {**CHAT_BODY, "max_tokens": 300, "n": 3})
    assert tokens_counted(served) == {PROMPT + 900}


async def test_a_model_is_limited_when_it_is_known_which(folder: Path) -> None:
    served = limited(folder, {"m": {"requests_per_minute": 1}}, requests_per_minute_per_key=9)
    for body, code in ((b"{", "invalid_json"), ({**CHAT_BODY, "model": "nope"}, "model_not_found")):
        answer = await one(served, body).answer()
        assert answer.error["code"] == code
    one(served, {**CHAT_BODY, "model": "alias"})
    refused = await one(served).answer()
    assert refused.error["message"] == "The model 'm' may have 1 requests a minute."
    assert refused.headers[b"x-ratelimit-remaining-requests"] == b"0"
    assert refused.headers[b"x-ratelimit-limit-requests"] == b"1"
    embed = request(path="/v1/embeddings", body={"model": "org/embedder", "input": "x"})
    visit = served.connect()
    visit.say(embed)
    await settle()
    assert visit.answers == [], "another model is another matter"


async def test_who_waits_counts_as_under_way(folder: Path) -> None:
    served = limited(folder, {"m": {"concurrency_per_user": 1}})
    fill(served)
    first = one(served)
    assert (await one(served).answer()).error["message"] == "This user may have 1 requests at a time of the model 'm'."
    first.transport.break_off()
    await settle()
    one(served)
    assert served.gateway.room.waiting("m") == 1


# -- budgets -----------------------------------------------------------------------------------------------------------


async def test_in_a_budget_with_a_hard_stop_the_engine_may_not_use_more_than_is_reserved(folder: Path) -> None:
    served = serving(folder)
    tally = budget(served, 10_000)
    asked(served, {**CHAT_BODY, "max_tokens": 100})
    assert sent(served.replica)["max_tokens"] == 100
    size = SIZE + len(', "max_tokens": 100')
    assert tally.reserved == size + ADDED_TOKENS + 100
    left = 10_000 - tally.reserved
    asked(served, CHAT_BODY)
    most = sent(served.replica)["max_tokens"]
    assert most == 8192, "the model's default"
    asked(served, CHAT_BODY)
    assert sent(served.replica)["max_tokens"] == left - most - 2 * (SIZE + ADDED_TOKENS)
    assert tally.reserved == 10_000, "all that is left"
    refused = await asked(served, CHAT_BODY).answer()
    assert (refused.status, refused.error["type"], refused.error["code"]) == (
        429, "insufficient_quota", "insufficient_quota",
    )  # fmt: skip
    assert refused.headers[b"x-should-retry"] == b"false"
    assert "project 'sun'" in refused.error["message"]
    assert len(served.replica.opened) == 3


async def test_of_what_is_left_each_choice_may_have_its_part(folder: Path) -> None:
    served = serving(folder)
    budget(served, 1000)
    asked(served, {**CHAT_BODY, "n": 3})
    size = SIZE + len(', "n": 3')
    assert sent(served.replica)["max_tokens"] == (1000 - size - ADDED_TOKENS) // 3


async def test_many_at_once_do_not_overrun_it(folder: Path) -> None:
    served, number = serving(folder, most=50), 50
    tally = budget(served, 3000)
    for _ in range(number):
        asked(served, {**CHAT_BODY, "max_tokens": 200})
    given_out = len(served.replica.opened)
    assert 0 < given_out < number
    assert tally.reserved <= 3000
    for exchange in served.replica.opened:
        exchange.head()
        exchange.data(b"x" * 200)
        exchange.end(Outcome.COMPLETE, usage=Usage(SIZE, json.loads(exchange.body)["max_tokens"]))
    assert tally.reserved == 0
    assert tally.used <= 3000


async def test_soft_budgets_only_warn(folder: Path) -> None:
    served = serving(folder)
    tally = budget(served, 100, is_hard=False, used=90)
    visit = asked(served, CHAT_BODY)
    assert "max_tokens" not in sent(served.replica)
    assert tally.reserved == PROMPT + 8192
    served.replica.last.answer()
    warning = (await visit.answer()).headers[b"x-first-budget-warning"].decode()
    assert "project 'sun'" in warning
    assert warning.isprintable()


async def test_without_budgets_nothing_is_said_and_nothing_is_changed(served: Served) -> None:
    visit = asked(served, CHAT_BODY)
    assert "max_tokens" not in sent(served.replica)
    served.replica.last.answer()
    assert not [name for name in (await visit.answer()).headers if name.startswith((b"x-first-budget", b"x-rate"))]


async def test_a_refused_budget_gives_back_what_limits_had_charged(folder: Path) -> None:
    served = limited(folder, {"m": OF_MODEL}, **EVERYTHING)
    tally = budget(served, 10)
    assert (await one(served).answer()).error["code"] == "insufficient_quota"
    assert (tally.reserved, under_way(served), tokens_counted(served)) == (0, {0}, {0})
    [entry] = served.gateway.audit._kinds.values()
    assert (entry.actor, entry.action, entry.subject) == ("user", "denied", "POST /v1/chat/completions")
    assert entry.details["code"] == "insufficient_quota"


# -- in whose name, and for how much -----------------------------------------------------------------------------------

MOON = replace(
    IDENTITY, project_name="sun", memberships=(Membership("p", "sun"), Membership("p-moon", "moon")), project_id="p"
)


def claims(served: Served, monkeypatch: pytest.MonkeyPatch) -> list[Claim]:
    """Those with which routes are taken, from now on."""
    found: list[Claim] = []
    take = served.gateway.room.take

    def noting(model: str, wish: Any, claim: Claim) -> Any:
        found.append(claim)
        return take(model, wish, claim)

    monkeypatch.setattr(served.gateway.room, "take", noting)
    return found


async def test_a_claim_is_for_what_is_probably_needed(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    found = claims(served, monkeypatch)
    for most in (10, 5000):
        asked(served, {**CHAT_BODY, "max_tokens": most})
    assert found == [Claim("p", "u", PROMPT + 10), Claim("p", "u", PROMPT + int(FIRST_MEAN_TOKENS))]
    for exchange in served.replica.opened:
        exchange.head()
        exchange.data(b"x" * 5000)
        exchange.end(Outcome.COMPLETE, usage=Usage(10, 5000))
    asked(served, {**CHAT_BODY, "max_tokens": 5000})
    assert found[2].tokens > found[1].tokens, "the model has been seen to answer at length"


@pytest.mark.parametrize(("line", "is_batch"), [("batch", True), ("interactive", False), (None, False)])
async def test_a_request_may_say_that_nobody_sits_and_waits_for_it(
    served: Served, monkeypatch: pytest.MonkeyPatch, line: str | None, is_batch: bool
) -> None:
    found = claims(served, monkeypatch)
    asked(served, CHAT_BODY, *([f"x-first-priority: {line}"] if line else []))
    assert [claim.is_batch for claim in found] == [is_batch]


@pytest.mark.parametrize("line", ["high", "Batch", ""])
async def test_other_priorities_there_are_none(served: Served, line: str) -> None:
    answer = await asked(served, CHAT_BODY, f"x-first-priority: {line}").answer()
    assert (answer.status, answer.error["param"]) == (400, "x-first-priority")
    assert "'interactive' or 'batch'" in answer.error["message"]


async def test_a_request_is_charged_to_the_project_that_it_names(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served = limited(folder, requests_per_minute_per_project=2)
    served.keys.identities["key"] = MOON
    found = claims(served, monkeypatch)
    visit = served.connect()
    for line in ([], ["x-first-project: moon"], ["x-first-project: moon"]):
        visit.say(request(*line))
        served.replica.last.answer()
    assert [claim.project for claim in found] == ["p", "p-moon", "p-moon"]
    assert [line["project_id"] for line in served.lines()] == ["p", "p-moon", "p-moon"]
    visit.say(request("x-first-project: moon"))
    refused = (await visit.answered(4))[3]
    assert refused.error["message"] == "This project may have 2 requests a minute."


@pytest.mark.parametrize("key", ["key", "slow"])
async def test_to_no_other(folder: Path, key: str) -> None:
    served = serving(folder)
    served.keys.identities["key"] = MOON
    served.keys.gate.set()
    for lines, status, code in (
        (["x-first-project: mars"], 404, "project_not_found"),
        (["x-first-project: p-moon"], 404, "project_not_found"),
        (["x-first-project: sun", "x-first-project: moon"], 400, "invalid_request"),
    ):
        visit = served.connect()
        visit.say(request(*lines, key=key))
        answer = await visit.answer()
        assert (answer.status, answer.error["code"]) == (status, code)
    assert served.replica.opened == []


async def test_who_has_no_project_yet_is_told_to_name_one(served: Served) -> None:
    homeless = replace(MOON, project_id="", project_name="")
    for identity, status, code in (
        (homeless, 400, "project_required"),
        (replace(homeless, memberships=()), 403, "no_project"),
    ):
        served.keys.identities["key"] = identity
        answer = await asked(served, CHAT_BODY).answer()
        assert (answer.status, answer.error["code"]) == (status, code)
    served.keys.identities["key"] = homeless
    visit = asked(served, CHAT_BODY, "x-first-project: moon")
    served.replica.last.answer()
    assert (await visit.answer()).status == 200


async def test_a_membership_that_ends_is_no_longer_remembered(served: Served) -> None:
    served.keys.identities["key"] = MOON
    visit = served.connect()
    for _ in range(2):
        visit.say(request("x-first-project: moon"))
        served.replica.last.answer()
    served.keys.identities["key"] = replace(MOON, memberships=())
    visit.say(request("x-first-project: moon"))
    answers = await visit.answered(3)
    assert [answer.status for answer in answers] == [200, 200, 404]


async def test_nothing_in_a_body_raises_a_right(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served = limited(folder, {"m": OF_MODEL}, **EVERYTHING)
    tally = budget(served, AMPLE)
    served.keys.identities["key"] = MOON
    found = claims(served, monkeypatch)
    said = {
        "user": "root", "user_id": "root", "project": "moon", "project_id": "p-moon", "key_prefix": "other",
        "scopes": ["admin"], "roles": ["operator"], "x-first-project": "moon", "x_first_project": "moon",
        "x-first-priority": "interactive", "is_batch": False, "metadata": {"project": "moon", "user": "root"},
        "groups": ["all"], "weight": 99, "share": 99, "tokens": 0, "max_output_tokens": 1, "n_predict": -1,
    }  # fmt: skip
    visit = asked(served, {**CHAT_BODY, **said}, "x-first-priority: batch")
    assert [(claim.project, claim.user, claim.is_batch) for claim in found] == [("p", "u", True)]
    assert sent(served.replica)["max_tokens"] == 8192
    assert tally.reserved > 8192
    served.replica.last.answer()
    assert (await visit.answer()).status == 200
    [line] = served.lines()
    assert (line["user_id"], line["project_id"], line["key_prefix"]) == ("u", "p", "prefix")


# -- what is seen of it ------------------------------------------------------------------------------------------------


async def test_how_far_off_estimates_are_is_a_metric(served: Served) -> None:
    def ratios(end: str) -> float:
        return REGISTRY.get_sample_value(f"first_estimate_error_ratio_{end}", {"model": "m"}) or 0.0

    before = ratios("count"), ratios("sum")
    for outcome, usage in (
        (Outcome.COMPLETE, Usage(10, 30)),
        (Outcome.COMPLETE, Usage(10, 30, estimated=True)),
        (Outcome.FAILED, Usage(10, 30)),
    ):
        asked(served, {**CHAT_BODY, "max_tokens": 100})
        served.replica.last.head()
        served.replica.last.data(b"x" * 30)
        served.replica.last.end(outcome, usage=usage)
    assert ratios("count") == before[0] + 1, "of those that ended well, by the count of the engine"
    assert ratios("sum") == pytest.approx(before[1] + (PROMPT + 100) / 40)
