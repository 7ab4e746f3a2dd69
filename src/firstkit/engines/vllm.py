"""vLLM: Hugging Face folders, on GPUs and on CPUs."""

from __future__ import annotations

import json
import re
import sys
from typing import Optional

from firstkit.engines.engine import Facts, Habits, Launch, Place, ReplicaSpec
from firstkit.engines.launching import launch_of, option, weights_of
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
)
"""Options that FIRST sets, or that would open the engine to others than the pilot."""
LOGS_PROMPTS = ("enable-log-requests", "enable-log-outputs", "log-config-file")
METRICS = {
    "running": "vllm:num_requests_running",
    "waiting": "vllm:num_requests_waiting",
    "cache_use": "vllm:kv_cache_usage_perc",
}
_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*\Z")


class Vllm:
    """``args`` are vLLM's own options without the dashes (``max-model-len: 32768``, ``enforce-eager: true``); as many
    sequences run at a time as ``scale.max_in_flight`` says, unless ``max-num-seqs`` says otherwise."""

    kind = "vllm"
    habits = Habits()
    takes_socket = True
    metric_names = METRICS
    facts_path: Optional[str] = "/v1/models"

    def check(self, replica: ReplicaSpec) -> None:
        weights_of(replica)
        for name in replica.args:
            if (fault := _fault(name)) is not None:
                raise ConfigError(f"{replica.deployment}: args.{name}: {fault}")

    def launch(self, replica: ReplicaSpec, place: Place) -> Launch:
        engine, weights = replica.engine, weights_of(replica)
        if engine.binary:
            argv = [engine.binary, "serve", weights]
        else:
            # The module and not the command: the latter dies in the CPU build, for want of its own metadata.
            python = engine.python or sys.executable
            argv = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", weights]
        argv += ["--served-model-name", replica.model, "--uds", place.address.socket or ""]
        for name, value in {"max-num-seqs": replica.max_in_flight, **replica.args}.items():
            argv += option(name, value)
        return launch_of(replica, argv, _environment(place))

    def capabilities(self, replica: ReplicaSpec) -> frozenset[str]:
        if replica.engine.capabilities:
            return frozenset(replica.engine.capabilities)
        embeds = replica.args.get("runner") == "pooling" or replica.args.get("task") in ("embed", "embedding")
        return frozenset({"embeddings"} if embeds else {"chat", "completions"})

    def health_path(self, replica: ReplicaSpec) -> str:  # noqa: ARG002 - the same for all
        return "/health"

    def read_facts(self, body: bytes) -> Facts:
        """Out of /v1/models: max_model_len of the first."""
        try:
            length = json.loads(body)["data"][0]["max_model_len"]
        except (ValueError, KeyError, IndexError, TypeError, RecursionError):
            return Facts()
        return Facts(context_length=length if type(length) is int and length > 0 else None)


def _environment(place: Place) -> dict[str, str]:
    """Nothing is fetched or reported; on CPUs the threads stay on the cores of this replica."""
    env = {"TRANSFORMERS_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    if place.cpus:
        env["OMP_NUM_THREADS"] = str(len(place.cpus))
        if not place.gpus and place.is_bound:
            env["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(map(str, place.cpus))
    return env


def _fault(name: str) -> Optional[str]:
    if not _NAME.match(name):
        return "must be the name of an option of vLLM without the dashes, such as max-model-len"
    # vLLM takes any beginning of a name for the whole.
    for taken in (*OWNED, *LOGS_PROMPTS):
        if taken.startswith(name.removeprefix("no-")):
            reason = "it would write prompts to the log" if taken in LOGS_PROMPTS else "FIRST sets it"
            return f"the option '{taken}' is not allowed: {reason}"
    if name.startswith(("ssl-", "allowed-")):
        return "is not allowed: only the pilot talks to the engine"
    return None
