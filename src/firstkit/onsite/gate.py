"""The forced command of the key with which a gateway comes: one verb by SSH_ORIGINAL_COMMAND, JSON in, JSON out.

``gate --state-dir DIR`` stands in ``authorized_keys``, so DIR and all that the list in DIR says is the operator's word.
Whoever has the key gets these verbs and nothing else, whatever the bytes are.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Optional

from firstkit.errors import ConfigError
from firstkit.onsite import command
from firstkit.onsite.allowed import Allowed, check_choice
from firstkit.onsite.command import REQUEST_LIMIT_BYTES, VERBS, Request

READ_LIMIT_S = 30
"""Longest time in which a request may arrive; a peer that says nothing must not keep a process here."""
USAGE = "usage: first-onsite gate --state-dir DIR\n"

_NUMBERS = ("cpus", "memory_gib", "gpus", "grace_s", "command_timeout", "poll_interval")
_TEXTS = ("gpu_type", "constraint", "gpu_resource")
_NAME_LISTS = ("filesystems", "devices")
_FLAGS = ("assigns_gpus",)


def main(argv: Sequence[str], runner: Sequence[str], env: Mapping[str, str]) -> int:
    """Answer the one request of this session; returns the exit status, 2 for a verb that there is not."""
    if len(argv) != 2 or argv[0] != "--state-dir" or not os.path.isabs(argv[1]):
        sys.stderr.write(USAGE)
        return 2
    os.umask(0o077)
    verb = env.get("SSH_ORIGINAL_COMMAND", "")
    if verb not in VERBS:
        _say(command.no("invalid", "invalid", f"this key is for the verbs {', '.join(VERBS)}"))
        return 2
    signal.alarm(READ_LIMIT_S)
    data = sys.stdin.buffer.read(REQUEST_LIMIT_BYTES + 1)
    signal.alarm(0)
    state_dir = os.path.normpath(argv[1])
    _say(command.answer_to(verb, data, runner, lambda request: at_gate(state_dir, request)))
    return 0


def at_gate(state_dir: str, request: Request) -> tuple[Request, Optional[Allowed]]:
    """The request as it may be answered, and the list; raises ConfigError and NotAllowed."""
    if os.path.normpath(request.state_dir) != state_dir:
        raise ConfigError(f"state_dir: this key is for {state_dir}; correct the configuration of the cluster")
    request, allowed = command.confine(replace(request, state_dir=state_dir))
    if allowed is None:
        raise ConfigError(f"{state_dir} has no list of what is allowed; 'first cluster install' writes it")
    return replace(request, scheduler=settings_at_gate(allowed, request.scheduler)), allowed


def settings_at_gate(allowed: Allowed, asked: Mapping[str, Any]) -> dict[str, Any]:
    """The scheduler section with which commands run: kind and environment are the list's, of the rest only what is
    known to name no program. Raises ConfigError where the list says otherwise than the request."""
    for name, there in (("kind", allowed.scheduler), ("env", allowed.env)):
        if asked.get(name, there) != there:
            raise ConfigError(f"scheduler.{name} is not what {allowed.path} says; run 'first cluster install' again")
    found: dict[str, Any] = {"kind": allowed.scheduler, "env": dict(allowed.env)}
    for name in _NUMBERS:
        value = asked.get(name)
        if value is not None:
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise ConfigError(f"scheduler.{name}: a number is needed")
            found[name] = value
    for name in _FLAGS:
        if name in asked:
            if not isinstance(asked[name], bool):
                raise ConfigError(f"scheduler.{name}: true or false is needed")
            found[name] = asked[name]
    return {**found, **_texts(allowed, asked)}


def _texts(allowed: Allowed, asked: Mapping[str, Any]) -> dict[str, Any]:
    """Texts and lists of texts, held against the list where it has something to say of them."""
    found: dict[str, Any] = {}
    there = {
        "partition": allowed.partitions,
        "queue": allowed.partitions,
        "account": allowed.accounts,
        "project": allowed.projects,
        "qos": allowed.qos,
    }
    for name in (*_TEXTS, *there):
        value = asked.get(name)
        if value is not None:
            found[name] = _choice(allowed, name, value, there.get(name))
    for name in _NAME_LISTS:
        values = asked.get(name)
        if values is not None:
            if not isinstance(values, (list, tuple)):
                raise ConfigError(f"scheduler.{name}: a list is needed")
            found[name] = [_choice(allowed, name, value, None) for value in values]
    return found


def _choice(allowed: Allowed, name: str, value: Any, there: Any) -> str:
    if not isinstance(value, str):
        raise ConfigError(f"scheduler.{name}: text is needed")
    check_choice(allowed, name, value, there)
    return value


def _say(answer: Mapping[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer, separators=(",", ":")) + "\n")
