"""SGLang: Hugging Face folders, mostly on GPUs. Experimental: written by its source, of version 0.5.23, and not run."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping

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

CONFIG_FILE = "sglang.yaml"
"""SGLang reads options from it too: a key there stands in no list of processes."""
_OWNED = (
    "host", "port", "api-key", "admin-api-key", "served-model-name", "model", "model-path", "fastapi-root-path",
    "config", "enable-metrics", "log-level",
)  # fmt: skip
_OPENS = (
    "grpc-port", "grpc-mode", "smg-grpc-mode", "smg-http-sidecar-port", "grpc-http-sidecar-port", "sidecar",
    "tool-server", "kv-events-config", "load-publish-endpoint", "enable-http2", "encoder-only",
)  # fmt: skip
_LOGS_PROMPTS = ("log-requests", "crash-dump-folder", "export-metrics-to-file", "enable-response-store")
_TAKEN = {
    **dict.fromkeys(_OWNED, "FIRST sets it"),
    **dict.fromkeys(_OPENS, "only the pilot talks to the engine"),
    **dict.fromkeys(_LOGS_PROMPTS, "it would keep prompts"),
}
_KINDRED = ("ssl-", "enable-ssl-", "sidecar-", "log-level-", "log-requests-", "export-metrics-to-file-")
METRICS = {
    "running": "sglang:num_running_reqs",
    "waiting": "sglang:num_queue_reqs",
    "cache_use": "sglang:token_usage",
}
TALKS = frozenset({"chat", "completions", "responses", "messages", "count_tokens"})
POOLS = frozenset({"embeddings"})
"""Its rerank and score speak in forms of their own, so they are declared by whoever knows that his clients do too."""


class Sglang:
    """``args`` are SGLang's own options without the dashes (``context-length: 32768``, ``tp-size: 2``); as many
    requests run at a time as ``scale.max_in_flight`` says, unless ``max-running-requests`` says otherwise."""

    kind = "sglang"
    habits = Habits()
    takes_socket = False
    metric_names = METRICS
    facts_paths: tuple[str, ...] = ("/v1/models", "/server_info")

    def check(self, replica: ReplicaSpec) -> None:
        weights_of(replica)
        why = "it would keep prompts, or let others than the pilot talk to the engine"
        check_options(replica, _TAKEN, "context-length", _KINDRED, why)

    def launch(self, replica: ReplicaSpec, place: Place) -> Launch:
        """At its usual level SGLang logs all its options with the key among them, hence ``--log-level warning``."""
        engine = replica.engine
        python = engine.python or sys.executable
        program = [engine.binary, "serve"] if engine.binary else [python, "-m", "sglang.launch_server"]
        argv = [*program, "--model-path", weights_of(replica), "--served-model-name", replica.model]
        argv += ["--host", "127.0.0.1", "--port", str(place.address.port or 0)]
        argv += ["--config", os.path.join(place.folder, CONFIG_FILE), "--enable-metrics", "--log-level", "warning"]
        for name, value in {"max-running-requests": replica.max_in_flight, **replica.args}.items():
            if value is not False:
                argv += option(name, value)
        text = f"api-key: {json.dumps(place.key or '')}\n"
        return launch_of(replica, argv, {"TRANSFORMERS_OFFLINE": "1"}, {CONFIG_FILE: text})

    def capabilities(self, replica: ReplicaSpec) -> frozenset[str]:
        return frozenset(replica.engine.capabilities) or (POOLS if replica.args.get("is-embedding") else TALKS)

    def health_path(self, replica: ReplicaSpec) -> str:  # noqa: ARG002 - the same for all
        """It makes a token to answer this, and so takes about a second."""
        return "/health"

    def read_facts(self, answers: Mapping[str, bytes]) -> Facts:
        length = json_at(answers, "/v1/models", "data", 0, "max_model_len")
        return Facts(tokens_of(length), version_of("SGLang", json_at(answers, "/server_info", "version")))
