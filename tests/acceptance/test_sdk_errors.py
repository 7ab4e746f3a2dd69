"""Errors as the official packages know them, typed: before an answer, instead of it, and in the middle of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest

from acceptance.clients import Fakes, anthropic_client, async_anthropic_client, async_openai_client, openai_client
from faults.support import lab_of, piloted
from firstkit.routing.breaker import FAILURES
from firstkit.testing.background import Background
from lab import Lab, fake_engine, wait_for

ASK: dict[str, Any] = {"max_tokens": 1000, "messages": [{"role": "user", "content": "hi"}]}
NATIVE = ["chat", "responses", "messages"]


def external(url: str, *capabilities: str) -> list[dict[str, Any]]:
    return [{"cluster": "outside", "engine": {"kind": "external", "url": url, "capabilities": [*capabilities]}}]


# -- before an answer --------------------------------------------------------------------------------------------------


def test_a_key_that_is_none(fakes: Fakes) -> None:
    wrong = {"api_key": "wrong"}
    with openai_client(fakes.lab, **wrong) as client:
        with pytest.raises(openai.AuthenticationError) as refused:
            client.responses.create(model="passed", input="hi")
        assert refused.value.code == "invalid_api_key"
        with pytest.raises(openai.AuthenticationError):
            client.responses.retrieve("resp_1")
    with anthropic_client(fakes.lab, **wrong) as other:
        for call in (other.messages.create, other.messages.count_tokens):
            asked = ASK if call == other.messages.create else {"messages": ASK["messages"]}
            with pytest.raises(anthropic.AuthenticationError) as denied:
                call(model="passed", **asked)
            assert denied.value.type == "authentication_error"


def test_a_model_that_is_not_there(fakes: Fakes) -> None:
    with openai_client(fakes.lab) as client, pytest.raises(openai.NotFoundError) as missing:
        client.responses.create(model="unknown", input="hi")
    assert (missing.value.code, missing.value.type) == ("model_not_found", "not_found_error")
    with anthropic_client(fakes.lab) as other, pytest.raises(anthropic.NotFoundError) as absent:
        other.messages.create(model="unknown", **ASK)
    assert absent.value.type == "not_found_error"


@pytest.fixture
def limited(folder: Path) -> Iterator[Lab]:
    """One request a minute for each key."""
    with Background() as background:
        _, url = background.add("NativeEngine")
        with lab_of({"m": external(url, *NATIVE)}, limits={"requests_per_minute_per_key": 1}) as lab:
            yield lab


def test_too_many_requests(limited: Lab) -> None:
    with openai_client(limited) as client:
        client.responses.create(model="m", input="hi")
        with pytest.raises(openai.RateLimitError) as refused:
            client.responses.create(model="m", input="hi", stream=True)
        assert (refused.value.code, refused.value.type) == ("rate_limit_exceeded", "rate_limit_error")
        assert int(refused.value.response.headers["retry-after"]) >= 1
    with anthropic_client(limited, api_key=limited.make_key("second", ("inference",))) as other:
        other.messages.create(model="m", **ASK)
        with pytest.raises(anthropic.RateLimitError) as denied:
            other.messages.create(model="m", **ASK)
        assert denied.value.type == "rate_limit_error"


# -- instead of an answer ----------------------------------------------------------------------------------------------


@pytest.fixture
def flapping(folder: Path) -> Iterator[tuple[Lab, Path]]:
    """Models ``m`` and ``n`` at engines that refuse everything while a file is there."""
    down = folder / "down"
    down.touch()
    with Background() as background:
        models = {name: external(background.add("FlappingEngine", while_there=down)[1], "chat") for name in ("m", "n")}
        with lab_of(models) as lab:
            yield lab, down


def test_they_try_again_when_they_are_told_to(flapping: tuple[Lab, Path]) -> None:
    """Packages wait as long as a 503 says, and have their answer when the replica is well again."""
    lab, down = flapping
    with openai_client(lab) as client, anthropic_client(lab) as other:
        for _ in range(FAILURES):
            with pytest.raises(openai.InternalServerError) as failed:
                client.responses.create(model="m", input="hi")
            assert (failed.value.status_code, failed.value.code) == (502, "engine_failed")
            with pytest.raises(anthropic.InternalServerError) as broken:
                other.messages.create(model="n", **ASK)
            assert (broken.value.status_code, broken.value.type) == (502, "api_error")
        with pytest.raises(openai.APIStatusError) as unavailable:
            client.responses.create(model="m", input="hi")
        assert (unavailable.value.status_code, unavailable.value.code) == (503, "replicas_failing")
        with pytest.raises(anthropic.APIStatusError) as away:
            other.messages.create(model="n", **ASK)
        assert (away.value.status_code, away.value.type) == (503, "overloaded_error")
    down.unlink()
    with openai_client(lab, max_retries=5) as client, anthropic_client(lab, max_retries=5) as other:
        raw = client.responses.with_raw_response.create(model="m", input="hi")
        assert raw.retries_taken > 0
        assert raw.parse().output_text
        found = other.messages.with_raw_response.create(model="n", **ASK)
        assert found.parse().stop_reason == "end_turn"


# -- in the middle of an answer ----------------------------------------------------------------------------------------

DYING = {"passed": ("DyingNativeEngine", NATIVE), "translated": ("DyingEngine", ["chat"])}


@dataclass
class Dying:
    """Models ``passed`` and ``translated``, whose engines die after three tokens of an answer."""

    lab: Lab
    used: set[str] = field(default_factory=set)

    def wait_fresh(self, model: str) -> None:
        """Until a replica is there that has not died yet."""

        def fresh() -> list[str]:
            ready = [row["id"] for row in self.lab.replicas() if (row["model"], row["state"]) == (model, "READY")]
            return [each for each in ready if each not in self.used]

        self.used.update(wait_for("a fresh replica", fresh))
        self.lab.wait_live(model)


@pytest.fixture(scope="module")
def dying() -> Iterator[Dying]:
    models = {
        way: [piloted({**fake_engine(behaviour, after=3), "capabilities": capabilities})]
        for way, (behaviour, capabilities) in DYING.items()
    }
    with lab_of(models, keep_responses="10m") as lab:
        yield Dying(lab)


@pytest.mark.parametrize("way", DYING)
def test_an_engine_that_dies_in_the_middle_of_a_response(dying: Dying, way: str) -> None:
    dying.wait_fresh(way)
    names: list[str] = []
    with openai_client(dying.lab) as client:
        stream = client.responses.create(model=way, input="hi", stream=True)
        with pytest.raises(openai.APIError) as broken:
            names.extend(event.type for event in stream)
    assert broken.value.code in ("engine_failed", "replica_lost")
    assert not isinstance(broken.value, openai.APIConnectionError)
    assert names.count("response.output_text.delta") == 3
    assert "response.completed" not in names


@pytest.mark.parametrize("way", DYING)
def test_an_engine_that_dies_in_the_middle_of_a_message(dying: Dying, way: str) -> None:
    dying.wait_fresh(way)
    names: list[str] = []
    with anthropic_client(dying.lab) as client:
        stream = client.messages.create(model=way, **ASK, stream=True)
        with pytest.raises(anthropic.APIStatusError) as broken:
            names.extend(event.type for event in stream)
    assert broken.value.type == "api_error"
    assert names.count("content_block_delta") == 3
    assert "message_stop" not in names


VARIANTS = ("half-event", "no-done", "error-event", "half-utf8")


@pytest.fixture(scope="module")
def garbage() -> Iterator[Lab]:
    """Models whose streams go wrong in the way that their names say."""
    with Background() as background:
        urls = {variant: background.add("GarbageEngine", variant=variant)[1] for variant in VARIANTS}
        with lab_of({variant: external(url, "chat") for variant, url in urls.items()}) as lab:
            yield lab


@pytest.mark.parametrize("variant", VARIANTS)
async def test_streams_that_go_wrong(garbage: Lab, variant: str) -> None:
    async with async_openai_client(garbage) as client:
        with pytest.raises(openai.APIError) as broken:
            async with client.responses.stream(model=variant, input="hi") as stream:
                await stream.until_done()
        assert broken.value.code == "engine_failed"
    async with async_anthropic_client(garbage) as other:
        with pytest.raises(anthropic.APIStatusError) as wrong:
            async with other.messages.stream(model=variant, **ASK) as told:
                await told.until_done()
        assert wrong.value.type == "api_error"
