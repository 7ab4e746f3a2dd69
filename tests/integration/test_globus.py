"""Logins by Globus with the real SDK, against a stand-in that checks what Globus checks."""

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

import globus_sdk
import httpx
import pytest
from globus_sdk.scopes import GroupsScopes

from firstkit.auth import globus as globus_module
from firstkit.auth import globus_calls
from firstkit.auth.authority import Vouched
from firstkit.auth.globus import LIMIT_S, MOST_UNDER_WAY, THREADS, Globus
from firstkit.config import Globus as Settings
from firstkit.errors import ApiError, LoginRefused, ProviderUnavailable, Unauthenticated
from firstkit.testing.globus_cloud import CODE_PAGE, GlobusCloud
from firstkit.testing.globus_records import VIEW_GROUPS, Session, recent
from waiting import until

LAB, UNIVERSITY = str(uuid4()), str(uuid4())
CALLBACK = "https://first.example.org/auth/callback"


class Setting:
    """A Globus with a service, its native client and Ada, who is at a lab and, linked to that, at a university."""

    def __init__(self, cloud: GlobusCloud, folder: Path) -> None:
        self.cloud = cloud
        self.folder = folder
        self.service = cloud.add_service(CALLBACK)
        self.native = cloud.add_native()
        self.ada = cloud.add_identity("ada@lab.gov", LAB)
        self.ada_at_university = cloud.add_identity("al@uni.edu", UNIVERSITY, linked_to=self.ada)
        self.made: list[Globus] = []

    @property
    def secret(self) -> str:
        assert self.service.secret is not None
        return self.service.secret

    def globus(self, *, secret: str | None = None, wants_groups: bool = False, **rules: Any) -> Globus:
        path = self.folder / f"secret-{len(self.made)}"
        path.write_text(f"{secret or self.secret}\n")
        path.chmod(0o600)
        found = {"client_id": self.service.id, "client_secret_file": str(path), **rules}
        self.made.append(Globus(Settings.model_validate(found), wants_groups=wants_groups))
        return self.made[-1]

    def token(self, session: Session | None = None, **options: Any) -> str:
        """A token for the service, issued to its native client."""
        session = session or self.cloud.log_in(self.ada)
        return self.cloud.issue(session, self.service.scope, client=self.native, **options).text

    async def come(self, token: str, **rules: Any) -> Vouched:
        return await self.globus(**rules).look_up(token)


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch) -> Iterator[GlobusCloud]:
    with GlobusCloud() as made:
        for name, value in made.environ.items():
            monkeypatch.setenv(name, value)
        yield made


@pytest.fixture
async def at(cloud: GlobusCloud, folder: Path) -> AsyncIterator[Setting]:
    made = Setting(cloud, folder)
    yield made
    for globus in made.made:
        await globus.close()
    await until(lambda: not threads(), "the threads to end")


async def error(globus: Globus, token: str) -> ApiError:
    with pytest.raises(ApiError) as raised:
        await globus.look_up(token)
    return raised.value


# -- who comes in ------------------------------------------------------------------------------------------------------


async def test_a_login_without_rules(at: Setting) -> None:
    vouched = await at.come(at.token())
    assert (vouched.issuer, vouched.subject, vouched.name) == ("https://auth.globus.org", at.ada.id, "ada@lab.gov")
    assert (vouched.email, vouched.domains, vouched.groups) == ("ada@lab.gov", {"lab.gov"}, frozenset())
    assert 48 * 3600 - 60 < vouched.good_for_s <= 48 * 3600
    assert at.cloud.calls == {"introspect": 1}


async def test_a_login_by_every_rule(at: Setting) -> None:
    group, policy = at.cloud.add_group("first-users"), str(uuid4())
    at.cloud.join(at.ada, group)
    at.cloud.policies[policy] = recent(3600)
    providers = [{"id": LAB, "groups": [group]}]
    vouched = await at.come(at.token(), policies=[policy], groups=[group], identity_providers=providers)
    assert (vouched.name, vouched.groups) == ("ada@lab.gov", {group})
    assert at.cloud.calls == {"introspect": 1, "token": 1, "groups": 1}


async def test_a_provider_of_which_an_identity_is_merely_linked_admits_nobody(at: Setting) -> None:
    globus = at.globus(identity_providers=[{"id": UNIVERSITY}])
    refused = await error(globus, at.token())
    assert isinstance(refused, LoginRefused)
    assert "al@uni.edu" in refused.message
    both = at.cloud.log_in(at.ada, at.ada_at_university)
    vouched = await globus.look_up(at.token(both))
    assert (vouched.subject, vouched.name, vouched.domains) == (at.ada.id, "al@uni.edu", {"lab.gov", "uni.edu"})


async def test_a_name_at_an_allowed_domain_is_not_an_identity_of_the_provider(at: Setting) -> None:
    eve = at.cloud.add_identity("eve@lab.gov", str(uuid4()))
    refused = await error(at.globus(identity_providers=[{"id": LAB}]), at.token(at.cloud.log_in(eve)))
    assert isinstance(refused, LoginRefused)


async def test_a_policy_that_is_met_no_longer(at: Setting) -> None:
    policy = str(uuid4())
    at.cloud.policies[policy] = recent(3600)
    globus = at.globus(policies=[policy])
    assert (await globus.look_up(at.token())).name == "ada@lab.gov"
    token = at.token(at.cloud.log_in(at.ada, ago_s=3601))
    refused = await error(globus, token)
    assert isinstance(refused, LoginRefused)
    assert policy in refused.message
    assert "log in again" in refused.message
    at.cloud.policies[policy] = lambda _: True
    assert (await globus.look_up(token)).name == "ada@lab.gov"


async def test_every_policy_has_to_be_met_and_one_that_globus_does_not_know_is_not(at: Setting) -> None:
    met, unmet, unknown = (str(uuid4()) for _ in range(3))
    at.cloud.policies.update({met: lambda _: True, unmet: lambda _: False})
    for policies in ([met, unmet], [met, unknown]):
        assert isinstance(await error(at.globus(policies=policies), at.token()), LoginRefused)
    assert (await at.come(at.token(), policies=[met])).name == "ada@lab.gov"


@pytest.mark.parametrize("status", ["left", "invited", "pending", "rejected", "removed"])
async def test_a_group_counts_only_for_active_members(at: Setting, status: str) -> None:
    group = at.cloud.add_group("first-users")
    globus, token = at.globus(groups=[group]), at.token()
    at.cloud.join(at.ada, group)
    assert (await globus.look_up(token)).groups == {group}
    at.cloud.join(at.ada, group, status)
    refused = await error(globus, token)
    assert isinstance(refused, LoginRefused)
    assert "none of the Globus groups" in refused.message


async def test_a_group_of_a_linked_identity_counts(at: Setting) -> None:
    group = at.cloud.add_group("first-users")
    at.cloud.join(at.ada_at_university, group)
    assert (await at.come(at.token(), groups=[group])).groups == {group}


async def test_groups_are_asked_for_where_something_else_needs_them(at: Setting) -> None:
    group = at.cloud.add_group("climate")
    at.cloud.join(at.ada, group)
    assert (await at.come(at.token())).groups == frozenset()
    assert (await at.come(at.token(), wants_groups=True)).groups == {group}
    assert at.cloud.calls == {"introspect": 2, "token": 1, "groups": 1}


async def test_nobody_s_groups_are_asked_for_whom_other_rules_refuse(at: Setting) -> None:
    globus = at.globus(wants_groups=True, identity_providers=[{"id": UNIVERSITY}])
    assert isinstance(await error(globus, at.token()), LoginRefused)
    assert at.cloud.calls == {"introspect": 1}


async def test_a_service_account(at: Setting) -> None:
    robot = at.cloud.add_service()
    client = globus_sdk.ConfidentialAppAuthClient(robot.id, robot.secret or "")
    token = client.oauth2_client_credentials_tokens(at.service.scope).by_resource_server[at.service.id]["access_token"]
    client.transport.close()
    rules: dict[str, Any] = {"identity_providers": [{"id": LAB}], "policies": [str(uuid4())]}
    vouched = await at.come(token, service_accounts=[robot.id], **rules)
    assert (vouched.subject, vouched.name) == (robot.id, f"{robot.id}@clients.auth.globus.org")
    assert (vouched.domains, vouched.email) == (frozenset(), None)
    refused = await error(at.globus(**rules), token)
    assert isinstance(refused, LoginRefused)
    assert "service account" in refused.message


# -- tokens that are not good ------------------------------------------------------------------------------------------


async def test_tokens_that_globus_does_not_call_active(at: Setting) -> None:
    revoked = at.token()
    at.cloud.revoke(revoked)
    refresh = at.cloud.issue(at.cloud.log_in(at.ada), at.service.scope, client=at.native, is_refresh=True).text
    globus = at.globus()
    for token in (revoked, refresh, at.token(lifetime_s=-1), "Ag" + "x" * 60, at.token()[:-1], at.secret):
        assert isinstance(await error(globus, token), Unauthenticated)


async def test_a_token_for_another_service_is_not_good_here(at: Setting) -> None:
    other = at.cloud.add_service()
    session = at.cloud.log_in(at.ada)
    for scope in (other.scope, "openid", VIEW_GROUPS):
        token = at.cloud.issue(session, scope, client=at.native).text
        assert isinstance(await error(at.globus(), token), Unauthenticated)


async def test_a_token_of_our_own_client_for_something_else_is_not_good_here(at: Setting) -> None:
    token = at.cloud.issue(at.cloud.log_in(at.ada), "openid", client=at.service).text
    refused = await error(at.globus(), token)
    assert isinstance(refused, Unauthenticated)
    assert at.service.scope in refused.message


async def test_clocks_that_differ(at: Setting) -> None:
    globus = at.globus()
    assert await globus.look_up(at.token(starts_in_s=30))
    refused = await error(globus, at.token(starts_in_s=120))
    assert isinstance(refused, Unauthenticated)
    assert "not valid yet" in refused.message


async def test_a_token_that_is_revoked_between_two_questions(at: Setting) -> None:
    at.cloud.fail("token", 400)
    globus = at.globus(wants_groups=True)
    assert isinstance(await error(globus, at.token()), LoginRefused)
    at.cloud.mend()
    token = at.token()
    at.cloud.revoke(token)
    with pytest.raises(Unauthenticated):
        globus._calls.groups(token)


# -- what the operator has to put right --------------------------------------------------------------------------------


async def test_a_wrong_secret_is_our_fault_and_said_in_the_log(at: Setting, caplog: pytest.LogCaptureFixture) -> None:
    globus, token = at.globus(secret="wrong-and-never-told"), at.token()
    for _ in range(3):
        assert isinstance(await error(globus, token), ProviderUnavailable)
    [record] = [each for each in caplog.records if each.name == "firstkit.auth"]
    assert record.levelno == logging.ERROR
    assert "auth.globus.client_secret_file" in record.getMessage()
    assert "wrong-and-never-told" not in caplog.text
    assert token not in caplog.text


async def test_a_scope_that_does_not_depend_on_groups(at: Setting, caplog: pytest.LogCaptureFixture) -> None:
    at.service = at.cloud.add_service(depends_on_groups=False)
    refused = await error(at.globus(wants_groups=True), at.token())
    assert isinstance(refused, LoginRefused)
    assert "see your groups" in refused.message
    assert VIEW_GROUPS in caplog.text


# -- Globus does not answer --------------------------------------------------------------------------------------------


CALL_S = 0.5


@pytest.fixture
def short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(globus_calls, "CALL_S", CALL_S)


FAULTS = [429, 500, 502, 503, 302, 400, 404, "silence", "garbage", "deep", "cut", "drip", "flood"]


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("route", ["introspect", "groups"])
@pytest.mark.usefixtures("short_patience")
async def test_no_answer_says_nothing_of_the_token(
    at: Setting, route: str, fault: int | str, caplog: pytest.LogCaptureFixture
) -> None:
    at.cloud.fail(route, fault)
    globus, token = at.globus(wants_groups=True), at.token()
    began = time.monotonic()
    assert isinstance(await error(globus, token), ProviderUnavailable)
    assert time.monotonic() - began < LIMIT_S - 1, "the call itself has to end, and not only who waits for it"
    assert token not in caplog.text
    at.cloud.mend()
    assert (await globus.look_up(token)).name == "ada@lab.gov"


@pytest.mark.parametrize("fault", [429, 500, 503, 401, "silence", "garbage", "deep", "cut", "drip", "flood"])
@pytest.mark.usefixtures("short_patience")
async def test_no_token_for_groups_says_nothing_of_the_token(at: Setting, fault: int | str) -> None:
    at.cloud.fail("token", fault)
    assert isinstance(await error(at.globus(wants_groups=True), at.token()), ProviderUnavailable)


async def test_an_endless_answer_is_not_read_to_the_end_of_its_time(
    at: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(globus_calls, "CALL_S", 3 * LIMIT_S)
    at.cloud.fail("introspect", "flood")
    globus, token = at.globus(), at.token()
    began = time.monotonic()
    assert isinstance(await error(globus, token), ProviderUnavailable)
    assert time.monotonic() - began < LIMIT_S - 1


@pytest.mark.parametrize("route", ["introspect", "token"])
async def test_a_token_is_not_sent_elsewhere(at: Setting, route: str) -> None:
    at.cloud.fail(route, "elsewhere")
    assert isinstance(await error(at.globus(wants_groups=True), at.token()), ProviderUnavailable)
    assert "" not in at.cloud.calls, "the route of unknown paths"


async def test_no_globus_at_all(at: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOBUS_SDK_SERVICE_URL_AUTH", "http://127.0.0.1:1/")
    assert isinstance(await error(at.globus(), at.token()), ProviderUnavailable)


async def test_a_passing_fault_is_tried_once_more_and_a_busy_globus_is_left_alone(at: Setting) -> None:
    globus, token = at.globus(), at.token()
    at.cloud.fail("introspect", 502)
    await error(globus, token)
    assert at.cloud.calls["introspect"] == 2
    at.cloud.fail("introspect", 429)
    await error(globus, token)
    assert at.cloud.calls["introspect"] == 3


async def test_a_connection_that_globus_closed_meanwhile_is_not_noticed(at: Setting) -> None:
    globus, token = at.globus(), at.token()
    at.cloud.fail("introspect", "cut")
    await error(globus, token)
    at.cloud.mend()
    assert await asyncio.gather(*(globus.look_up(token) for _ in range(20)))


# -- many at once ------------------------------------------------------------------------------------------------------


class Lag:
    """How late the loop runs what is due, in seconds: the longest and the count."""

    def __init__(self) -> None:
        self.longest = 0.0
        self.rounds = 0

    async def watch(self) -> None:
        while True:
            due = time.perf_counter() + 0.005
            await asyncio.sleep(0.005)
            self.longest = max(self.longest, time.perf_counter() - due)
            self.rounds += 1


@pytest.mark.usefixtures("short_patience")
async def test_a_hanging_globus_holds_up_nobody_but_those_who_need_it(
    at: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(globus_module, "LIMIT_S", 3.0)
    globus = at.globus()
    tokens = [at.token() for _ in range(MOST_UNDER_WAY + 100)]
    at.cloud.fail("introspect", "silence")
    lag = Lag()
    watching = asyncio.create_task(lag.watch())
    calls = [asyncio.create_task(globus.look_up(token)) for token in tokens]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert sum(each.done() for each in calls) == 100
    began = time.monotonic()
    found = await asyncio.gather(*calls, return_exceptions=True)
    waited_s = time.monotonic() - began
    watching.cancel()
    assert {type(each) for each in found} == {ProviderUnavailable}
    assert waited_s < MOST_UNDER_WAY / THREADS * CALL_S / 2, "they do not wait for one another"
    assert at.cloud.most_in_flight <= 2 * THREADS, "the far end notices a little later that somebody left"
    assert lag.rounds > 50
    assert lag.longest < CALL_S, "the loop waited for a call"
    assert globus._threads.under_way == 0
    at.cloud.mend()
    assert (await globus.look_up(tokens[0])).name == "ada@lab.gov"


async def test_many_who_log_in_at_once_all_come_in(at: Setting) -> None:
    people = [at.cloud.add_identity(f"user{number}@lab.gov", LAB) for number in range(100)]
    tokens = [at.token(at.cloud.log_in(each)) for each in people]
    globus = at.globus(identity_providers=[{"id": LAB}])
    at.cloud.delay_s = 0.05
    found = await asyncio.gather(*map(globus.look_up, tokens))
    assert [each.name for each in found] == [each.username for each in people]
    assert at.cloud.most_in_flight == THREADS


def threads() -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name.startswith("globus_")]


async def test_closing_waits_for_no_globus(at: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(globus_calls, "CALL_S", 2.0)
    at.cloud.fail("introspect", "silence")
    globus = at.globus()
    call = asyncio.create_task(globus.look_up(at.token()))
    await until(lambda: at.cloud.in_flight == 1)
    await globus.close()
    with pytest.raises(ProviderUnavailable):
        await call
    assert threads(), "the call itself goes on until its time is over"
    assert isinstance(await error(globus, at.token()), ProviderUnavailable)


# -- the stand-in checks what Globus checks ----------------------------------------------------------------------------


async def browse(url: str) -> dict[str, list[str]]:
    """What a browser brings back from ``url``: the query of the address that it is sent to."""
    async with httpx.AsyncClient(verify=False) as browser:
        answer = await browser.get(url)
    assert answer.status_code == 302
    return parse_qs(urlsplit(answer.headers["location"]).query)


@pytest.fixture
def client(at: Setting) -> Iterator[globus_sdk.NativeAppAuthClient]:
    made = globus_sdk.NativeAppAuthClient(at.native.id)
    yield made
    made.transport.close()


async def test_a_login_from_a_command_line(at: Setting, client: globus_sdk.NativeAppAuthClient) -> None:
    at.cloud.visitor = at.cloud.log_in(at.ada)
    client.oauth2_start_flow(requested_scopes=["openid", at.service.scope], refresh_tokens=True)
    async with httpx.AsyncClient(verify=False, follow_redirects=True) as browser:
        code = (await browser.get(client.oauth2_get_authorize_url())).json()["code"]
    tokens = client.oauth2_exchange_code_for_tokens(code)
    assert tokens.decode_id_token()["sub"] == at.ada.id
    mine = tokens.by_resource_server[at.service.id]
    globus = at.globus()
    assert (await globus.look_up(mine["access_token"])).name == "ada@lab.gov"
    renewed = client.oauth2_refresh_token(mine["refresh_token"]).by_resource_server[at.service.id]
    assert renewed["access_token"] != mine["access_token"]
    assert (await globus.look_up(renewed["access_token"])).name == "ada@lab.gov"
    client.oauth2_revoke_token(renewed["access_token"])
    assert isinstance(await error(globus, renewed["access_token"]), Unauthenticated)
    with pytest.raises(globus_sdk.AuthAPIError):
        client.oauth2_exchange_code_for_tokens(code)


async def test_a_policy_is_met_by_a_new_login(at: Setting, client: globus_sdk.NativeAppAuthClient) -> None:
    policy = str(uuid4())
    at.cloud.policies[policy] = recent(60)
    at.cloud.visitor = at.cloud.log_in(at.ada, ago_s=3600)
    globus = at.globus(policies=[policy])

    async def log_in(**asked: Any) -> str:
        client.oauth2_start_flow(requested_scopes=[at.service.scope])
        found = await browse(client.oauth2_get_authorize_url(**asked))
        tokens = client.oauth2_exchange_code_for_tokens(found["code"][0])
        return str(tokens.by_resource_server[at.service.id]["access_token"])

    assert isinstance(await error(globus, await log_in()), LoginRefused)
    assert (await globus.look_up(await log_in(session_required_policies=[policy]))).name == "ada@lab.gov"
    assert (await globus.look_up(await log_in(prompt="login"))).name == "ada@lab.gov"


async def test_logins_need_their_proof_of_who_began_them(at: Setting, client: globus_sdk.NativeAppAuthClient) -> None:
    at.cloud.visitor = at.cloud.log_in(at.ada)
    client.oauth2_start_flow(requested_scopes=[at.service.scope])
    url = client.oauth2_get_authorize_url()
    [code] = (await browse(url))["code"]
    thief = globus_sdk.NativeAppAuthClient(at.native.id)
    thief.oauth2_start_flow(requested_scopes=[at.service.scope])
    with pytest.raises(globus_sdk.AuthAPIError):
        thief.oauth2_exchange_code_for_tokens(code)
    thief.transport.close()
    plain = url.replace("code_challenge=", "x=")
    assert (await browse(plain))["error"] == ["invalid_request"]
    assert (await browse(url.replace("action_all", "all")))["error"] == ["unknown_scope"]
    at.cloud.visitor = None
    assert (await browse(url))["error"] == ["access_denied"]


async def test_logins_come_back_only_to_addresses_that_are_registered(at: Setting) -> None:
    at.cloud.visitor = at.cloud.log_in(at.ada)
    page = at.cloud.url.rstrip("/") + CODE_PAGE
    asked = {"response_type": "code", "scope": at.service.scope, "code_challenge": "c", "code_challenge_method": "S256"}

    async def status(client_id: str, uri: str) -> int:
        async with httpx.AsyncClient(verify=False) as browser:
            url = f"{at.cloud.url}v2/oauth2/authorize"
            answer = await browser.get(url, params={**asked, "client_id": client_id, "redirect_uri": uri})
        return answer.status_code

    assert await status(at.service.id, CALLBACK) == await status(at.native.id, page) == 302
    for client_id, uri in (
        (at.service.id, page),
        (at.native.id, CALLBACK),
        (at.service.id, f"{CALLBACK}/x"),
        ("x", page),
    ):
        assert await status(client_id, uri) == 400


async def test_a_login_by_the_web_page_of_the_service(at: Setting) -> None:
    at.cloud.visitor = at.cloud.log_in(at.ada)
    service = globus_sdk.ConfidentialAppAuthClient(at.service.id, at.secret)
    service.oauth2_start_flow(CALLBACK, ["openid", "profile", at.service.scope], state="s1")
    found = await browse(service.oauth2_get_authorize_url(query_params={"nonce": "n1"}))
    assert found["state"] == ["s1"]
    tokens = service.oauth2_exchange_code_for_tokens(found["code"][0])
    claims = tokens.decode_id_token()
    assert (claims["nonce"], claims["aud"], claims["preferred_username"]) == ("n1", at.service.id, "ada@lab.gov")
    assert "refresh_token" not in tokens.data
    assert (await at.come(tokens.by_resource_server[at.service.id]["access_token"])).subject == at.ada.id
    service.transport.close()


async def test_only_the_service_that_a_token_is_for_is_told_of_it(at: Setting) -> None:
    token, other = at.token(), at.cloud.add_service()

    def told(client_id: str, secret: str) -> Any:
        asking = globus_sdk.ConfidentialAppAuthClient(client_id, secret)
        try:
            return asking.oauth2_token_introspect(token).data
        finally:
            asking.transport.close()

    assert told(at.service.id, at.secret)["sub"] == at.ada.id
    assert told(other.id, other.secret or "") == {"active": False}
    for client_id, secret in ((at.service.id, "wrong"), (other.id, at.secret), (at.native.id, ""), ("nobody", "x")):
        with pytest.raises(globus_sdk.AuthAPIError) as refused:
            told(client_id, secret)
        assert refused.value.http_status == 401


async def test_groups_are_told_only_by_a_token_for_groups(at: Setting) -> None:
    at.cloud.join(at.ada, at.cloud.add_group("climate"))

    def asked(token: str) -> int:
        client = globus_sdk.GroupsClient(authorizer=globus_sdk.AccessTokenAuthorizer(token))
        try:
            return len(list(client.get_my_groups()))
        except globus_sdk.GlobusAPIError as exc:
            return exc.http_status
        finally:
            client.transport.close()

    session = at.cloud.log_in(at.ada)
    every = f"{GroupsScopes.all}"
    assert asked(at.cloud.issue(session, VIEW_GROUPS, client=at.native).text) == 1
    assert asked(at.token()) == 401
    assert asked(at.cloud.issue(session, every, client=at.native).text) == 403


async def test_only_the_service_that_a_token_is_for_gets_tokens_that_depend_on_it(at: Setting) -> None:
    token, other = at.token(), at.cloud.add_service()

    def dependent(client_id: str, secret: str) -> list[str]:
        asking = globus_sdk.ConfidentialAppAuthClient(client_id, secret)
        try:
            return list(asking.oauth2_get_dependent_tokens(token).by_resource_server)
        finally:
            asking.transport.close()

    assert dependent(at.service.id, at.secret) == ["groups.api.globus.org"]
    with pytest.raises(globus_sdk.AuthAPIError):
        dependent(other.id, other.secret or "")


async def test_what_is_no_route_or_fault_cannot_fail(at: Setting) -> None:
    for route, fault in (("nowhere", 500), ("token", "tiredness")):
        with pytest.raises(ValueError, match="there is no"):
            at.cloud.fail(route, fault)
