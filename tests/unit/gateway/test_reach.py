"""Who reaches which clusters and models, and where one request may go."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from firstkit.auth.permissions import Identity, Membership
from firstkit.config import parse_config
from firstkit.errors import ClusterNotFound, InvalidRequest
from firstkit.gateway.apis import CHAT, COMPLETIONS, EMBEDDINGS
from firstkit.gateway.identity import LOCAL_ADMIN
from firstkit.gateway.reach import Reach

CONFIG = """
clusters:
  open: {}
  ours: {access: {projects: [astro]}}
  mine: {access: {users: [ada], projects: [chem]}}
  cloud: {kind: external, access: {users: [ada]}}
  campus: {access: {domains: [anl.gov], groups: [g-1]}}
models:
  research:
    access: {groups: [g-2], domains: [anl.gov]}
    deployments: [{cluster: open, engine: {kind: command, argv: [x], capabilities: [chat]}}]
  remote:
    access: {projects: [astro]}
    deployments: [{cluster: campus, engine: {kind: command, argv: [x], capabilities: [chat]}}]
  everywhere:
    deployments:
      - {cluster: open, engine: {kind: command, argv: [x], capabilities: [chat]}}
      - {cluster: ours, engine: {kind: command, argv: [x], capabilities: [chat, completions]}}
      - {cluster: mine, engine: {kind: command, argv: [x], capabilities: [chat, completions]}}
  secret:
    deployments:
      - {cluster: mine, engine: {kind: command, argv: [x], capabilities: [chat]}}
  bought:
    deployments:
      - {cluster: cloud, engine: {kind: external, url: "http://x/v1", capabilities: [chat]}}
"""
REACH = Reach(parse_config(CONFIG))


def identity(user: str = "bob", project: str = "bio") -> Identity:
    return Identity(f"id-{user}", user, f"id-{project}", "prefix", frozenset({"inference"}), project)


ADA, BOB, CHEM, ASTRO = identity("ada"), identity(), identity(project="chem"), identity(project="astro")


@pytest.mark.parametrize(
    ("who", "clusters"),
    [
        (BOB, {"open"}),
        (ADA, {"open", "mine", "cloud"}),
        (CHEM, {"open", "mine"}),
        (ASTRO, {"open", "ours"}),
        (identity("astro", "ada"), {"open"}),
        (identity("ada", "astro"), {"open", "ours", "mine", "cloud"}),
        (replace(identity("ada", "astro"), groups=frozenset({"g-1"})), None),
        (LOCAL_ADMIN, None),
    ],
)
def test_clusters_are_for_those_who_are_named(who: Identity, clusters: set[str] | None) -> None:
    for _ in range(2):
        assert REACH.clusters_for(who) == clusters
    for name in ("open", "ours", "mine", "cloud", "campus"):
        if clusters is None or name in clusters:
            REACH.check_cluster(who, name)
        else:
            with pytest.raises(ClusterNotFound):
                REACH.check_cluster(who, name)


def test_without_rules_all_are_for_all() -> None:
    reach = Reach(parse_config(re.sub(r"access: {[^}]*}", "", CONFIG)))
    assert reach.is_open
    assert reach.clusters_for(BOB) is None
    with pytest.raises(ClusterNotFound):
        reach.check_cluster(BOB, "elsewhere")


@pytest.mark.parametrize(
    ("who", "models"),
    [(BOB, ["everywhere"]), (CHEM, ["everywhere", "secret"]), (ADA, ["everywhere", "secret", "bought"])],
)
def test_models_are_seen_where_they_may_be_used(who: Identity, models: list[str]) -> None:
    assert [model for model in ("everywhere", "secret", "bought") if REACH.sees(who, model)] == models


def test_where_a_request_may_go() -> None:
    both = identity("ada", "astro")
    assert REACH.within(both, "everywhere", CHAT, None) is None
    assert REACH.within(both, "everywhere", COMPLETIONS, None) == {"ours", "mine"}, "not where nobody would answer"
    assert REACH.within(ASTRO, "everywhere", CHAT, None) == {"open", "ours"}
    assert REACH.within(ASTRO, "everywhere", COMPLETIONS, None) == {"ours"}
    assert REACH.within(both, "everywhere", CHAT, "mine") == {"mine"}
    assert REACH.within(CHEM, "secret", CHAT, None) is None, "all that there is"
    assert REACH.within(CHEM, "secret", CHAT, "mine") is None
    assert REACH.deployed(ASTRO, "everywhere") == {"open", "ours"}
    assert REACH.capabilities("everywhere") == {"chat", "completions", "count_tokens", "messages", "responses"}


BY_CHAT = "/v1/messages, /v1/messages/count_tokens, /v1/responses"


def test_what_is_not_served_where_one_may_go() -> None:
    for who, pin in ((BOB, None), (ADA, "open")):
        with pytest.raises(InvalidRequest) as caught:
            REACH.within(who, "everywhere", COMPLETIONS, pin)
        assert caught.value.code == "unsupported_endpoint"
        assert f"it serves: /v1/chat/completions, {BY_CHAT}." in caught.value.message
    with pytest.raises(InvalidRequest) as caught:
        REACH.within(ADA, "everywhere", EMBEDDINGS, None)
    assert f"it serves: /v1/chat/completions, /v1/completions, {BY_CHAT}." in caught.value.message


def test_a_cluster_without_the_model() -> None:
    with pytest.raises(ClusterNotFound) as caught:
        REACH.within(CHEM, "secret", CHAT, "open")
    assert caught.value.message == "The model 'secret' is not deployed on the cluster 'open'; it is on: mine."
    with pytest.raises(ClusterNotFound) as caught:
        REACH.within(ADA, "everywhere", CHAT, "cloud")
    assert caught.value.message.endswith("it is on: mine, open."), "of others nothing is said"


def test_it_remembers_no_more_than_it_must(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("firstkit.gateway.reach._MOST_REMEMBERED", 10)
    reach = Reach(parse_config(CONFIG))
    for number in range(50):
        assert reach.clusters_for(identity(f"user-{number}")) == {"open"}
    assert len(reach._allowed) <= 10


@pytest.mark.parametrize(
    ("who", "research", "campus", "remote"),
    [
        (BOB, False, False, False),
        (replace(BOB, groups=frozenset({"g-1"})), False, True, False),
        (replace(BOB, groups=frozenset({"g-2", "x"})), True, False, False),
        (replace(BOB, domains=frozenset({"anl.gov"})), True, True, False),
        (replace(BOB, domains=frozenset({"evil-anl.gov", "gov"})), False, False, False),
        (replace(ASTRO, domains=frozenset({"anl.gov"})), True, True, True),
        (ASTRO, False, False, False),
    ],
)
def test_groups_and_domains_open_clusters_and_models(who: Identity, research: bool, campus: bool, remote: bool) -> None:
    for _ in range(2):
        assert REACH.sees(who, "research") is research
        assert ("campus" in (REACH.clusters_for(who) or ())) is campus
        assert REACH.sees(who, "remote") is remote, "both the model and one of its clusters must be for them"


def test_a_key_is_for_its_models_only() -> None:
    key = replace(BOB, models=frozenset({"everywhere", "secret"}))
    assert REACH.sees(key, "everywhere")
    assert not REACH.sees(key, "bought")
    assert not REACH.sees(key, "secret"), "a key opens nothing that its user may not see"
    assert not Reach(parse_config(PLAIN)).sees(key, "m"), "also where there are no other rules"


PLAIN = """
clusters: {here: {}}
models: {m: {deployments: [{cluster: here, engine: {kind: command, argv: [x], capabilities: [chat]}}]}}
"""


def test_who_has_not_chosen_a_project_sees_what_any_of_theirs_sees() -> None:
    several = replace(
        identity(project=""), project_id="", memberships=(Membership("1", "astro"), Membership("2", "bio"))
    )
    assert REACH.clusters_for(several) == {"open", "ours"}
    assert REACH.clusters_for(several.charged_to("bio")) == {"open"}


def test_a_denial_is_told_apart_from_what_is_not_there() -> None:
    for name, is_denial in (("ours", True), ("nowhere", False)):
        with pytest.raises(ClusterNotFound, match=f"'{name}' does not exist or you do not have access") as caught:
            REACH.check_cluster(BOB, name)
        assert caught.value.is_denial is is_denial
