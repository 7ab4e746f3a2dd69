"""The JSON messages that travel in frames, and the file from which a pilot starts. Shapes only: no I/O."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Optional, Protocol

from firstkit.engines.engine import ReplicaSpec
from firstkit.states import ReplicaState

PROTOCOL = 2
"""Version of the link protocol. A peer of the version before or after is accepted."""


END_MARGIN_S = 15.0
"""So long before the end of its job a pilot leaves; two thirds of it are for requests under way."""


def end_margin_s(life_s: float) -> float:
    """The same for a job that lives ``life_s`` seconds: a short one gives a quarter of what it has."""
    return max(0.0, min(END_MARGIN_S, life_s / 4))


def speaks(protocol: int) -> bool:
    """Whether a peer of that version is understood: one version of skew is allowed."""
    return abs(protocol - PROTOCOL) <= 1


@dataclass(frozen=True)
class LinkSpec:
    """How pilot and gateway reach each other. ``socket``: ``path`` is the gateway's UNIX socket. ``tunnel``: TLS to one
    of ``addresses``, each ``host:port``, through the HTTP proxy ``proxy`` (``http://host:port``) if there is one.
    ``direct``: the gateway dials the pilot, which shows the certificate in ``identity_pem`` and has its key there too.
    In both, only the CA in ``ca_pem`` is trusted. ``resume_s``: how long streams outlive the loss of a connection."""

    kind: str = "socket"
    path: Optional[str] = None
    addresses: tuple[str, ...] = ()
    ca_pem: Optional[str] = None
    proxy: Optional[str] = None
    identity_pem: Optional[str] = field(default=None, repr=False)
    resume_s: float = 0.0


@dataclass(frozen=True)
class PilotSpec:
    """All that a pilot needs, written 0600 into the folder of its job. Times in seconds."""

    job_id: str
    cluster: str
    link: LinkSpec
    enrolment_token: str
    replicas: tuple[ReplicaSpec, ...] = ()
    orphan_timeout_s: float = 1800.0
    scratch: Optional[str] = None
    """Folder of a node for copies of weights; variables of the job's environment in it (``$TMPDIR``) are filled in."""
    interface: Optional[str] = None
    """Network interface over which the ranks of a replica of several nodes speak; None: that of the host's name."""


@dataclass(frozen=True)
class Hello:
    """First frame of either side of a connection. The pilot's carries the job's secret, and the enrolment token until
    it was traded.

    The pilot makes the secret; the gateway stores its SHA-256 when it takes the token. Sending token and secret again
    after an answer that got lost is therefore harmless.

    ``dial`` counts the pilot's connections: of two, the one with the higher number is the younger. ``session``: the one
    to go on with, after ``received`` bytes of the other end; in the gateway's answer, the one that goes on or begins,
    empty for one that ends with its connection. ``resume_s``: for how long the pilot would go on with a new one.
    """

    protocol: int
    version: str
    job_id: str = ""
    secret: str = field(default="", repr=False)
    token: str = field(default="", repr=False)
    dial: int = 0
    session: str = ""
    received: int = 0
    resume_s: float = 0.0


@dataclass(frozen=True)
class Refusal:
    """Why one end ends a link: the payload of a RESET on stream 0. ``code`` is one of the gateway's, ``protocol``,
    ``refused`` or ``over`` (the job is over: the pilot shall leave), or the pilot's own, ``closed``."""

    code: str
    message: str


@dataclass
class Open:
    """Head of a request to a replica; ``body_bytes`` of BODY frames follow. ``headers`` never hold a client's key.

    ``hide_usage``: the gateway asked the engine for a usage chunk that the client did not want.
    ``idle_timeout_s``: longest silence of the engine before the request counts as failed.
    ``timeout_s``: longest life of the request in all, from its start to the end of its answer.
    """

    replica_id: str
    method: str
    path: str
    body_bytes: int
    headers: dict[str, str] = field(default_factory=dict)
    stream: bool = False
    hide_usage: bool = False
    idle_timeout_s: float = 300.0
    timeout_s: float = 3600.0


@dataclass
class Head:
    """Status and the headers worth passing on (content-type) of the engine's answer."""

    status: int
    content_type: str = "application/json"


class Outcome(str, Enum):
    """How a request ended. Only COMPLETE is success; silence never is."""

    COMPLETE = "complete"
    REJECTED = "rejected"  # the engine answered with an error status
    FAILED = "failed"  # the engine broke, or its stream ended without saying how
    TIMEOUT = "timeout"  # the engine was silent for too long
    CANCELLED = "cancelled"  # the client went away
    LOST = "lost"  # the gateway or the link went away; nobody saw the end


@dataclass
class Usage:
    """Tokens of one request: the engine's numbers, or ours, flagged ``estimated``."""

    prompt_tokens: int
    completion_tokens: int
    estimated: bool = False


@dataclass
class Tail:
    """How the answer ended. Sent after the last DATA, withheld terminal events (``[DONE]``) not included.

    ``ttft_s`` is from OPEN complete at the pilot to the first token; ``gap_s`` the mean time between tokens.
    """

    outcome: Outcome
    usage: Optional[Usage] = None
    error: Optional[str] = None
    ttft_s: Optional[float] = None
    gap_s: Optional[float] = None
    duration_s: float = 0.0


@dataclass(frozen=True)
class ReplicaReport:
    """One replica as its pilot sees it. ``load_s``: from start to READY. ``log_tail`` only when it FAILED.

    Of the load as the engine itself tells it, where it does: requests that it has ``running`` and ``waiting``, of which
    no request of this pilot stands for the ``others``, and ``cache_use``, the share of its cache that is taken.
    """

    replica_id: str
    state: ReplicaState
    in_flight: int = 0
    running: Optional[int] = None
    waiting: Optional[int] = None
    others: int = 0
    cache_use: Optional[float] = None
    load_s: Optional[float] = None
    context_length: Optional[int] = None
    engine_version: Optional[str] = None
    revision: Optional[str] = None
    capabilities: tuple[str, ...] = ()
    reason: str = ""
    log_tail: str = ""
    doing: str = ""
    """While it is STARTING, in a few words: what it does now and how far it is, where that takes long."""


@dataclass(frozen=True)
class PilotReport:
    """A pilot's whole state: sent after the hello and at every change. ``free_*``: what further replicas may take."""

    job_id: str
    replicas: tuple[ReplicaReport, ...] = ()
    free_cpus: int = 0
    free_gpus: int = 0
    free_memory_bytes: int = 0
    ends_at: Optional[float] = None


@dataclass(frozen=True)
class Call:
    """A request to the other end. To a pilot: status, start, drain, stop, log, end, exit. From a pilot: report."""

    verb: str
    args: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Reply:
    """The answer to a Call: ``error`` is None when it was done."""

    result: Any = None
    error: Optional[str] = None


class Sink(Protocol):
    """Where the answer to one request goes. Called in the order head?, data*, tail; tail exactly once, always last.

    The callee may not block and may not raise. ``on_tail`` also comes when the other end is lost or the exchange was
    cancelled: it is the one place where a request is closed and accounted.
    """

    def on_head(self, head: Head) -> None: ...

    def on_data(self, data: bytes) -> None: ...

    def on_tail(self, tail: Tail) -> None: ...


class Exchange(Protocol):
    """One request under way. All three may be called at any time, also after the tail, when they do nothing."""

    def cancel(self) -> None:
        """The client went away: abort the request at the engine; the sink still gets its tail (CANCELLED).

        Data that was under way may come before it."""

    def pause(self) -> None:
        """Stop sending data until ``resume``; what is under way still arrives, over a link ``LIMIT_BYTES`` at most."""

    def resume(self) -> None: ...


class Upstream(Protocol):
    """Something that answers requests: a link to a pilot, or a client of one engine or external service."""

    def open(self, request: Open, body: bytes, sink: Sink) -> Exchange:
        """Start a request; never raises: what goes wrong reaches the sink as a tail."""
