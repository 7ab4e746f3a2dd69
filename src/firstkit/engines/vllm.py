"""vLLM: Hugging Face folders, on GPUs and on CPUs."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from firstkit.engines.engine import Facts, Habits, Launch, Place, ReplicaSpec
from firstkit.engines.launching import (
    check_options,
    json_at,
    launch_of,
    option,
    tokens_of,
    version_of,
    weights_of,
)
from firstkit.errors import ConfigError

OWNED = (
    "host",
    "port",
    "uds",
    "api-key",
    "served-model-name",
    "model",
    "model-tag",
    "root-path",
    "middleware",
    "config",
    "nnodes",
    "node-rank",
    "master-addr",
    "master-port",
    "headless",
)
"""Options that FIRST sets, or that would open the engine to others than the pilot."""
LOGS_PROMPTS = ("enable-log-requests", "enable-log-outputs", "log-config-file")
_TAKEN = {
    **dict.fromkeys(OWNED, "FIRST sets it"),
    **dict.fromkeys(LOGS_PROMPTS, "it would write prompts to the log"),
}
METRICS = {
    "running": "vllm:num_requests_running",
    "waiting": "vllm:num_requests_waiting",
    "cache_use": "vllm:kv_cache_usage_perc",
}
TENSOR, PIPELINE = "tensor-parallel-size", "pipeline-parallel-size"
TALKS = frozenset({"chat", "completions", "responses", "messages", "count_tokens"})
POOLS = frozenset({"embeddings", "score", "rerank"})
RANKS = frozenset({"score", "rerank"})
HEARS = frozenset({"transcriptions", "translations"})
_BY_TASK = {
    "embed": POOLS,
    "embedding": POOLS,
    "score": RANKS,
    "classify": RANKS,
    "transcription": HEARS,
}
"""What older versions are told by ``task``."""


class Vllm:
    """``args`` are vLLM's own options without the dashes (``max-model-len: 32768``, ``enforce-eager: true``); as many
    sequences run at a time as ``scale.max_in_flight`` says, unless ``max-num-seqs`` says otherwise.

    What a model can do is in its folder, which only the cluster sees. So it counts as one that talks, unless its
    options tell of something else (``runner: pooling``, ``convert: embed``), and the operator says what no option
    tells: ``capabilities: [transcriptions, translations]`` for Whisper.

    On several nodes the model is split by tensors over the GPUs of a node and by layers over the nodes, unless its
    options say otherwise.
    """

    kind = "vllm"
    habits = Habits()
    takes_socket = True
    metric_names = METRICS
    facts_paths: tuple[str, ...] = ("/v1/models", "/version")

    def check(self, replica: ReplicaSpec) -> None:
        weights_of(replica)
        check_options(replica, _TAKEN, "max-model-len", ("ssl-", "allowed-"), "only the pilot talks to the engine")
        if replica.needs.nodes > 1:
            _check_split(replica)

    def launch(self, replica: ReplicaSpec, place: Place) -> Launch:
        argv = [*_program(replica, place), "--served-model-name", replica.model]
        if place.rank == 0:
            argv += ["--uds", place.address.socket or ""]
        # FIRST has a log of requests; in this one the pilot's own would hide what went wrong.
        usual = {"max-num-seqs": replica.max_in_flight, "disable-uvicorn-access-log": True, **_split(replica, place)}
        for name, value in {**usual, **replica.args}.items():
            argv += option(name, value)
        return launch_of(replica, [*argv, *_among_ranks(place)], _environment(place))

    def capabilities(self, replica: ReplicaSpec) -> frozenset[str]:
        return frozenset(replica.engine.capabilities) or _told_by(replica.args)

    def health_path(self, replica: ReplicaSpec) -> str:  # noqa: ARG002 - the same for all
        return "/health"

    def read_facts(self, answers: Mapping[str, bytes]) -> Facts:
        """Out of /v1/models: max_model_len of the first."""
        length = json_at(answers, "/v1/models", "data", 0, "max_model_len")
        return Facts(tokens_of(length), version_of("vLLM", json_at(answers, "/version", "version")))


def _program(replica: ReplicaSpec, place: Place) -> list[str]:
    engine, weights = replica.engine, weights_of(replica)
    if engine.binary:
        return [engine.binary, "serve", weights]
    python = engine.python or sys.executable
    if place.rank:  # the server's module does not know --headless, though it takes it
        return [python, "-m", "vllm.entrypoints.cli.main", "serve", weights]
    # The module and not the command: the latter dies in the CPU build, for want of its own metadata.
    return [python, "-m", "vllm.entrypoints.openai.api_server", "--model", weights]


def _split(replica: ReplicaSpec, place: Place) -> dict[str, Any]:
    """The sizes of the groups among which the model is split, so that they fill all GPUs of all nodes."""
    if place.ranks == 1:
        return {}
    gpus = place.ranks * max(1, replica.needs.gpus_per_node)
    tensor = replica.args.get(TENSOR, gpus // replica.args.get(PIPELINE, place.ranks))
    return {TENSOR: tensor, PIPELINE: gpus // tensor, "distributed-executor-backend": "mp"}


def _check_split(replica: ReplicaSpec) -> None:
    """Raise ConfigError for sizes that cannot fill the nodes, which vLLM itself would say late or not at all."""
    nodes, where = replica.needs.nodes, f"{replica.deployment}: args"
    gpus = nodes * max(1, replica.needs.gpus_per_node)
    for name in replica.args:
        if name.startswith("data-parallel"):
            raise ConfigError(f"{where}.{name}: not for a replica of several nodes; start more replicas instead")
    sizes = {name: replica.args[name] for name in (TENSOR, PIPELINE) if name in replica.args}
    for name, size in sizes.items():
        if type(size) is not int or size < 1 or gpus % size:
            raise ConfigError(f"{where}.{name}: {size!r} does not divide the {gpus} GPUs of {nodes} nodes")
    if len(sizes) == 2 and sizes[TENSOR] * sizes[PIPELINE] != gpus:
        raise ConfigError(f"{where}.{PIPELINE}: times {TENSOR} it must be the {gpus} GPUs of {nodes} nodes")


def _among_ranks(place: Place) -> list[str]:
    """vLLM's own options for several nodes: its processes meet at rank 0, and only that one has a server."""
    if place.ranks == 1:
        return []
    where = ["--master-addr", place.head.address, "--master-port", str(place.head.port)]
    among = ["--nnodes", str(place.ranks), "--node-rank", str(place.rank), *where]
    return [*among, "--headless"] if place.rank else among


def _told_by(args: Mapping[str, Any]) -> frozenset[str]:
    """What the options tell of the model."""
    if args.get("convert") == "classify":
        return RANKS
    if args.get("runner") == "pooling" or args.get("convert") == "embed":
        return POOLS
    return _BY_TASK.get(str(args.get("task")), TALKS)


def _environment(place: Place) -> dict[str, str]:
    """Nothing is fetched or reported; on CPUs the threads stay on the cores of this replica."""
    env = {"TRANSFORMERS_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    if place.ranks > 1:
        env["VLLM_HOST_IP"] = place.host_address
    if place.cpus:
        env["OMP_NUM_THREADS"] = str(len(place.cpus))
        if not place.gpus and place.is_bound:
            env["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(map(str, place.cpus))
    return env
