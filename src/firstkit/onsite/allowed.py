"""What a cluster lets a gateway run: its operator's list, held against every submission and every start of a replica.

The list is the file ``allowed.json`` in the state directory. No request writes it and no request can: a stolen gateway
runs the engines on it, with the options on it, on the weights on it, and nothing else. Where there is neither the file
nor a gate, nothing is confined: gateway and cluster are one machine and one user then.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Optional

from firstkit.engines.engine import EngineSpec, ReplicaSpec
from firstkit.errors import SchedulerRefused
from firstkit.schedulers.scheduler import Resources
from firstkit.wire import WireError, from_dict, to_dict

ALLOWED_FILE = "allowed.json"
GATE_FILE = os.path.join("bin", "first")
"""The program that the forced command of a key starts. Where it is, the list has to be."""
DIGEST = "written_by_install"
"""Key of the digest by which ``first cluster install`` knows a list that nobody has changed since."""
ANY = "any"
LIMIT_BYTES = 1024**2

_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,199}\Z")
_LINE = re.compile(r"[\x21-\x7e][\x20-\x7e]{0,399}\Z")


class NotAllowed(SchedulerRefused):
    """The cluster's list does not allow this."""


@dataclass(frozen=True)
class AllowedEngine:
    """One engine as it may be started. ``args``: "any", or option -> "any" or the list of its values."""

    engine: EngineSpec
    args: Any = field(default_factory=dict)


@dataclass(frozen=True)
class Allowed:
    """The list. ``weights``: files, or folders below which weights may lie. Partitions (of PBS: queues), accounts,
    projects and QOS: None allows any, None in a list allows to name none. ``directives``: the options of sbatch that
    jobs may carry, letter by letter. ``path``: where the list was read; it does not stand in the file."""

    scheduler: str = "local"
    env: dict[str, str] = field(default_factory=dict)
    engines: tuple[AllowedEngine, ...] = ()
    weights: tuple[str, ...] = ()
    partitions: Optional[tuple[Optional[str], ...]] = None
    accounts: Optional[tuple[Optional[str], ...]] = None
    projects: Optional[tuple[Optional[str], ...]] = None
    qos: Optional[tuple[Optional[str], ...]] = None
    directives: tuple[str, ...] = ()
    max_nodes: Optional[int] = None
    max_walltime_s: Optional[int] = None
    path: str = ALLOWED_FILE


_KEYS = frozenset(item.name for item in fields(Allowed)) - {"path"}
_ENGINE_KEYS = frozenset(item.name for item in fields(EngineSpec))


def read_allowed(state_dir: str) -> Optional[Allowed]:
    """The list of the cluster whose state is in ``state_dir``; None where nothing is confined.

    Raises NotAllowed when the list is needed and missing, cannot be understood, or could be written by others.
    """
    path = os.path.join(state_dir, ALLOWED_FILE)
    try:
        with open(path, "rb") as file:
            found, data = os.fstat(file.fileno()), file.read(LIMIT_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        if os.path.lexists(os.path.join(state_dir, GATE_FILE)):
            raise NotAllowed(f"{path} is missing: nothing is allowed; 'first cluster install' writes it") from None
        return None
    except OSError as exc:
        raise NotAllowed(f"{path} cannot be read, so nothing is allowed: {exc.strerror}") from exc
    if found.st_uid not in (0, os.geteuid()) or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise NotAllowed(f"{path} may be written by others: nothing is allowed until it is yours, with mode 0600")
    try:
        return parse_allowed(json.loads(data), path)
    except (ValueError, RecursionError) as exc:
        words = exc if isinstance(exc, WireError) else "not JSON"
        raise NotAllowed(f"{path} cannot be understood, so nothing is allowed: {words}") from exc


def parse_allowed(data: Any, path: str = ALLOWED_FILE) -> Allowed:
    """The list in JSON types; raises WireError, also for keys that it does not know: they might be limits."""
    if not isinstance(data, dict):
        raise WireError("an object is needed")
    _no_others(data, _KEYS | {DIGEST}, "")
    allowed = from_dict(Allowed, {name: value for name, value in data.items() if name in _KEYS} | {"path": path})
    for i, entry in enumerate(data.get("engines", ())):
        _no_others(entry, {"engine", "args"}, f"engines[{i}].")
        _no_others(entry["engine"], _ENGINE_KEYS, f"engines[{i}].engine.")
        _check_rules(entry.get("args", {}), f"engines[{i}].args")
    return allowed


def _no_others(data: Mapping[str, Any], known: Any, where: str) -> None:
    for name in data:
        if name not in known:
            raise WireError(f"{where}{name}: is not known; allowed: {', '.join(sorted(known - {DIGEST}))}")


def _check_rules(args: Any, where: str) -> None:
    if args == ANY:
        return
    if not isinstance(args, dict):
        raise WireError(f'{where}: "any" or an object is needed')
    for name, rule in args.items():
        if rule != ANY and not isinstance(rule, list):
            raise WireError(f'{where}.{name}: "any" or a list of values is needed')


def check_replica(allowed: Allowed, spec: ReplicaSpec) -> None:
    """Raise NotAllowed, with what is wrong and the file that says so, for a replica that may not run here."""
    if not _MODEL.match(spec.model) or not _LINE.match(spec.deployment):
        raise NotAllowed("the name of a model has other characters than letters, digits and ._:/@+-")
    _check_args(allowed, _entry(allowed, spec.engine), spec)
    _check_weights(allowed, spec.weights)


def _entry(allowed: Allowed, engine: EngineSpec) -> AllowedEngine:
    for entry in allowed.engines:
        if entry.engine == engine:
            return entry
    named = [entry.engine for entry in allowed.engines if entry.engine.name == engine.name]
    if not named:
        raise NotAllowed(f"the engine {_quoted(engine.name)} is not in {allowed.path}")
    names = ", ".join(item.name for item in fields(EngineSpec) if _differ(item.name, named[0], engine))
    raise NotAllowed(f"the engine {_quoted(engine.name)} is defined otherwise in {allowed.path}: {names}")


def _differ(name: str, one: EngineSpec, other: EngineSpec) -> bool:
    return bool(getattr(one, name) != getattr(other, name))


def _check_args(allowed: Allowed, entry: AllowedEngine, spec: ReplicaSpec) -> None:
    for name, value in spec.args.items():
        if not isinstance(value, (str, int, float)):
            raise NotAllowed(f"args.{name}: text, a number, true or false is needed")
        if entry.args == ANY:
            continue
        rule = entry.args.get(name)
        if rule is None:
            raise NotAllowed(f"the option {_quoted(name)} of the engine '{entry.engine.name}' is not in {allowed.path}")
        # As JSON: true is not 1 there.
        if rule != ANY and json.dumps(value) not in map(json.dumps, rule):
            raise NotAllowed(f"args.{name}: {allowed.path} allows other values than {_quoted(str(value))}")


def _check_weights(allowed: Allowed, weights: Optional[str]) -> None:
    """A path is taken by its letters: links that the operator made below a folder are the operator's word."""
    if weights is None or weights in allowed.weights:
        return
    if os.path.isabs(weights) and "\0" not in weights and os.path.normpath(weights) == weights:
        own = os.path.realpath(os.path.dirname(allowed.path))
        is_own = _is_below(os.path.realpath(weights), own)  # requests and engines write there
        if any(_is_below(weights, folder) for folder in allowed.weights) and not is_own:
            return
    raise NotAllowed(f"the weights {_quoted(weights)} are not at a place that {allowed.path} allows")


def _is_below(path: str, folder: str) -> bool:
    return os.path.isabs(folder) and path.startswith(os.path.join(os.path.normpath(folder), ""))


def check_resources(allowed: Allowed, needs: Resources) -> None:
    """Raise NotAllowed for a job that asks for what the list does not give."""
    for name, value, there in _choices(allowed, needs):
        check_choice(allowed, name, value, there)
    for directive in needs.directives:
        if directive not in allowed.directives:
            raise NotAllowed(f"the directive {_quoted(directive)} is not in {allowed.path}")
    if allowed.max_nodes is not None and needs.nodes > allowed.max_nodes:
        raise NotAllowed(f"{needs.nodes} nodes are more than the {allowed.max_nodes} of {allowed.path}")
    most_s = allowed.max_walltime_s
    if most_s is not None and (needs.walltime_s is None or needs.walltime_s > most_s):
        raise NotAllowed(f"the walltime is more than the {most_s} s of {allowed.path}")


def _choices(allowed: Allowed, needs: Resources) -> Iterator[tuple[str, Optional[str], Any]]:
    yield "partition", needs.partition, allowed.partitions
    yield "account", needs.account, allowed.accounts
    yield "QOS", needs.qos, allowed.qos
    yield "constraint", needs.constraint, None


def check_choice(allowed: Allowed, name: str, value: Optional[str], there: Any) -> None:
    """Raise NotAllowed unless ``value`` is one printable line and one of ``there`` (None: all are)."""
    if value is not None and not _LINE.match(value):
        raise NotAllowed(f"the {name} is no printable text")
    if there is not None and value not in there:
        named = f"the {name} {_quoted(value)}" if value is not None else f"a job without {name}"
        raise NotAllowed(f"{named} is not in {allowed.path}")


def _quoted(text: str) -> str:
    """Foreign text for a message: short, and on one line."""
    return json.dumps(text[:100])


# -- making the list ---------------------------------------------------------------------------------------------------

HARMLESS = {
    "vllm": (
        "async-scheduling block-size convert cpu-offload-gb disable-log-stats dtype enable-auto-tool-choice "
        "enable-chunked-prefill enable-expert-parallel enable-prefix-caching enforce-eager gpu-memory-utilization "
        "kv-cache-dtype kv-cache-memory-bytes limit-mm-per-prompt max-logprobs max-model-len max-num-batched-tokens "
        "max-num-seqs pipeline-parallel-size quantization reasoning-parser runner seed swap-space task "
        "tensor-parallel-size tool-call-parser"
    ),
    "sglang": (
        "attention-backend chunked-prefill-size context-length cpu-offload-gb data-parallel-size disable-radix-cache "
        "dp-size dtype enable-cache-report enable-torch-compile ep-size grammar-backend is-embedding kv-cache-dtype "
        "max-prefill-tokens max-queued-requests max-running-requests max-total-tokens mem-fraction-static page-size "
        "pipeline-parallel-size pp-size quantization random-seed reasoning-parser sampling-backend schedule-policy "
        "tensor-parallel-size tool-call-parser tp-size"
    ),
    "llamacpp": "batch-size ctx-size embeddings n-gpu-layers pooling threads ubatch-size",
}
"""Options that size and tune an engine. Others may load code (``trust-remote-code``, plugins, class names), read files
(templates, tokenizers, adapters) or open ports, so each value of those has to be on the list."""


def usual_args(kind: str) -> dict[str, Any]:
    """The options that an engine of some kind may have with any value, when its operator says nothing."""
    return dict.fromkeys(HARMLESS.get(kind, "").split(), ANY)


def allowed_document(allowed: Allowed) -> dict[str, Any]:
    """The list in JSON types, with the digest by which a later ``install`` knows that nobody changed it."""
    data = to_dict(allowed)
    del data["path"]
    return {**data, DIGEST: document_digest(data)}


def document_digest(data: Mapping[str, Any]) -> str:
    """SHA-256 over all but the digest itself."""
    import hashlib

    content = {name: value for name, value in data.items() if name != DIGEST}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
