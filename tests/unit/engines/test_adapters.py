"""The commands, capabilities and facts of the engines that there are."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from firstkit.engines.engine import Address, EngineSpec, Facts, Head, Place, ReplicaSpec
from firstkit.engines.registry import KINDS, OF_FILES, engine_of
from firstkit.errors import ConfigError
from firstkit.schedulers.scheduler import Resources

KEY = "abcdefgh234567"
PORT = Place("/job/replicas/rep-1", (0, 1), (), Address(port=8123), KEY, "/job/replicas/rep-1/engine.key")
SOCKET = Place("/job/replicas/rep-1", (0, 1), (), Address(socket="engine.sock"))
WEIGHTS = "/models/m"
TALKS = {"chat", "completions", "messages", "count_tokens"}


def replica(kind: str, args: dict[str, Any] | None = None, weights: str | None = WEIGHTS, **engine: Any) -> ReplicaSpec:
    return ReplicaSpec("rep-1", "meta/m", "meta/m@here", EngineSpec(kind, **engine), weights, args=args or {})


def capabilities(kind: str, *declared: str, **args: Any) -> set[str]:
    spec = replica(kind, {name.replace("_", "-"): value for name, value in args.items()}, capabilities=declared)
    return set(engine_of(kind).capabilities(spec))


def refusal(spec: ReplicaSpec) -> str:
    with pytest.raises(ConfigError) as caught:
        engine_of(spec.engine).check(spec)
    return caught.value.message


# -- all -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_operator_declares_is_what_there_is(kind: str) -> None:
    declared = ("embeddings", "tasks/classify")
    assert capabilities(kind, *declared, embeddings=True, runner="pooling") == set(declared)


@pytest.mark.parametrize("kind", OF_FILES)
def test_weights_are_needed(kind: str) -> None:
    assert "weights: the path of the weights is needed" in refusal(replica(kind, weights=None))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"{}", b"null", b"\xff", b'{"data":[7]}', b"[" * 100_000])
def test_facts_of_garbage_are_none(kind: str, body: bytes) -> None:
    adapter = engine_of(EngineSpec(kind, argv=("x",)))
    assert adapter.read_facts({}) == Facts()
    assert adapter.read_facts(dict.fromkeys(adapter.facts_paths, body)) == Facts()


@pytest.mark.parametrize(
    ("kind", "answers", "facts"),
    [
        (
            "llamacpp",
            {"/props": {"default_generation_settings": {"n_ctx": 1024}, "build_info": "b11549"}},
            Facts(1024, "llama.cpp b11549"),
        ),
        ("llamacpp", {"/props": {"build_info": "b1"}}, Facts(None, "llama.cpp b1")),
        (
            "llamacpp",
            {"/props": {"build_info": "b0-unknown"}, "/v1/models": {"data": [{"tags": ["xllamacpp 2026.10"]}]}},
            Facts(None, "xllamacpp 2026.10"),
        ),
        (
            "llamacpp",
            {"/props": {"build_info": "b1"}, "/v1/models": {"data": [{"tags": []}]}},
            Facts(None, "llama.cpp b1"),
        ),
        (
            "vllm",
            {"/v1/models": {"data": [{"id": "m", "max_model_len": 2048}]}, "/version": {"version": "0.32.0+cpu"}},
            Facts(2048, "vLLM 0.32.0+cpu"),
        ),
        ("vllm", {"/version": {"version": "0.32.0"}}, Facts(None, "vLLM 0.32.0")),
        ("vllm", {"/v1/models": {"data": [{"max_model_len": 2048}]}, "/version": {"version": 7}}, Facts(2048, None)),
        ("vllm", {"/v1/models": {"data": [{"max_model_len": True}]}, "/version": {"version": ""}}, Facts()),
        (
            "sglang",
            {"/v1/models": {"data": [{"max_model_len": 2048}]}, "/server_info": {"version": "0.5.23", "tp_size": 1}},
            Facts(2048, "SGLang 0.5.23"),
        ),
    ],
)
def test_facts(kind: str, answers: dict[str, Any], facts: Facts) -> None:
    adapter = engine_of(kind)
    assert set(answers) <= set(adapter.facts_paths)
    assert adapter.read_facts({path: json.dumps(answer).encode() for path, answer in answers.items()}) == facts


# -- vLLM ----------------------------------------------------------------------------------------------------------

POOLS = {"embeddings", "score", "rerank"}


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ({}, TALKS | {"responses"}),
        ({"runner": "generate"}, TALKS | {"responses"}),
        ({"runner": "auto", "convert": "auto"}, TALKS | {"responses"}),
        ({"runner": "pooling"}, POOLS),
        ({"runner": "pooling", "convert": "embed"}, POOLS),
        ({"convert": "embed"}, POOLS),
        ({"runner": "pooling", "convert": "classify"}, {"score", "rerank"}),
        ({"task": "embed"}, POOLS),
        ({"task": "score"}, {"score", "rerank"}),
        ({"task": "transcription"}, {"transcriptions", "translations"}),
        ({"task": "generate"}, TALKS | {"responses"}),
    ],
)
def test_options_tell_what_a_model_of_vllm_can_do(args: dict[str, Any], expected: set[str]) -> None:
    assert capabilities("vllm", **args) == expected


def test_the_command_of_vllm() -> None:
    args = {"max-model-len": 2048, "enforce-eager": True, "enable-prefix-caching": False}
    spec = replica("vllm", args, python="/opt/vllm/bin/python", env={"A": "b"})
    engine_of("vllm").check(spec)
    launch = engine_of("vllm").launch(spec, SOCKET)
    assert launch.argv == [
        "/opt/vllm/bin/python", "-m", "vllm.entrypoints.openai.api_server", "--model", WEIGHTS,
        "--served-model-name", "meta/m", "--uds", "engine.sock", "--max-num-seqs", "8",
        "--disable-uvicorn-access-log", "--max-model-len", "2048", "--enforce-eager", "--no-enable-prefix-caching",
    ]  # fmt: skip
    assert launch.env["A"] == "b"
    assert launch.env["VLLM_CPU_OMP_THREADS_BIND"] == "0,1"
    assert launch.files == {}
    by_name = engine_of("vllm").launch(replica("vllm", {"max-num-seqs": 2}, binary="vllm"), SOCKET)
    assert by_name.argv[:3] == ["vllm", "serve", WEIGHTS]
    assert by_name.argv[-3:] == ["--max-num-seqs", "2", "--disable-uvicorn-access-log"]


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("host", "FIRST sets it"),
        ("api-key", "FIRST sets it"),
        ("api-k", "FIRST sets it"),
        ("config", "FIRST sets it"),
        ("enable-log-requests", "prompts to the log"),
        ("enable-log-req", "prompts to the log"),
        ("no-host", "FIRST sets it"),
        ("ssl-keyfile", "only the pilot"),
        ("allowed-local-media-path", "only the pilot"),
        ("--port", "without the dashes"),
        ("max_model_len", "without the dashes"),
        ("", "without the dashes"),
    ],
)
def test_options_that_vllm_is_not_given(name: str, why: str) -> None:
    assert why in refusal(replica("vllm", {name: "x"}))


HEAD = Head("10.1.0.1", 40123)


def ranks_of(spec: ReplicaSpec, nodes: int = 2, gpus: int = 4) -> list[Any]:
    """The launches of all ranks, rank 0 first."""
    spec = replace(spec, needs=Resources(nodes=nodes, gpus_per_node=gpus))
    engine = engine_of(spec.engine)
    engine.check(spec)
    place = replace(SOCKET, gpus=("0", "1", "2", "3")[:gpus], ranks=nodes, head=HEAD)
    return [engine.launch(spec, replace(place, rank=rank, host_address=f"10.1.0.{rank + 1}")) for rank in range(nodes)]


def values_of(argv: list[str], *names: str) -> list[str]:
    return [argv[argv.index(f"--{name}") + 1] for name in names]


def test_ranks_of_vllm_meet_at_the_first_and_fill_all_gpus() -> None:
    first, second = ranks_of(replica("vllm", {"max-model-len": 2048}, python="/opt/vllm/bin/python"))
    assert first.argv[:5] == [
        "/opt/vllm/bin/python", "-m", "vllm.entrypoints.openai.api_server", "--model", WEIGHTS
    ]  # fmt: skip
    assert second.argv[:5] == ["/opt/vllm/bin/python", "-m", "vllm.entrypoints.cli.main", "serve", WEIGHTS]
    for rank, launch in enumerate((first, second)):
        assert values_of(launch.argv, "nnodes", "node-rank") == ["2", str(rank)]
        assert values_of(launch.argv, "master-addr", "master-port") == ["10.1.0.1", "40123"]
        assert values_of(launch.argv, "tensor-parallel-size", "pipeline-parallel-size") == ["4", "2"]
        assert values_of(launch.argv, "served-model-name", "max-model-len") == ["meta/m", "2048"]
        assert launch.env["VLLM_HOST_IP"] == f"10.1.0.{rank + 1}"
    assert ("--headless" in first.argv, "--uds" in first.argv) == (False, True)
    assert ("--headless" in second.argv, "--uds" in second.argv) == (True, False)
    by_name = ranks_of(replica("vllm", binary="vllm"))
    assert [launch.argv[:3] for launch in by_name] == [["vllm", "serve", WEIGHTS]] * 2


@pytest.mark.parametrize(
    ("args", "sizes"),
    [
        ({"tensor-parallel-size": 8}, ["8", "1"]),
        ({"pipeline-parallel-size": 4}, ["2", "4"]),
        ({"pipeline-parallel-size": 1}, ["8", "1"]),
        ({"tensor-parallel-size": 2, "pipeline-parallel-size": 4}, ["2", "4"]),
    ],
)
def test_a_size_that_is_given_decides_the_other(args: dict[str, Any], sizes: list[str]) -> None:
    for launch in ranks_of(replica("vllm", args)):
        assert values_of(launch.argv, "tensor-parallel-size", "pipeline-parallel-size") == sizes
        assert launch.argv.count("--tensor-parallel-size") == launch.argv.count("--pipeline-parallel-size") == 1


@pytest.mark.parametrize(
    ("args", "why"),
    [
        ({"tensor-parallel-size": 3}, "args.tensor-parallel-size: 3 does not divide the 8 GPUs of 2 nodes"),
        ({"pipeline-parallel-size": "2"}, "args.pipeline-parallel-size: '2' does not divide"),
        ({"tensor-parallel-size": 2, "pipeline-parallel-size": 2}, "it must be the 8 GPUs of 2 nodes"),
        ({"data-parallel-size": 2}, "args.data-parallel-size: not for a replica of several nodes"),
    ],
)
def test_sizes_that_do_not_fill_the_nodes_are_refused(args: dict[str, Any], why: str) -> None:
    assert why in refusal(replace(replica("vllm", args), needs=Resources(nodes=2, gpus_per_node=4)))


@pytest.mark.parametrize("name", ["nnodes", "node-rank", "master-addr", "master-port", "headless", "n"])
def test_who_is_which_rank_is_not_for_options_to_say(name: str) -> None:
    assert "FIRST sets it" in refusal(replica("vllm", {name: 2}))


def test_a_command_is_told_its_rank() -> None:
    argv = ("x", "{rank}/{ranks}", "{head_address}:{head_port}", "{socket}")
    first, second = ranks_of(replica("command", argv=argv))
    assert first.argv == ["x", "0/2", "10.1.0.1:40123", "engine.sock"]
    assert second.argv == ["x", "1/2", "10.1.0.1:40123", "engine.sock"]
    alone = engine_of(EngineSpec("command", argv=argv)).launch(replica("command", argv=argv), SOCKET)
    assert alone.argv == ["x", "0/1", "127.0.0.1:0", "engine.sock"]


def test_a_command_on_several_nodes_needs_its_rank() -> None:
    spec = replace(replica("command", argv=("x", "{socket}")), needs=Resources(nodes=2))
    assert "engine.argv: {rank} is needed on several nodes" in refusal(spec)


# -- SGLang --------------------------------------------------------------------------------------------------------


def test_the_command_of_sglang() -> None:
    args = {"context-length": 2048, "tp-size": 2, "enable-torch-compile": True, "disable-radix-cache": False}
    spec = replica("sglang", args)
    adapter = engine_of("sglang")
    adapter.check(spec)
    assert not adapter.takes_socket
    launch = adapter.launch(spec, PORT)
    assert launch.argv == [
        sys.executable, "-m", "sglang.launch_server", "--model-path", WEIGHTS, "--served-model-name", "meta/m",
        "--host", "127.0.0.1", "--port", "8123", "--config", "/job/replicas/rep-1/sglang.yaml", "--enable-metrics",
        "--log-level", "warning", "--max-running-requests", "8", "--context-length", "2048", "--tp-size", "2",
        "--enable-torch-compile",
    ]  # fmt: skip
    assert launch.argv.count("--config") == 1
    by_name = adapter.launch(replica("sglang", {"max-running-requests": 2}, binary="/opt/bin/sglang"), PORT)
    assert by_name.argv[:4] == ["/opt/bin/sglang", "serve", "--model-path", WEIGHTS]
    assert by_name.argv[-2:] == ["--max-running-requests", "2"]


@pytest.mark.parametrize("setup", [None, "module load cuda"])
def test_the_key_of_sglang_is_in_a_file_and_nowhere_else(setup: str | None) -> None:
    for key in (KEY, "1e5", "true", "null", "0x10"):
        place = Place(PORT.folder, PORT.cpus, (), PORT.address, key, PORT.key_file)
        launch = engine_of("sglang").launch(replica("sglang", setup=setup), place)
        assert {name: yaml.safe_load(text) for name, text in launch.files.items()} == {"sglang.yaml": {"api-key": key}}
        assert key not in launch.argv
        assert key not in launch.env.values()


@pytest.mark.parametrize(("args", "expected"), [({}, TALKS | {"responses"}), ({"is-embedding": True}, {"embeddings"})])
def test_what_a_model_of_sglang_can_do(args: dict[str, Any], expected: set[str]) -> None:
    assert capabilities("sglang", **args) == expected


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("api-key", "FIRST sets it"),
        ("admin-api-key", "FIRST sets it"),
        ("model", "FIRST sets it"),
        ("model-pa", "FIRST sets it"),
        ("conf", "FIRST sets it"),
        ("log-level", "FIRST sets it"),
        ("grpc-port", "only the pilot"),
        ("tool-server", "only the pilot"),
        ("ssl-certfile", "others than the pilot"),
        ("log-requests", "keep prompts"),
        ("log-requests-target", "keep prompts"),
        ("crash-dump-folder", "keep prompts"),
        ("export-metrics-to-file-dir", "keep prompts"),
        ("Port", "without the dashes"),
    ],
)
def test_options_that_sglang_is_not_given(name: str, why: str) -> None:
    assert why in refusal(replica("sglang", {name: "x"}))


# -- llama.cpp -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ({}, TALKS),
        ({"embeddings": False}, TALKS),
        ({"embeddings": True}, TALKS | {"embeddings"}),
        ({"embeddings": True, "pooling": "mean"}, TALKS | {"embeddings"}),
        ({"embeddings": True, "pooling": "rank"}, {"rerank"}),
    ],
)
def test_what_a_model_of_llama_cpp_can_do(args: dict[str, Any], expected: set[str]) -> None:
    assert capabilities("llamacpp", **args) == expected


def test_a_deployment_for_embeddings_alone(tmp_path: Path) -> None:
    weights = tmp_path / "minilm.gguf"
    weights.touch()
    args = {"ctx-size": 512, "embeddings": True, "pooling": "mean"}
    spec = replica("llamacpp", args, str(weights), capabilities=("embeddings",))
    adapter = engine_of("llamacpp")
    adapter.check(spec)
    assert adapter.capabilities(spec) == {"embeddings"}
    argv = adapter.launch(spec, SOCKET).argv
    assert "--embeddings" in argv
    assert argv[argv.index("--ctx-size") + 1] == str(512 * spec.max_in_flight)
    assert argv[argv.index("--pooling") + 1] == "mean"
    assert argv[argv.index("--ubatch-size") + 1] == "512"
    assert argv[argv.index("--batch-size") + 1] == "2048"
    given = adapter.launch(replica("llamacpp", {**args, "ubatch-size": 4096}, str(weights)), SOCKET).argv
    assert given[given.index("--batch-size") + 1] == "4096"
