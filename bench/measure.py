"""What a load on a gateway yields and costs: the load generator, clocks of CPU time, memory, noise of the machine."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
BIN = HERE / "bin"
"""What is compiled, installed or not worth keeping; git ignores it."""
MODEL = "mock-model"
SAMPLE_EVERY_S = 0.1
PATIENCE_S = 20.0
"""So long after the end of a load its last requests may take before they count as failed."""


# -- the machine ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cores:
    """``gateway`` is for the one gateway that is under load; ``rest`` for load generator, engines, pilots."""

    gateway: int
    rest: int


def two_cores() -> Cores:
    """The first two cores that we may use; SystemExit where there is one."""
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) < 2:
        raise SystemExit("Two cores are needed: one for the gateway, one for all else.")
    return Cores(*allowed[:2])


@contextlib.contextmanager
def on_core(core: int) -> Iterator[None]:
    """Processes that are started here stay on ``core``."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def cpu_s(pids: Sequence[int]) -> float:
    """CPU seconds of processes so far, all their threads, those that ended too. Precise: not counted in ticks."""
    return sum(time.clock_gettime(~pid << 3 | 2) for pid in pids)  # the kernel's number of another process's clock


def rss_bytes(pids: Sequence[int]) -> int:
    """Resident memory of processes; pages that they share count for each."""
    page = os.sysconf("SC_PAGE_SIZE")
    return sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * page for pid in pids)


@dataclass(frozen=True)
class CoreTime:
    """Seconds of one core since the machine started: with work, and taken away by the host."""

    busy_s: float
    stolen_s: float

    @classmethod
    def read(cls, core: int) -> CoreTime:
        lines = Path("/proc/stat").read_text().splitlines()
        words = next(line.split() for line in lines if line.startswith(f"cpu{core} "))
        user, nice, system, _idle, _iowait, irq, softirq, stolen = (int(word) / 100 for word in words[1:9])
        return cls(user + nice + system + irq + softirq, stolen)


def speed_us() -> float:
    """How long a small piece of Python takes now, the best of some: the machine's own speed."""
    best = float("inf")
    for _ in range(200):
        started = time.perf_counter()
        sum(range(1000))
        best = min(best, time.perf_counter() - started)
    return 1e6 * best


# -- the load ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Load:
    """A closed loop of ``connections`` for ``duration_s``; tokens of streams come every ``gap_us`` microseconds."""

    connections: int
    duration_s: float
    tokens: int = 16
    gap_us: int = 0
    is_stream: bool = False
    ramp_s: float = 0.0
    prompt_bytes: int = 0

    def body(self) -> bytes:
        words = " lorem ipsum dolor sit amet" * (self.prompt_bytes // 27 + 1)
        text = f"MOCK n={self.tokens} gap_us={self.gap_us} hello" + words[: self.prompt_bytes]
        request: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": text}]}
        request["max_tokens"] = self.tokens
        if self.is_stream:
            request |= {"stream": True, "stream_options": {"include_usage": True}}
        return json.dumps(request).encode()

    def options(self) -> list[str]:
        found = ["--connections", str(self.connections), "--duration", str(self.duration_s)]
        if self.is_stream:
            found += ["--stream", "--expect", str(self.tokens), "--ramp-ms", str(int(1000 * self.ramp_s))]
        return found


@dataclass
class Run:
    """One load on one gateway: what the load generator saw, what the gateway spent on it."""

    load: dict[str, Any]
    cpu_s: float = 0.0
    beside_s: dict[str, float] = field(default_factory=dict)
    """CPU seconds of processes that work for the gateway elsewhere: its pilot, its controller."""
    rss_before: int = 0
    rss_peak: int = 0
    others_share: float = 0.0
    """Of the gateway's core, what others than the gateway took."""
    stolen_share: float = 0.0

    @property
    def failed(self) -> int:
        return sum(int(self.load[kind]) for kind in ("http_errors", "socket_errors", "bad_streams", "timeouts"))

    @property
    def requests_per_s(self) -> float:
        return float(self.load["ok"]) / float(self.load["seconds"])

    @property
    def tokens_per_s(self) -> float:
        return float(self.load["tokens"]) / float(self.load["seconds"])

    def cpu_ms_per_request(self, part: str = "") -> float | None:
        """Of the gateway, or of a ``part`` that works beside it; None where there is no such part."""
        return self._cpu_s_per("started", part, 1e3)

    def cpu_s_per_million_tokens(self, part: str = "") -> float | None:
        return self._cpu_s_per("tokens", part, 1e6)

    def ms(self, times: str, which: str) -> float | None:
        """A percentile of the load generator's ``latency``, ``first_token``, ``delay`` or ``gap``; None: no times."""
        found = self.load[f"{times}_us"]
        return None if found is None else float(found[which]) / 1e3

    def _cpu_s_per(self, what: str, part: str, factor: float) -> float | None:
        spent_s = self.beside_s.get(part) if part else self.cpu_s
        return None if spent_s is None else factor * spent_s / max(1, int(self.load[what]))


def build(name: str) -> Path:
    """The program ``load/NAME.c``, compiled when it is not there or older than its source."""
    source, program = HERE / "load" / f"{name}.c", BIN / name
    if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
        BIN.mkdir(exist_ok=True)
        subprocess.run(["cc", "-O2", "-o", str(program), str(source)], check=True)
    return program


@dataclass
class Loading:
    """A load under way. ``found``: what the load generator saw, once it is over."""

    process: subprocess.Popen[bytes]
    found: dict[str, Any] = field(default_factory=dict)

    @property
    def is_over(self) -> bool:
        return self.process.poll() is not None


@contextlib.contextmanager
def under_load(url: str, key: str, load: Load) -> Iterator[Loading]:
    """The load is on ``url`` (a base URL that ends in /v1) from the start of the block, whose end waits for its end."""
    with tempfile.NamedTemporaryFile(suffix=".json") as body:
        body.write(load.body())
        body.flush()
        words = [str(build("lg")), "--url", f"{url}/chat/completions", "--key", key, "--body", body.name]
        words += [*load.options(), "--timeout", str(PATIENCE_S)]
        process = subprocess.Popen(words, stdout=subprocess.PIPE)
        loading = Loading(process)
        try:
            yield loading
            output, _ = process.communicate()
        finally:
            process.kill()
            process.wait()
    if process.returncode:
        raise RuntimeError(f"the load generator ended with {process.returncode}")
    loading.found = json.loads(output)
