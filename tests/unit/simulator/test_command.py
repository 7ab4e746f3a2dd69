"""``first simulate``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from firstkit.cli.commands import build
from firstkit.simulator import plots
from unit.simulator.support import data


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "test.yaml"
    path.write_text(yaml.safe_dump(data()), encoding="utf-8")
    return path


def run(*words: object) -> tuple[int, str, str]:
    found = CliRunner().invoke(build(["simulate", "config"]), ["simulate", *map(str, words)])
    return found.exit_code, found.stdout, found.stderr


def test_it_prints_a_table_with_a_column_for_each_policy(path: Path) -> None:
    status, out, _ = run(path, "--policy", "first", "--policy", "older")
    assert status == 0
    assert out.splitlines()[0] == "figure\tfirst\tolder"


def test_it_prints_json_that_is_the_same_each_time(path: Path) -> None:
    first, second = run(path, "--json")[1], run(path, "--json")[1]
    assert first == second
    assert json.loads(first)["requests"]["answered"] > 0
    assert run(path, "--json", "--seed", 7)[1] != first


def test_it_writes_figures_and_says_how_to_get_plots(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plots, "can_plot", lambda: False)
    status, _, errors = run(path, "--out", tmp_path / "out")
    assert status == 0
    assert "pip install firstkit[simulator]" in errors
    assert json.loads((tmp_path / "out" / "test-first.json").read_text(encoding="utf-8"))["policy"] == "first"


@pytest.mark.skipif(not plots.can_plot(), reason="matplotlib is not installed")
def test_it_draws_plots(path: Path, tmp_path: Path) -> None:
    status, _, errors = run(path, "--out", tmp_path / "out")
    assert status == 0, errors
    assert len(list((tmp_path / "out").glob("*.svg"))) == 8


def test_what_is_wrong_ends_it_with_a_sentence(path: Path, tmp_path: Path) -> None:
    status, _, errors = run(path, "--policy", "best")
    assert (status, "'best' is not a policy" in errors) == (1, True)
    status, _, errors = run(tmp_path / "none.yaml")
    assert (status, "cannot be read" in errors) == (1, True)
