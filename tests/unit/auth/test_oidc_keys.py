"""Keys of a provider: new ones are learned, old ones forgotten, and a provider that is silent is no catastrophe."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from firstkit.auth.discovery import FRESH_S, GRACE_S, PATH, PATIENCE_S
from firstkit.auth.oidc import OpenIdProvider
from firstkit.errors import ProviderUnavailable, Unauthenticated
from unit.auth.loopback_issuer import LoopbackIssuer, loopback_issuer, provider_at, rsa
from waiting import until

PAUSE_S = 0.3


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
async def issuer() -> AsyncIterator[LoopbackIssuer]:
    async with loopback_issuer() as made:
        yield made


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def provider(issuer: LoopbackIssuer, clock: Clock) -> AsyncIterator[OpenIdProvider]:
    """One that has been reached, but its clock goes only as the test likes."""
    async with provider_at(issuer, clock=clock) as made:
        await made.look_up(issuer.token())
        clock.now_s += 10
        issuer.asked.clear()
        yield made


def asked(issuer: LoopbackIssuer) -> int:
    """How often it was asked for its keys."""
    return issuer.asked.count("/jwks")


async def test_it_is_asked_once_and_then_tokens_are_checked_here(issuer: LoopbackIssuer) -> None:
    async with provider_at(issuer) as provider:
        await asyncio.gather(*(provider.look_up(issuer.token(sub=f"s{number}")) for number in range(50)))
        assert issuer.asked == [PATH, "/jwks"]


async def test_a_new_key_is_learned_when_a_token_comes_that_it_signed(
    issuer: LoopbackIssuer, provider: OpenIdProvider
) -> None:
    issuer.keys = [rsa("two"), rsa("one")]
    assert (await provider.look_up(issuer.token())).subject == "a-1"
    assert (await provider.look_up(issuer.token(rsa("one")))).subject == "a-1"
    assert asked(issuer) == 1


async def test_an_old_key_is_forgotten_with_that(issuer: LoopbackIssuer, provider: OpenIdProvider) -> None:
    issuer.keys = [rsa("two")]
    await provider.look_up(issuer.token())
    with pytest.raises(Unauthenticated):
        await provider.look_up(issuer.token(rsa("one")))


async def test_a_withdrawn_key_is_forgotten_also_if_no_new_one_comes(
    issuer: LoopbackIssuer, provider: OpenIdProvider, clock: Clock
) -> None:
    issuer.keys = [rsa("two")]
    old = issuer.token(rsa("one"))
    clock.now_s += FRESH_S - 20
    assert (await provider.look_up(old)).subject == "a-1"
    clock.now_s += 20
    with pytest.raises(Unauthenticated):
        await provider.look_up(old)


async def test_the_same_id_for_another_key(issuer: LoopbackIssuer, provider: OpenIdProvider, clock: Clock) -> None:
    """No provider should do that; the old key is believed until the keys are old."""
    issuer.keys = [{**rsa("two").as_dict(private=False), "kid": "one"}]
    token = issuer.token(rsa("two"), header={"kid": "one"})
    with pytest.raises(Unauthenticated):
        await provider.look_up(token)
    clock.now_s += FRESH_S
    assert (await provider.look_up(token)).subject == "a-1"


async def test_bad_tokens_do_not_have_it_asked_each_time(issuer: LoopbackIssuer) -> None:
    async with provider_at(issuer, pause_s=PAUSE_S) as provider:
        await provider.look_up(issuer.token())
        bad = [issuer.token(rsa("thief"), header={"kid": f"k{number}"}) for number in range(200)]
        began = asyncio.get_running_loop().time()
        results = await asyncio.gather(*map(provider.look_up, bad), return_exceptions=True)
        took_s = asyncio.get_running_loop().time() - began
    assert all(isinstance(each, Unauthenticated) for each in results)
    assert asked(issuer) - 1 <= 1 + took_s / PAUSE_S


async def test_a_key_that_is_new_right_after_the_provider_was_asked(issuer: LoopbackIssuer) -> None:
    """Whoever comes with it waits for the pause; it is not refused."""
    async with provider_at(issuer, pause_s=PAUSE_S) as provider:
        await provider.look_up(issuer.token())
        issuer.keys = [rsa("two")]
        assert (await provider.look_up(issuer.token())).subject == "a-1"


@pytest.mark.parametrize("change", [{"exp": 1}, {"aud": "other"}, {"iss": "https://other.example.org"}, {"typ": "ID"}])
async def test_for_a_token_that_no_key_could_save_it_is_not_asked(
    issuer: LoopbackIssuer, provider: OpenIdProvider, change: dict[str, object]
) -> None:
    with pytest.raises(Unauthenticated):
        await provider.look_up(issuer.token(rsa("thief"), **change))
    assert issuer.asked == []


async def test_who_stops_waiting_does_not_end_the_wait_of_others(
    issuer: LoopbackIssuer, provider: OpenIdProvider
) -> None:
    issuer.keys = [rsa("two")]
    issuer.gate.clear()
    one, other = (asyncio.ensure_future(provider.look_up(issuer.token())) for _ in range(2))
    await until(lambda: issuer.asked, "it is asked")
    one.cancel()
    issuer.gate.set()
    assert (await other).subject == "a-1"
    assert one.cancelled() or isinstance(one.exception(), asyncio.CancelledError)


# -- silence -----------------------------------------------------------------------------------------------------------


async def test_tokens_are_good_while_the_provider_is_down(
    issuer: LoopbackIssuer, provider: OpenIdProvider, clock: Clock
) -> None:
    issuer.is_down = True
    token = issuer.token()
    clock.now_s += FRESH_S + GRACE_S - 20
    assert (await provider.look_up(token)).subject == "a-1"
    clock.now_s += 20
    with pytest.raises(ProviderUnavailable):
        await provider.look_up(token)
    issuer.is_down = False
    assert (await provider.look_up(token)).subject == "a-1"


async def test_nobody_can_say_who_signed_with_an_unknown_key_meanwhile(
    issuer: LoopbackIssuer, provider: OpenIdProvider
) -> None:
    issuer.is_down = True
    issuer.keys = [rsa("two")]
    with pytest.raises(ProviderUnavailable):
        await provider.look_up(issuer.token())
    issuer.is_down = False
    assert (await provider.look_up(issuer.token())).subject == "a-1"


async def test_a_provider_that_hangs_costs_a_moment(
    issuer: LoopbackIssuer, provider: OpenIdProvider, clock: Clock
) -> None:
    issuer.gate.clear()
    clock.now_s += FRESH_S
    began = asyncio.get_running_loop().time()
    assert (await provider.look_up(issuer.token())).subject == "a-1"
    assert asyncio.get_running_loop().time() - began < PATIENCE_S + 2


async def test_the_log_says_why_it_is_silent(issuer: LoopbackIssuer, caplog: pytest.LogCaptureFixture) -> None:
    issuer.url = "http://127.0.0.1:1"
    async with provider_at(issuer) as provider:
        with pytest.raises(ProviderUnavailable):
            await provider.look_up(issuer.token())
    assert "http://127.0.0.1:1 is silent: All connection attempts failed" in caplog.text


async def test_one_that_was_silent_a_moment_ago_is_left_alone(issuer: LoopbackIssuer, clock: Clock) -> None:
    issuer.is_down = True
    async with provider_at(issuer, clock=clock, pause_s=5.0) as provider:
        for _ in range(3):
            with pytest.raises(ProviderUnavailable):
                await provider.look_up(issuer.token())
        assert issuer.asked == [PATH]
        issuer.is_down = False
        clock.now_s += 5
        assert (await provider.look_up(issuer.token())).subject == "a-1"


@pytest.mark.parametrize(
    "metadata",
    [
        {"issuer": "https://idp.example.org"},
        {"issuer": None},
        {"jwks_uri": None},
        {"jwks_uri": "http://keys.example.org/jwks"},
        {"jwks_uri": "file:///etc/passwd"},
        {"jwks_uri": 7},
    ],
)
async def test_a_description_that_cannot_be_trusted(issuer: LoopbackIssuer, metadata: dict[str, object]) -> None:
    issuer.metadata = metadata
    async with provider_at(issuer) as provider:
        with pytest.raises(ProviderUnavailable):
            await provider.look_up(issuer.token())


@pytest.mark.parametrize(
    "answer", [(200, []), (200, {"keys": []}), (200, {"keys": 7}), (500, {}), (302, {}), (200, "x" * 2**21)]
)
async def test_keys_that_are_none(issuer: LoopbackIssuer, answer: tuple[int, object]) -> None:
    issuer.answers["/jwks"] = answer
    async with provider_at(issuer) as provider:
        with pytest.raises(ProviderUnavailable):
            await provider.look_up(issuer.token())


async def test_keys_that_are_none_do_not_replace_good_ones(
    issuer: LoopbackIssuer, provider: OpenIdProvider, clock: Clock
) -> None:
    issuer.answers["/jwks"] = (200, {"keys": []})
    clock.now_s += FRESH_S
    assert (await provider.look_up(issuer.token())).subject == "a-1"
