"""Scenario files: what is wrong is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from firstkit.errors import ConfigError
from firstkit.simulator.scenario import clusters_of, load_scenario, models_of, parse_scenario
from unit.simulator.support import data, scenario

SHIPPED = sorted((Path(__file__).parents[3] / "examples" / "scenarios").glob("*.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_scenarios_are_valid(path: Path) -> None:
    assert load_scenario(path).name == path.stem


def test_the_shipped_scenarios_are_there() -> None:
    assert [path.stem for path in SHIPPED] == ["federation", "hundred", "outage", "packing", "small"]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"duration": "soon"}, "duration: 'soon' is not allowed"),
        ({"nonsense": 1}, "nonsense: unknown key"),
        ({"clusters": {"here": {}}}, "clusters.here.nodes: missing"),
        ({"clusters": {"here": {"nodes": 0}}}, "clusters.here.nodes: 0 is not allowed"),
        ({"models": {"m": {"clusters": ["there"]}}}, "models.m.clusters: 'there' is not a cluster; allowed: here"),
        ({"models": {"m": {"resources": {"gpus_per_node": 8}}}}, "models.m.resources.gpus_per_node: 8 is more than"),
        ({"load": {"prompt": {"usual": 9, "late": 3}}}, "late: 3 is less than usual: 9"),
        ({"models": {"m": {"engine": {"tokens_per_s": 5, "full_tokens_per_s": 6}}}}, "full_tokens_per_s"),
    ],
)
def test_a_fault_is_named_with_its_field(values: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_scenario(data(**values), "file.yaml")
    assert words in caught.value.message
    assert caught.value.message.startswith("file.yaml is not valid:")


def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "list.yaml"
    path.write_text("- a\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="must be a mapping"):
        load_scenario(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_scenario(tmp_path / "none.yaml")


def test_groups_stand_for_many_clusters_and_models() -> None:
    found = scenario(
        clusters={"site": {"count": 4, "nodes": 2}, "other": {"nodes": 1}},
        models={"m": {"count": 3, "each_on": 2, "clusters": ["site"]}, "n": {}},
    )
    assert list(clusters_of(found)) == ["site-0", "site-1", "site-2", "site-3", "other"]
    where = {model.name: [one.cluster for one in model.deployments] for model in models_of(found)}
    assert where["m-0"] == ["site-0", "site-1"]
    assert where["m-1"] == ["site-2", "site-3"]
    assert where["n"] == ["site-0", "site-1", "site-2", "site-3", "other"]


def test_popularity_falls_with_the_place_in_the_file() -> None:
    found = models_of(scenario(models={"m": {"count": 3}, "rare": {"popularity": 0.01}}, load={"zipf": 1.0}))
    assert [round(model.weight, 3) for model in found] == [1.0, 0.5, 0.333, 0.01]
