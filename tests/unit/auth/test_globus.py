"""The rules for logins by Globus, without Globus; and what stands around its calls."""

import asyncio
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstkit.auth.globus import Globus
from firstkit.auth.globus_rules import (
    ISSUER,
    LEEWAY_S,
    Introspection,
    NotUnderstood,
    admit,
    check_token,
    needs_groups,
    read_groups,
    read_groups_token,
    read_introspection,
    vouch,
)
from firstkit.auth.secret_file import read_secret
from firstkit.auth.threads import Threads
from firstkit.config import Globus as Settings
from firstkit.errors import ConfigError, LoginRefused, ProviderUnavailable, Unauthenticated
from waiting import until

NOW = 1_000_000.0
SERVICE = "11111111-0000-4000-8000-000000000000"
LAB = "22222222-0000-4000-8000-000000000001"
UNIVERSITY = "22222222-0000-4000-8000-000000000002"
POLICY = "33333333-0000-4000-8000-000000000001"
GROUP = "44444444-0000-4000-8000-000000000001"
OTHER_GROUP = "44444444-0000-4000-8000-000000000002"
ADA = "55555555-0000-4000-8000-000000000001"
ADA_AT_UNIVERSITY = "55555555-0000-4000-8000-000000000002"
ROBOT = "66666666-0000-4000-8000-000000000001"
SCOPE = f"https://auth.globus.org/scopes/{SERVICE}/action_all"


def settings(**changes: Any) -> Settings:
    return Settings.model_validate({"client_id": SERVICE, "client_secret_file": "/etc/first/globus", **changes})


def answer(**changes: Any) -> dict[str, Any]:
    """What Globus says of a token of Ada, who proved her identity at the lab; another at a university is linked."""
    detail = [
        {"sub": ADA, "username": "ada@lab.gov", "email": "ada@lab.gov", "identity_provider": LAB},
        {"sub": ADA_AT_UNIVERSITY, "username": "al@uni.edu", "email": None, "identity_provider": UNIVERSITY},
    ]
    return {
        "active": True,
        "sub": ADA,
        "username": "ada@lab.gov",
        "scope": f"openid {SCOPE}",
        "aud": ["auth.globus.org", SERVICE],
        "nbf": NOW - 100,
        "exp": NOW + 3600,
        "identity_set_detail": detail,
        "session_info": {"authentications": {ADA: {"idp": LAB, "auth_time": NOW - 60}}},
        **changes,
    }


def said(**changes: Any) -> Introspection:
    found = read_introspection(answer(**changes))
    assert found is not None
    return found


def proofs(**of: str) -> dict[str, Any]:
    """A session in which identities were proved: ``ada=LAB`` and ``university=UNIVERSITY``."""
    ids = {"ada": ADA, "university": ADA_AT_UNIVERSITY}
    found = {ids[name]: {"idp": provider, "auth_time": NOW - 60} for name, provider in of.items()}
    return {"session_id": "s", "authentications": found}


def robot(**changes: Any) -> Introspection:
    own = {"sub": ROBOT, "username": f"{ROBOT}@clients.auth.globus.org", **changes}
    return said(**own, identity_set_detail=[], session_info={"authentications": {}})


# -- reading -----------------------------------------------------------------------------------------------------------


def test_an_inactive_token_is_none() -> None:
    assert read_introspection({"active": False}) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"active": 1},
        {"active": "true"},
        {"active": None},
        {"sub": None},
        {"sub": 5},
        {"username": ""},
        {"username": "ada\n@lab.gov"},
        {"scope": None},
        {"aud": None},
        {"aud": [5]},
        {"exp": None},
        {"exp": True},
        {"exp": "tomorrow"},
        {"exp": float("nan")},
        {"exp": float("inf")},
        {"exp": 10**400},
        {"session_info": ["s"]},
        {"session_info": {"authentications": [ADA]}},
        {"identity_set_detail": {ADA: {}}},
        {"identity_set_detail": [{"username": "x@lab.gov", "identity_provider": LAB}]},
        {"identity_set_detail": [{"sub": ADA, "username": "x@lab.gov"}]},
        {"policy_evaluations": {POLICY: True}},
    ],
)
def test_an_answer_that_lacks_something_is_not_understood(changes: dict[str, Any]) -> None:
    with pytest.raises(NotUnderstood):
        read_introspection(answer(**changes))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*answer(), ADA, "id"]), inner, max_size=4)
    ),
    max_leaves=8,
)


@given(JSON, st.sampled_from([*answer(), "policy_evaluations"]))
def test_whatever_stands_in_an_answer_is_read_or_not_understood(value: Any, key: str) -> None:
    for reading in (read_introspection, read_groups, read_groups_token):
        for found in (value, answer(**{key: value}), [value]):
            try:
                reading(found)
            except NotUnderstood:
                continue


def test_identities_are_named_by_sub_or_by_id() -> None:
    detail = [{"id": ADA, "username": "ada@lab.gov", "email": None, "identity_provider": LAB}]
    assert [each.id for each in said(identity_set_detail=detail).proved] == [ADA]


def test_ids_are_compared_without_regard_to_case() -> None:
    found = said(session_info={"authentications": {ADA.upper(): {"idp": LAB.upper(), "auth_time": NOW}}})
    assert [each.id for each in found.proved] == [ADA]


def test_a_proof_that_names_another_provider_than_the_identity_counts_for_neither() -> None:
    assert said(session_info=proofs(ada=UNIVERSITY)).proved == ()


def test_only_active_memberships_are_groups() -> None:
    def group(group_id: str, *states: str) -> dict[str, Any]:
        return {"id": group_id, "my_memberships": [{"status": state} for state in states]}

    answered = [group(GROUP, "left", "active"), group(OTHER_GROUP, "invited"), {"id": "g", "my_memberships": None}]
    assert read_groups(answered) == {GROUP}


def test_the_token_for_groups_is_found_among_others() -> None:
    tokens = [
        {"resource_server": "x", "access_token": "a"},
        {"resource_server": "groups.api.globus.org", "access_token": "b"},
    ]
    assert read_groups_token(tokens) == "b"
    assert read_groups_token(tokens[:1]) is None


# -- whether the token is for us, and now ------------------------------------------------------------------------------


def test_a_token_for_this_service_passes() -> None:
    check_token(said(), settings(), NOW)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"scope": "openid"}, "does not have the scope"),
        ({"scope": f"{SCOPE}_and_more"}, "does not have the scope"),
        ({"aud": ["auth.globus.org"]}, "audience"),
        ({"aud": "auth.globus.org"}, "audience"),
        ({"exp": NOW - LEEWAY_S}, "expired"),
        ({"nbf": NOW + LEEWAY_S + 1}, "not valid yet"),
    ],
)
def test_a_token_for_another_service_or_time_is_not_good(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(Unauthenticated, match=sentence):
        check_token(said(**changes), settings(), NOW)


@pytest.mark.parametrize(
    "changes", [{"exp": NOW - LEEWAY_S + 1}, {"nbf": NOW + LEEWAY_S}, {"nbf": None}, {"aud": SERVICE}]
)
def test_clocks_may_differ_by_a_minute(changes: dict[str, Any]) -> None:
    check_token(said(**changes), settings(), NOW)


@pytest.mark.parametrize(
    ("scope", "server"),
    [
        ("https://auth.globus.org/scopes/first.example.org/all", "first.example.org"),
        ("urn:globus:auth:scope:first.example.org:all", "first.example.org"),
    ],
)
def test_a_service_that_globus_knows_by_name_is_meant_by_that_name(scope: str, server: str) -> None:
    check_token(said(scope=scope, aud=[server]), settings(scope=scope), NOW)


# -- identity providers and policies -----------------------------------------------------------------------------------


def test_without_rules_whoever_proved_an_identity_may_come_in() -> None:
    assert [each.username for each in admit(said(), settings())] == ["ada@lab.gov"]


def test_without_rules_a_session_in_which_nothing_is_proved_any_more_will_do() -> None:
    found = said(session_info=None)
    [fit] = admit(found, settings())
    vouched = vouch(found, (fit,), frozenset(), settings(), NOW)
    assert (vouched.name, vouched.domains) == ("ada@lab.gov", frozenset())


def test_an_identity_of_an_allowed_provider_counts() -> None:
    [fit] = admit(said(), settings(identity_providers=[{"id": LAB}]))
    assert fit.id == ADA


def test_an_identity_that_is_merely_linked_does_not_count() -> None:
    with pytest.raises(LoginRefused, match=r"Log in again with al@uni\.edu: it is linked to your login, but"):
        admit(said(), settings(identity_providers=[{"id": UNIVERSITY}]))


def test_an_identity_counts_by_its_provider_and_not_by_its_domain() -> None:
    detail = [{"sub": ADA, "username": "ada@uni.edu", "identity_provider": LAB}]
    with pytest.raises(LoginRefused, match=r"You logged in as ada@uni\.edu, whose identity provider"):
        admit(said(identity_set_detail=detail), settings(identity_providers=[{"id": UNIVERSITY}]))


def test_one_of_two_proved_identities_is_enough() -> None:
    found = said(session_info=proofs(ada=LAB, university=UNIVERSITY))
    [fit] = admit(found, settings(identity_providers=[{"id": UNIVERSITY}]))
    vouched = vouch(found, (fit,), frozenset(), settings(), NOW)
    assert (vouched.subject, vouched.name) == (ADA, "al@uni.edu")
    assert vouched.domains == {"lab.gov", "uni.edu"}


def test_of_several_the_token_s_own_comes_first_and_then_the_latest() -> None:
    early, late = {"idp": LAB, "auth_time": NOW - 9}, {"idp": UNIVERSITY, "auth_time": NOW}
    found = said(session_info={"authentications": {ADA: early, ADA_AT_UNIVERSITY: late}})
    assert [each.id for each in found.proved] == [ADA, ADA_AT_UNIVERSITY]
    third = {"sub": ROBOT, "username": "x@uni.edu", "identity_provider": UNIVERSITY}
    detail = [*answer()["identity_set_detail"][1:], third]
    newer = {ADA_AT_UNIVERSITY: {**late, "auth_time": 5}, ROBOT: late}
    found = said(identity_set_detail=detail, session_info={"authentications": newer})
    assert [each.id for each in found.proved] == [ROBOT, ADA_AT_UNIVERSITY]


def test_a_policy_that_is_met() -> None:
    admit(said(policy_evaluations={POLICY: {"evaluation": True}}), settings(policies=[POLICY]))


@pytest.mark.parametrize("found", [False, None, 1, "true"])
def test_a_policy_that_is_not_met_asks_for_a_login_that_meets_it(found: object) -> None:
    with pytest.raises(LoginRefused, match=f"its Globus policy {POLICY}.*log in again") as refused:
        admit(said(policy_evaluations={POLICY: {"evaluation": found}}), settings(policies=[POLICY]))
    assert refused.value.details["authorization_parameters"]["session_required_policies"] == [POLICY]


@pytest.mark.parametrize("found", [None, {}, {GROUP: {"evaluation": True}}])
def test_a_policy_that_was_not_evaluated_is_not_met(found: object) -> None:
    with pytest.raises(LoginRefused, match="tell its operator"):
        admit(said(policy_evaluations=found), settings(policies=[POLICY]))


# -- groups ------------------------------------------------------------------------------------------------------------


def come(member_of: set[str], **rules: Any) -> str:
    """The name under which Ada comes in, who proved both of her identities."""
    found, given_rules = said(session_info=proofs(ada=LAB, university=UNIVERSITY)), settings(**rules)
    return vouch(found, admit(found, given_rules), frozenset(member_of), given_rules, NOW).name


def test_any_of_the_allowed_groups_is_enough() -> None:
    assert come({GROUP}, groups=[OTHER_GROUP, GROUP]) == "ada@lab.gov"


def test_who_is_in_none_of_the_allowed_groups_is_refused() -> None:
    with pytest.raises(LoginRefused, match="none of the Globus groups"):
        come({OTHER_GROUP}, groups=[GROUP])


def test_a_provider_may_ask_for_groups_of_its_own() -> None:
    providers = [{"id": LAB, "groups": [GROUP]}, {"id": UNIVERSITY}]
    assert come({GROUP}, identity_providers=providers) == "ada@lab.gov"
    assert come(set(), identity_providers=providers) == "al@uni.edu"
    with pytest.raises(LoginRefused, match=r"ada@lab\.gov is in none of the Globus groups that its identity provider"):
        come({OTHER_GROUP}, identity_providers=providers[:1])


@pytest.mark.parametrize(
    ("rules", "needed"),
    [
        ({}, False),
        ({"groups": [GROUP]}, True),
        ({"identity_providers": [{"id": LAB}]}, False),
        ({"identity_providers": [{"id": LAB}, {"id": UNIVERSITY, "groups": [GROUP]}]}, True),
    ],
)
def test_groups_are_needed_where_a_rule_is_about_them(rules: dict[str, Any], needed: bool) -> None:
    assert needs_groups(settings(**rules)) is needed


# -- service accounts --------------------------------------------------------------------------------------------------


def test_a_service_account_comes_in_only_when_it_is_listed() -> None:
    [fit] = admit(robot(), settings(service_accounts=[ROBOT]))
    assert fit.username == f"{ROBOT}@clients.auth.globus.org"
    for accounts in ([], [ADA]):
        with pytest.raises(LoginRefused, match=f"service account {ROBOT}"):
            admit(robot(), settings(service_accounts=accounts))


def test_rules_about_providers_and_policies_are_not_for_service_accounts_but_groups_are() -> None:
    rules = settings(
        service_accounts=[ROBOT], identity_providers=[{"id": LAB, "groups": [GROUP]}], policies=[POLICY], groups=[GROUP]
    )
    found = robot()
    vouched = vouch(found, admit(found, rules), frozenset({GROUP}), rules, NOW)
    assert (vouched.subject, vouched.domains, vouched.email) == (ROBOT, frozenset(), None)
    with pytest.raises(LoginRefused):
        vouch(found, admit(found, rules), frozenset(), rules, NOW)


@pytest.mark.parametrize(
    "username", ["robot@auth.globus.org", "clients.auth.globus.org", "x@clients.auth.globus.org.evil.com"]
)
def test_nobody_is_a_service_account_by_a_name_that_looks_like_one(username: str) -> None:
    with pytest.raises(LoginRefused, match="identity provider"):
        admit(robot(username=username), settings(service_accounts=[ROBOT], identity_providers=[{"id": LAB}]))


# -- what is said of them ----------------------------------------------------------------------------------------------


def test_what_is_said_of_somebody() -> None:
    vouched = vouch(said(), admit(said(), settings()), frozenset({GROUP}), settings(), NOW)
    assert (vouched.issuer, vouched.subject, vouched.name) == (ISSUER, ADA, "ada@lab.gov")
    assert (vouched.email, vouched.groups, vouched.domains) == ("ada@lab.gov", {GROUP}, {"lab.gov"})
    assert (vouched.projects, vouched.good_for_s) == (frozenset(), 3600)


def test_the_domain_is_what_the_provider_vouches_for() -> None:
    detail = [{"sub": ADA, "username": "ada@lab.gov@accounts.google.com", "identity_provider": LAB}]
    found = said(identity_set_detail=detail)
    assert vouch(found, admit(found, settings()), frozenset(), settings(), NOW).domains == {"accounts.google.com"}


def test_a_token_that_is_over_by_our_clock_alone_is_good_for_a_moment() -> None:
    found = said(exp=NOW - 5)
    assert vouch(found, admit(found, settings()), frozenset(), settings(), NOW).good_for_s == 1.0


# -- the secret --------------------------------------------------------------------------------------------------------


def secret_file(folder: Path, text: str = "s3cret\n", mode: int = 0o600) -> Path:
    path = folder / "secret"
    path.write_text(text)
    path.chmod(mode)
    return path


@pytest.mark.parametrize("mode", [0o600, 0o400])
def test_a_secret_is_the_one_line_of_its_file(folder: Path, mode: int) -> None:
    assert read_secret(secret_file(folder, mode=mode), "auth.x") == "s3cret"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o622])
def test_a_secret_that_others_may_read_is_refused(folder: Path, mode: int) -> None:
    with pytest.raises(ConfigError, match=rf"auth\.x: .*secret has the mode {mode:04o}.*allowed are 0600 and 0400"):
        read_secret(secret_file(folder, mode=mode), "auth.x")


@pytest.mark.parametrize("text", ["", "\n", "two\nlines", "s\0x", "sécret", "x" * 5000])
def test_a_file_that_holds_no_secret_is_refused_and_not_repeated(folder: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"auth\.x: .* must hold the secret alone") as refused:
        read_secret(secret_file(folder, text), "auth.x")
    assert not text.strip() or text not in str(refused.value)


def test_a_missing_secret_is_named(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"auth\.globus\.client_secret_file: .*nothing cannot be read: No such file"):
        Globus(settings(client_secret_file=str(folder / "nothing")))


def test_without_the_sdk_the_configuration_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "firstkit.auth.globus_calls", raising=False)
    monkeypatch.setitem(sys.modules, "globus_sdk", None)
    with pytest.raises(ConfigError, match=r'pip install "firstkit\[globus\]"'):
        Globus(settings(client_secret_file=str(secret_file(folder))))


# -- the form of its tokens --------------------------------------------------------------------------------------------

HEAD = "eyJhbGciOiJSUzI1NiJ9"


@pytest.fixture
async def globus(folder: Path) -> AsyncIterator[Globus]:
    made = Globus(settings(client_secret_file=str(secret_file(folder))))
    yield made
    await made.close()


@pytest.mark.parametrize("token", ["Ag" + "x" * 60, "a" * 20, "a" * 2048, "with.one-dot" + "x" * 20])
async def test_an_opaque_token_may_be_one_of_globus(globus: Globus, token: str) -> None:
    assert globus.may_know(token)


@pytest.mark.parametrize(
    "token",
    [
        "",
        "a" * 19,
        "a" * 2049,
        "a" * 20 + " b",
        "a" * 20 + "\n",
        "a" * 20 + "é",
        "first-" + "a" * 12 + "-" + "b" * 52,
        "first-session-" + "b" * 52,
        "first-anything-at-all-that-may-come",
        f"{HEAD}.{HEAD}.{HEAD}",
        f"{HEAD}.{HEAD}.{HEAD}.{HEAD}.{HEAD}",
    ],
)
async def test_keys_sessions_and_jwts_are_none_of_its_tokens(globus: Globus, token: str) -> None:
    assert not globus.may_know(token)


# -- threads -----------------------------------------------------------------------------------------------------------


class _Gate:
    """Work that hangs until it is let go."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        self.entered = 0
        self._lock = threading.Lock()

    def __call__(self) -> str:
        with self._lock:
            self.entered += 1
        assert self.opened.wait(30)
        return "done"


@pytest.fixture
async def gate() -> AsyncIterator[_Gate]:
    made = _Gate()
    yield made
    made.opened.set()


async def test_work_returns_or_raises_as_if_it_ran_here() -> None:
    threads = Threads("t", 1, 2)
    assert await threads.run(lambda: 5, 10.0) == 5
    with pytest.raises(LoginRefused):
        await threads.run(lambda: admit(robot(), settings())[0].id, 10.0)
    threads.close()


async def test_no_more_run_than_there_are_threads_and_no_more_wait_than_is_said(gate: _Gate) -> None:
    threads = Threads("t", 2, 5)
    calls = [asyncio.create_task(threads.run(gate, 30.0)) for _ in range(5)]
    await until(lambda: gate.entered == 2 and threads.under_way == 5)
    with pytest.raises(ProviderUnavailable):
        await threads.run(gate, 30.0)
    assert gate.entered == 2
    gate.opened.set()
    assert await asyncio.gather(*calls) == ["done"] * 5
    assert threads.under_way == 0
    threads.close()


async def test_who_leaves_or_has_waited_enough_makes_room_but_the_thread_stays_taken(gate: _Gate) -> None:
    threads = Threads("t", 1, 2)
    left = asyncio.create_task(threads.run(gate, 30.0))
    await until(lambda: gate.entered == 1)
    left.cancel()
    for _ in range(3):
        with pytest.raises(ProviderUnavailable):
            await threads.run(gate, 0.01)
    assert (threads.under_way, gate.entered) == (0, 1)
    gate.opened.set()
    assert await threads.run(lambda: 7, 10.0) == 7
    threads.close()


async def test_when_it_is_closed_nobody_waits_on(gate: _Gate) -> None:
    threads = Threads("t", 1, 5)
    calls = [asyncio.create_task(threads.run(gate, 30.0)) for _ in range(3)]
    await until(lambda: gate.entered == 1)
    threads.close()
    found = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(each) for each in found] == [ProviderUnavailable] * 3
    assert gate.entered == 1
    with pytest.raises(ProviderUnavailable):
        await threads.run(gate, 30.0)
