"""Whole simulations, small ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from firstkit.errors import ConfigError
from firstkit.simulator.load import read_trace
from firstkit.simulator.policies import POLICIES
from firstkit.simulator.report import figures, table
from firstkit.simulator.run import Simulation
from unit.simulator.support import ALONE, NEEDS, played, scenario

TWO = {"near": {"nodes": 4, "scheduler": ALONE}, "far": {"nodes": 4, "scheduler": ALONE}}


@pytest.mark.parametrize("policy", POLICIES)
def test_the_same_seed_gives_the_same_result(policy: str) -> None:
    clusters = {"here": {"nodes": 8, "scheduler": {"others": {"load": 0.8}}, "node_failures": {"every": "10h"}}}
    first, second = (figures(played(policy, clusters=clusters)) for _ in range(2))
    assert first == second
    other = figures(Simulation(scenario(clusters=clusters, seed=2), policy).run())
    assert other["requests"] != first["requests"]


def test_every_request_is_answered_refused_lost_or_still_open() -> None:
    found = figures(played(load={"requests_per_hour": 3000, "patience": 60, "max_waiting": 10}))
    requests = found["requests"]
    assert requests["asked"] > 1000
    assert requests["failed"] > 0
    assert 0 <= requests["open"] < 100


def test_the_first_request_waits_for_the_queue_and_the_load_and_later_ones_do_not() -> None:
    run = played(load={"requests_per_hour": 60})
    times = list(run.tallies.ttft_s)
    assert 60 < max(times) < 240
    assert sorted(times)[len(times) // 2] < 2


def test_hot_replicas_are_there_from_the_start_and_are_handed_over_before_their_walltime() -> None:
    model = {"resources": {**NEEDS, "walltime": "1h"}, "scale": {"hot": 1, "max": 2}}
    run = played(models={"m": model}, duration="6h", load={"requests_per_hour": 60})
    assert run.tallies.hand_overs >= 5
    assert run.tallies.late_ends == 0
    assert not run.tallies.failures


def test_nothing_is_asked_and_nothing_is_started() -> None:
    found = figures(played(load={"requests_per_hour": 0}))
    assert found["jobs"] == {"submitted": 0}
    assert found["use"]["node_hours"] == 0
    assert found["use"]["waste"] is None


def test_a_replica_that_is_idle_gives_its_job_back(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("at_s,model,user,prompt_tokens,answer_tokens\n10,m,anna,100,50\n", encoding="utf-8")
    model = {"resources": NEEDS, "scale": {"max": 1, "idle_timeout": "10m"}}
    run = played(models={"m": model}, load={"trace": str(path)})
    assert run.tallies.done == 1
    node_hours = figures(run)["use"]["node_hours"]
    assert 10 / 60 < node_hours < 20 / 60


def test_small_replicas_share_whole_nodes() -> None:
    model = {"count": 4, "resources": {**NEEDS, "gpus_per_node": 1, "cpus_per_node": 4}, "scale": {"hot": 1, "max": 1}}
    run = played(models={"m": model}, clusters={"here": {"nodes": 8, "scheduler": ALONE}})
    found = figures(run)
    assert found["jobs"]["submitted"] == 1
    assert found["use"]["waste"] < 0.02


def test_the_older_rule_stays_with_the_first_cluster_on_which_a_model_runs() -> None:
    model = {"resources": NEEDS, "scale": {"max": 1, "max_in_flight": 1}, "engine": {"load": {"usual": 30, "late": 30}}}
    load = {"requests_per_hour": 1200, "patience": "1h"}
    older = figures(played("older", clusters=TWO, models={"m": model}, load=load))
    first = figures(played("first", clusters=TWO, models={"m": model}, load=load))
    assert older["clusters"]["far"]["node_hours"] == 0
    assert first["clusters"]["far"]["node_hours"] > 0


def test_a_silent_scheduler_is_left_and_the_other_cluster_takes_over() -> None:
    clusters = {**TWO, "near": {**TWO["near"], "silent": [{"after": 0, "lasts": "3h"}]}}
    found = figures(played(clusters=clusters))
    assert found["requests"]["answered"] > 100
    assert found["clusters"]["near"]["node_hours"] == 0


def test_requests_at_a_node_that_fails_are_lost_or_tried_elsewhere_and_the_replica_is_replaced() -> None:
    clusters = {"here": {"nodes": 4, "scheduler": ALONE, "node_failures": {"every": "2h", "repair": "10m"}}}
    run = played(clusters=clusters, load={"requests_per_hour": 600}, duration="6h")
    assert run.tallies.jobs["node_fail"] > 0
    assert run.tallies.done > 2500


def test_engines_that_fail_to_load_are_tried_again() -> None:
    engine = {"load": {"usual": 60, "late": 90}, "fails": 0.5}
    model = {"resources": {**NEEDS, "walltime": "1h"}, "scale": {"hot": 1, "max": 2}, "engine": engine}
    run = played(models={"m": model}, duration="6h")
    assert run.tallies.replicas["failed"] > 0
    assert run.tallies.done > 300


def test_a_trace_is_played_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(
        "at_s,model,user,prompt_tokens,answer_tokens\n10,m,anna,100,50\n20,m,bert,100,50\n", encoding="utf-8"
    )
    run = played(load={"trace": str(path)})
    assert (run.tallies.asked, run.tallies.done, run.tallies.tokens) == (2, 2, 300)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("at_s,model\n", "line 1: the column 'user' is missing"),
        ("at_s,model,user,prompt_tokens,answer_tokens\n1,x,u,1,1\n", "line 2: model: 'x' is not a model"),
        ("at_s,model,user,prompt_tokens,answer_tokens\nsoon,m,u,1,1\n", "line 2: at_s: 'soon' is not allowed"),
        ("at_s,model,user,prompt_tokens,answer_tokens\n5,m,u,1,1\n4,m,u,1,1\n", "line 3: at_s: rows must be in"),
    ],
)
def test_a_fault_in_a_trace_is_named_with_its_line(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        list(read_trace(path, {"m"}))
    assert words in caught.value.message


def test_an_unknown_policy_is_refused() -> None:
    with pytest.raises(ConfigError, match="'best' is not a policy; allowed: first, older, soonest-said"):
        Simulation(scenario(), "best")


def test_the_table_has_a_column_for_each_policy() -> None:
    columns, rows = table([figures(played(policy)) for policy in POLICIES])
    assert columns == ["figure", *POLICIES]
    assert all(len(row) == len(columns) for row in rows)
