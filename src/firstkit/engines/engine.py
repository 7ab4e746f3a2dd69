"""What an engine is: a small contract by which the pilot starts any OpenAI-compatible program and talks to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Optional, Protocol

from firstkit.schedulers.scheduler import Resources

CAPABILITIES = (
    "chat", "completions", "embeddings", "responses", "messages", "count_tokens", "rerank", "score", "transcriptions",
    "translations",
)  # fmt: skip
"""What a deployment can be asked for; besides, ``tasks/NAME`` of whatever name its operator gave to a path."""


SPREAD = ("vllm", "command")
"""Kinds of engines that can run one replica on several nodes."""


@dataclass(frozen=True)
class EngineSpec:
    """An engine as an operator defines it in the configuration of a cluster or deployment."""

    kind: str
    name: str = ""
    python: Optional[str] = None
    binary: Optional[str] = None
    argv: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict)
    setup: Optional[str] = None
    health: str = "/health"
    capabilities: tuple[str, ...] = ()
    url: Optional[str] = None
    model: Optional[str] = None
    api_key_env: Optional[str] = None

    @property
    def program(self) -> Optional[str]:
        """The program that it names; None: what is usual for its kind."""
        return self.binary or self.python or (self.argv[0] if self.argv else None)


@dataclass(frozen=True)
class ReplicaSpec:
    """One replica that a pilot shall run. ``args`` go to the engine as its own options."""

    replica_id: str
    model: str
    deployment: str
    engine: EngineSpec
    weights: Optional[str] = None
    revision: Optional[str] = None
    """Of the weights, as the operator names it."""
    args: dict[str, Any] = field(default_factory=dict)
    needs: Resources = field(default_factory=Resources)
    max_in_flight: int = 8
    load_timeout_s: float = 1800.0
    stage: str = "none"
    """Where the engine reads its weights: where they lie (``none``), or in a copy on its node (``node-local``)."""


@dataclass(frozen=True)
class Address:
    """Where an engine listens: a UNIX socket (a path, relative to the folder of the replica) or a port on 127.0.0.1."""

    socket: Optional[str] = None
    port: Optional[int] = None


@dataclass(frozen=True)
class Head:
    """Where rank 0 of a replica of several nodes awaits the others: an IPv4 address and a port that nobody had."""

    address: str = "127.0.0.1"
    port: int = 0


@dataclass(frozen=True)
class Place:
    """What the pilot gives one replica: its folder (0700, working directory of the engine), cores, GPUs, address, and
    the random key that guards a port (None for a socket, which the folder guards).

    Not ``is_bound``: how many cores it has is known, their numbers mean nothing.

    A replica of several nodes has a place on each, numbered by ``rank``; only rank 0 answers requests. ``host_address``
    and ``interface``: this node's own, over which alone the ranks shall speak.
    """

    folder: str
    cpus: tuple[int, ...]
    gpus: tuple[str, ...]
    address: Address
    key: Optional[str] = None
    key_file: Optional[str] = None
    is_bound: bool = True
    rank: int = 0
    ranks: int = 1
    head: Head = Head()
    host_address: str = "127.0.0.1"
    interface: str = "lo"


@dataclass(frozen=True)
class Launch:
    """The command that starts an engine: arguments (never a secret in them) and what to add to the environment."""

    argv: list[str]
    env: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    """Name -> text of what the engine reads in the folder of its replica: 0600, and so a place for its key."""


@dataclass(frozen=True)
class Habits:
    """How the HTTP of an engine behaves.

    ``keeps_alive``: a connection may be used again after a plain answer. ``closes_after_stream``: it may not be after
    a stream, whatever its headers say. ``usage_on_request``: ``stream_options.include_usage`` yields a usage chunk.
    ``keep_s``: a connection that was idle for longer is taken for closed (servers here close after 5 s).
    ``refusals``: words of a 500 by which it refuses a request, and is well itself.
    """

    keeps_alive: bool = True
    closes_after_stream: bool = False
    usage_on_request: bool = True
    keep_s: float = 4.0
    refusals: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class Facts:
    """What a ready engine tells of itself; None or empty: it does not say."""

    context_length: Optional[int] = None
    version: Optional[str] = None


class Engine(Protocol):
    """One kind of inference software. Pure: builds commands, names paths, reads texts; the pilot does the I/O."""

    kind: str
    habits: Habits
    takes_socket: bool
    """Whether it can listen on a UNIX socket; else the pilot gives it a port and a key."""
    metric_names: dict[str, str]
    """Our name (``running``, ``waiting``, ``cache_use``) -> the name in the engine's /metrics; see ``load.py``."""
    facts_paths: tuple[str, ...]
    """Paths that are read once when the engine is ready, for ``read_facts``."""

    def check(self, replica: ReplicaSpec) -> None:
        """Raise ConfigError with the key that is wrong or missing, before anything is started."""

    def launch(self, replica: ReplicaSpec, place: Place) -> Launch:
        """The command for this replica at this place; of several ranks, the command for that of the place."""

    def capabilities(self, replica: ReplicaSpec) -> frozenset[str]:
        """What this replica can answer: see ``CAPABILITIES``, or ``tasks/NAME``."""

    def health_path(self, replica: ReplicaSpec) -> str:
        """A path that answers 200 when and only when requests can be served."""

    def read_facts(self, answers: Mapping[str, bytes]) -> Facts:
        """Facts out of the good answers of ``facts_paths``, by path; never raises, unknown is None."""
