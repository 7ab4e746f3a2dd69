"""Replicas of fake engines, in a folder of their own, and sinks that remember."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from firstkit.engines.engine import EngineSpec, Facts, Habits, Launch, Place, ReplicaSpec
from firstkit.links.messages import Head, Open, ReplicaReport, Tail
from firstkit.onsite.allotment import Share
from firstkit.onsite.supervise import Replica, Rhythm, Surroundings
from firstkit.states import ReplicaState
from waiting import until

RHYTHM = Rhythm()


class FakeAdapter:
    """The Engine of a shipped fake; ``options`` go to its command line."""

    kind = "fake"

    def __init__(self, behaviour: str = "QuickEngine", takes_socket: bool = True, **options: object) -> None:
        self.habits = Habits()
        self.metric_names: dict[str, str] = {}
        self.files: dict[str, str] = {}
        self.takes_socket = takes_socket
        self.facts_paths: tuple[str, ...] = ("/v1/models", "/no/such/path")
        self.places: list[Place] = []
        self._behaviour = behaviour
        self._options = options

    def check(self, replica: ReplicaSpec) -> None:
        return

    def launch(self, replica: ReplicaSpec, place: Place) -> Launch:
        self.places.append(place)
        argv = [sys.executable, "-m", "firstkit.testing.fake_engine", "--behaviour", self._behaviour]
        argv += ["--socket", place.address.socket] if place.address.socket else ["--port", str(place.address.port)]
        for name, value in self._options.items():
            argv += [f"--{name.replace('_', '-')}", str(value)]
        if place.key is None:
            return Launch(argv, files=self.files)
        return Launch([*argv, "--key-env", "KEY"], {"KEY": place.key}, self.files)

    def capabilities(self, replica: ReplicaSpec) -> frozenset[str]:
        return frozenset({"chat", "completions"})

    def health_path(self, replica: ReplicaSpec) -> str:
        return "/health"

    def read_facts(self, answers: Mapping[str, bytes]) -> Facts:
        return Facts(2048, "fake 1" if b"fake-model" in answers["/v1/models"] and len(answers) == 1 else None)


@dataclass
class Sink:
    """Remembers one answer."""

    head: Head | None = None
    data: bytes = b""
    tail: Tail | None = None

    def on_head(self, head: Head) -> None:
        self.head = head

    def on_data(self, data: bytes) -> None:
        self.data += data

    def on_tail(self, tail: Tail) -> None:
        assert self.tail is None
        self.tail = tail


class Bench:
    """Makes replicas in ``folder`` and remembers each state that they reported."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.history: list[ReplicaState] = []
        self.replica: Replica

    def start(self, adapter: FakeAdapter, load_timeout_s: float = 30.0, rhythm: Rhythm = RHYTHM) -> Replica:
        spec = ReplicaSpec("rep-1", "m", "m@here", EngineSpec("fake"), load_timeout_s=load_timeout_s)
        folder = str(self.folder / "replicas")
        around = Surroundings(folder, os.environ, self._changed, lambda: None, rhythm)
        share = Share(tuple(sorted(os.sched_getaffinity(0)))[:1])
        self.replica = Replica(spec, adapter, share, around)
        self.replica.start()
        return self.replica

    def _changed(self) -> None:
        if not self.history or self.history[-1] is not self.replica.state:
            self.history.append(self.replica.state)

    def ask(self, max_tokens: int = 8) -> Sink:
        """Start a streamed chat request."""
        sink, body = Sink(), chat(max_tokens)
        request = Open("rep-1", "POST", "/v1/chat/completions", len(body), stream=True)
        assert self.replica.open(request, body, sink) is not None
        return sink

    async def until(self, state: ReplicaState) -> ReplicaReport:
        await until(lambda: self.replica.state is state or self.replica.state.is_final, state.value)
        report = self.replica.report()
        assert report.state is state, report
        return report

    def engine(self) -> psutil.Process:
        [engine] = engines_below(self.folder)
        return engine

    async def close(self) -> None:
        for process in engines_below(self.folder):
            process.send_signal(signal.SIGCONT)
        await self.replica.stop(0.0, 0.0)


def engines_below(folder: Path) -> list[psutil.Process]:
    """Living processes whose working directory is the folder of a replica below ``folder``."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE and process.cwd().startswith(f"{folder}/replicas/"):
                found.append(process)
        except psutil.Error:
            continue
    return found


def chat(max_tokens: int = 8) -> bytes:
    return b'{"model":"m","stream":true,"max_tokens":%d,"messages":[{"role":"user","content":"hello"}]}' % max_tokens
