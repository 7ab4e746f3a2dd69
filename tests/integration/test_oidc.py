"""Tokens of a real OpenID provider: of both kinds, by the device flow, refreshed, and as its keys change."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from firstkit.auth.oidc import OpenIdProvider
from firstkit.config import Oidc
from firstkit.errors import LoginRefused, ProviderUnavailable, Unauthenticated
from integration.oidc_provider import SECRET, RealProvider, new_key, real_provider


@pytest.fixture(scope="module", params=["jwt", "opaque"])
def real(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealProvider]:
    with real_provider(tmp_path_factory.mktemp("oidc"), format=request.param) as provider:
        yield provider


@asynccontextmanager
async def at(real: RealProvider, **config: Any) -> AsyncIterator[OpenIdProvider]:
    """Our end of it, as it is for its kind of tokens."""
    secret = real.folder / "secret"
    secret.write_text(SECRET)
    secret.chmod(0o600)
    asks = {"introspection": True, "client_id": "first-gateway", "client_secret_file": str(secret)}
    settings = {"issuer": real.url, "audience": "first", "login_client_id": "first-cli", **asks, **config}
    made = OpenIdProvider(Oidc.model_validate(settings), pause_s=0.0)
    try:
        yield made
    finally:
        await made.close()


async def test_the_token_of_a_device(real: RealProvider) -> None:
    tokens = real.by_device("alice")
    assert (tokens["access_token"].count(".") == 2) == (real.format == "jwt")
    async with at(real, claims={"projects": "projects"}, groups=["first-users"]) as provider:
        assert provider.may_know(tokens["access_token"])
        vouched = await provider.look_up(tokens["access_token"])
    assert (vouched.issuer, vouched.subject, vouched.name) == (real.url, "alice", "alice")
    assert (vouched.email, vouched.domains) == ("alice@anl.gov", {"anl.gov"})
    assert (vouched.groups, vouched.projects) == ({"first-users", "physics"}, {"fusion"})
    assert vouched.good_for_s == pytest.approx(630, abs=20)


async def test_a_refreshed_token(real: RealProvider) -> None:
    tokens = real.by_device("bob")
    newer = real.refreshed(tokens["refresh_token"])
    async with at(real) as provider:
        for each in (tokens, newer):
            vouched = await provider.look_up(each["access_token"])
            assert (vouched.subject, vouched.email, vouched.domains) == ("bob", "bob@example.org", frozenset())
    assert newer["access_token"] != tokens["access_token"]


async def test_who_is_in_none_of_the_groups_does_not_come_in(real: RealProvider) -> None:
    token = real.by_device("eve")["access_token"]
    async with at(real, groups=["first-users"]) as provider:
        with pytest.raises(LoginRefused):
            await provider.look_up(token)
    async with at(real) as provider:
        assert (await provider.look_up(token)).subject == "eve"


async def test_other_tokens_of_the_same_login(real: RealProvider) -> None:
    """ID tokens and refresh tokens are of the same provider, for the same person, and open nothing."""
    tokens = real.by_device("alice")
    async with at(real) as provider, at(real, audience="first-cli") as naive:
        for name in ("id_token", "refresh_token"):
            for each in (provider, naive):
                with pytest.raises(Unauthenticated):
                    await each.look_up(tokens[name])


async def test_a_token_for_another_service(real: RealProvider) -> None:
    token = real.of_a_program()["access_token"]
    async with at(real) as provider:
        with pytest.raises(Unauthenticated, match="audience"):
            await provider.look_up(token)


async def test_truncated_tokens(real: RealProvider) -> None:
    token = real.by_device("alice")["access_token"]
    async with at(real) as provider:
        for bad in (token[:-1], token[:-10], token[1:], f"{token}x", token.swapcase()):
            with pytest.raises(Unauthenticated):
                await provider.look_up(bad)


async def test_a_revoked_token(real: RealProvider) -> None:
    """An opaque one is good no more at once; nobody can take back a JWT."""
    token = real.by_device("alice")["access_token"]
    async with at(real) as provider:
        assert (await provider.look_up(token)).subject == "alice"
        if real.format == "jwt":
            return
        real.revoke(token)
        with pytest.raises(Unauthenticated):
            await provider.look_up(token)


async def test_an_outage_and_the_return(real: RealProvider) -> None:
    token = real.by_device("alice")["access_token"]
    async with at(real) as provider:
        await provider.look_up(token)
        real.stop()
        if real.format == "jwt":
            assert (await provider.look_up(token)).subject == "alice"
        else:
            with pytest.raises(ProviderUnavailable):
                await provider.look_up(token)
        await asyncio.to_thread(real.start)
        assert (await provider.look_up(real.by_device("alice")["access_token"])).subject == "alice"


async def test_new_keys(tmp_path: Path) -> None:
    with real_provider(tmp_path) as real:
        async with at(real) as provider:
            old = real.by_device("alice")["access_token"]
            assert (await provider.look_up(old)).subject == "alice"
            real.stop()
            real.key = new_key("two")
            await asyncio.to_thread(real.start)
            assert (await provider.look_up(real.by_device("alice")["access_token"])).subject == "alice"
            with pytest.raises(Unauthenticated):
                await provider.look_up(old)


async def test_the_end_of_a_token(tmp_path: Path) -> None:
    with real_provider(tmp_path, life_s=2) as real:
        token = real.by_device("alice")["access_token"]
        async with at(real, leeway=0) as provider:
            vouched = await provider.look_up(token)
            assert 0 < vouched.good_for_s <= 2
            await asyncio.sleep(vouched.good_for_s)
            with pytest.raises(Unauthenticated, match="expired"):
                await provider.look_up(token)
