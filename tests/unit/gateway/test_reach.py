"""Who reaches which clusters and models, and where one request may go."""

from __future__ import annotations

import pytest

from firstkit.auth.permissions import Identity
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
models:
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
        (identity("ada", "astro"), None),
        (LOCAL_ADMIN, None),
    ],
)
def test_clusters_are_for_those_who_are_named(who: Identity, clusters: set[str] | None) -> None:
    for _ in range(2):
        assert REACH.clusters_for(who) == clusters
    for name in ("open", "ours", "mine", "cloud"):
        if clusters is None or name in clusters:
            REACH.check_cluster(who, name)
        else:
            with pytest.raises(ClusterNotFound):
                REACH.check_cluster(who, name)


def test_without_rules_all_are_for_all() -> None:
    reach = Reach(parse_config(CONFIG.replace("access", "env").replace("[astro]", "a").replace("[ada]", "a")
                  .replace("[chem]", "b")))  # fmt: skip
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
