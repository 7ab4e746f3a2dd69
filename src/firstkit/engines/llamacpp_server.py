"""The program that is a llama.cpp engine: the HTTP server inside the wheel ``xllamacpp``, on a UNIX socket.

Runs in the engine's own Python: ``python <zipapp> llamacpp-server --model FILE --socket engine.sock ...``.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from typing import Any, Optional

ERRORS_ONLY = 1
"""Verbosity of llama.cpp. From warnings on it writes requests that it cannot read, prompts and all, to its log."""


def main(argv: list[str]) -> int:
    """Serve until a signal ends the process. None is caught: llama.cpp holds Python's lock while it loads, so a handler
    would run only minutes later, and what it would do, waiting for answers under way, is the pilot's to decide."""
    options = parse(argv)
    try:
        import xllamacpp
    except ImportError as exc:
        return _fail(f"{sys.executable} cannot import xllamacpp: {exc}")
    if os.path.exists(options.socket):
        os.unlink(options.socket)
    _say(f"xllamacpp {xllamacpp.__version__}, {options.model}, {options.parallel} at a time, {options.threads} threads")
    try:
        server = xllamacpp.Server(params(xllamacpp, options))
    except RuntimeError as exc:
        return _fail(f"llama.cpp could not start: {exc}")
    _say(f"listening: {server.listening_address}")
    while True:
        signal.pause()


def parse(argv: list[str]) -> argparse.Namespace:
    """Options have the names that llama-server gives them; ``--ctx-size`` is for all requests together."""
    parser = argparse.ArgumentParser(prog="llamacpp-server", allow_abbrev=False)
    parser.add_argument("--model", required=True)
    parser.add_argument("--socket", required=True, help="relative to the working directory")
    parser.add_argument("--alias", required=True)
    parser.add_argument("--parallel", type=int, default=1)
    parser.add_argument("--ctx-size", type=int, default=4096)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--n-gpu-layers", type=int)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--ubatch-size", type=int)
    parser.add_argument("--embeddings", action="store_true")
    parser.add_argument("--pooling", default="mean")
    parser.add_argument("--chat-template-file")
    return parser.parse_args(argv)


def params(xllamacpp: Any, options: argparse.Namespace) -> Any:
    """The settings of llama.cpp's server for our options."""
    settings = xllamacpp.CommonParams()
    settings.model.path = options.model
    settings.model_alias = {options.alias}
    # A name that ends in .sock is a UNIX socket to llama.cpp.
    settings.hostnames = [os.path.join(".", options.socket)]
    settings.n_ctx = options.ctx_size
    settings.n_parallel = options.parallel
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = options.threads
    settings.model_tags = {f"xllamacpp {xllamacpp.__version__}"}
    settings.endpoint_metrics = True
    settings.endpoint_slots = False
    settings.ui = False
    settings.offline = True
    settings.verbosity = ERRORS_ONLY
    _set(settings, "n_gpu_layers", options.n_gpu_layers)
    _set(settings, "n_batch", options.batch_size)
    _set(settings, "n_ubatch", options.ubatch_size)
    if options.embeddings:
        settings.embedding = True
        kinds = xllamacpp.llama_pooling_type
        settings.pooling_type = getattr(kinds, f"LLAMA_POOLING_TYPE_{options.pooling.upper()}")
    if options.chat_template_file:
        with open(options.chat_template_file, encoding="utf-8") as file:
            settings.chat_template = file.read()
    return settings


def _set(settings: Any, name: str, value: Optional[int]) -> None:
    if value is not None:
        setattr(settings, name, value)


def _say(text: str) -> None:
    sys.stderr.write(f"llamacpp-server: {text}\n")
    sys.stderr.flush()


def _fail(text: str) -> int:
    _say(text)
    return 1
