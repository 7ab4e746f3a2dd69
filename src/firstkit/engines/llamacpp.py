"""llama.cpp: GGUF weights, by the wheel ``xllamacpp`` with a launcher of ours, or by a ``llama-server`` binary."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any, Optional

from firstkit.engines.engine import Facts, Habits, Launch, Place, ReplicaSpec
from firstkit.engines.launching import (
    is_hugging_face_folder,
    json_at,
    launch_of,
    option,
    self_path,
    tokens_of,
    version_of,
    weights_of,
)
from firstkit.errors import ConfigError

DEFAULT_CONTEXT = 4096
METRICS = {"running": "llamacpp:requests_processing", "waiting": "llamacpp:requests_deferred"}
LEAST_BATCH = 2048
"""What llama.cpp takes by itself."""
REFUSALS = (b"is too large to process", b" input is not supported")
"""Texts that are too long for an embedding, media for a model that sees none: it answers 500 to both."""
WHEEL = "xllamacpp"
POOLINGS = ("mean", "cls", "last", "none", "rank")
TALKS = frozenset({"chat", "completions", "messages", "count_tokens"})
"""Not ``responses``: it has them, in a form that clients do not take (no sequence numbers, no reason for an early end),
so they are answered in translation."""
RANKS = frozenset({"rerank"})
"""A model that only tells how well a text answers a question: with ``pooling: rank``."""
_NUMBERS = ("ctx-size", "threads", "n-gpu-layers", "batch-size", "ubatch-size")
ALLOWED = (*_NUMBERS, "embeddings", "pooling", "chat-template-file")


class LlamaCpp:
    """Options under ``args``: ctx-size (tokens that *one* request may have; llama.cpp gets it times the requests at a
    time, by which it divides), threads, n-gpu-layers, batch-size, ubatch-size, embeddings (true: also /v1/embeddings,
    for texts of up to ubatch-size tokens, by default ctx-size; it makes long prompts slower), pooling,
    chat-template-file. With a model that is for embeddings alone the operator says so: ``capabilities:
    [embeddings]``."""

    kind = "llamacpp"
    # It says keep-alive and closes after a stream all the same.
    habits = Habits(closes_after_stream=True, refusals=REFUSALS)
    takes_socket = True
    metric_names = METRICS
    facts_paths: tuple[str, ...] = ("/props", "/v1/models")

    def check(self, replica: ReplicaSpec) -> None:
        weights = weights_of(replica)
        if is_hugging_face_folder(weights):
            raise ConfigError(
                f"{replica.deployment}: weights: {weights} is a Hugging Face folder: it needs an engine of kind vllm; "
                "llamacpp takes one .gguf file"
            )
        for name, value in replica.args.items():
            fault = _fault(name, value)
            if fault is not None:
                raise ConfigError(f"{replica.deployment}: args.{name}: {value!r} is not allowed: {fault}")

    def launch(self, replica: ReplicaSpec, place: Place) -> Launch:
        weights = weights_of(replica)
        if not os.path.isfile(weights):
            raise ConfigError(f"{replica.deployment}: weights: there is no file {weights}")
        engine, socket = replica.engine, place.address.socket or ""
        if engine.binary:
            program = [engine.binary, "--host", socket, "--metrics"]
        else:
            program = [engine.python or sys.executable, self_path(), "llamacpp-server", "--socket", socket]
        argv = [*program, "--model", weights, "--alias", replica.model, "--parallel", str(replica.max_in_flight)]
        for name, value in self._options(replica, place).items():
            if value is not False:
                argv += option(name, value)
        return launch_of(replica, argv, {"LLAMA_OFFLINE": "1", "LLAMA_ARG_OFFLINE": "1"})

    def _options(self, replica: ReplicaSpec, place: Place) -> dict[str, Any]:
        options: dict[str, Any] = {"ctx-size": DEFAULT_CONTEXT, **replica.args}
        if options.get("embeddings"):
            options.setdefault("pooling", "mean")
            # A text is read in one piece, or not at all.
            options.setdefault("ubatch-size", options["ctx-size"])
            options.setdefault("batch-size", max(options["ubatch-size"], LEAST_BATCH))
        options["ctx-size"] *= replica.max_in_flight
        if place.cpus:
            options.setdefault("threads", len(place.cpus))
        return options

    def capabilities(self, replica: ReplicaSpec) -> frozenset[str]:
        if replica.engine.capabilities:
            return frozenset(replica.engine.capabilities)
        if not replica.args.get("embeddings", False):
            return TALKS
        return RANKS if replica.args.get("pooling") == "rank" else TALKS | {"embeddings"}

    def health_path(self, replica: ReplicaSpec) -> str:  # noqa: ARG002 - the same for all
        return "/health"

    def read_facts(self, answers: Mapping[str, bytes]) -> Facts:
        """Out of /props: its n_ctx is what one request may have. Of the wheel's build only our launcher knows what it
        is, and says so as a tag of the model."""
        context = json_at(answers, "/props", "default_generation_settings", "n_ctx")
        tag = json_at(answers, "/v1/models", "data", 0, "tags", 0)
        if isinstance(tag, str) and tag.startswith(WHEEL):
            return Facts(tokens_of(context), version_of(WHEEL, tag[len(WHEEL) :].strip()))
        return Facts(tokens_of(context), version_of("llama.cpp", json_at(answers, "/props", "build_info")))


def _fault(name: str, value: Any) -> Optional[str]:
    """What is wrong with one option; None: nothing."""
    if name not in ALLOWED:
        return f"unknown option; llamacpp knows {', '.join(ALLOWED)}"
    if name in _NUMBERS:
        least = 0 if name == "n-gpu-layers" else 1
        return None if type(value) is int and value >= least else f"a whole number from {least} on is needed"
    if name == "embeddings":
        return None if isinstance(value, bool) else "true or false is needed"
    if name == "pooling":
        return None if value in POOLINGS else f"one of {', '.join(POOLINGS)} is needed"
    return None if isinstance(value, str) and value else "a path is needed"
