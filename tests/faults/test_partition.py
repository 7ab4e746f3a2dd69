"""The network between a pilot and its gateway breaks, each way, for shorter and longer than anybody waits."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from faults.slurm import HOT, deployment, living, only_job, slurm_clusters, slurm_lab
from faults.support import Asking, ask, in_flight
from firstkit.testing.slurm_lab import SlurmCluster
from lab import Lab, fake_engine, free_port, wait_for

WAYS = pytest.mark.parametrize("way", [*(pytest.param(way, marks=pytest.mark.long) for way in ("up", "down")), "both"])
pytestmark = pytest.mark.timeout(240)


NAMESPACE = "FIRST_TESTS_OWN_THE_NETWORK"
TOKENS = 600
ENGINE = fake_engine("QuickEngine", tokens=TOKENS, token_delay=0.02)
"""Its answers take twelve seconds."""


class Proxy:
    """The fault proxy as a process, between the pilots of a lab and its gateway."""

    def __init__(self, pilot_port: int) -> None:
        self.address = f"127.0.0.1:{free_port()}"
        argv = [sys.executable, "-m", "firstkit.testing.fault_proxy", f"127.0.0.1:{pilot_port}", self.address]
        self._process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout
        self._process.stdout.readline()

    def say(self, line: str) -> None:
        assert self._process.stdin
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


class Firewall:
    """nftables, in a network namespace that this process has for itself: packets are dropped."""

    def __init__(self, pilot_port: int) -> None:
        self.address = f"127.0.0.1:{pilot_port}"
        self._port = pilot_port

    def say(self, line: str) -> None:
        way = line.removeprefix("swallow ")
        ports = {"up": ["dport"], "down": ["sport"], "both": ["dport", "sport"], "none": []}[way]
        rules = [f"add rule inet first out tcp {port} {self._port} drop" for port in ports]
        chain = "add chain inet first out { type filter hook output priority 0; }"
        script = ["add table inet first", "delete table inet first", "add table inet first", chain, *rules, ""]
        subprocess.run(["nft", "-f", "-"], input="\n".join(script), text=True, check=True)

    def close(self) -> None:
        self.say("swallow none")


@contextlib.contextmanager
def parted(
    folder: Path, resume: str, orphan_timeout: str = "30m", engine: dict[str, Any] = ENGINE
) -> Iterator[tuple[SlurmCluster, Lab, Proxy | Firewall]]:
    """One hot replica on Slurm, live, whose link can be broken."""
    port = free_port()
    with contextlib.ExitStack() as stack:
        [alpha] = stack.enter_context(slurm_clusters(folder, "alpha"))
        proxy = Firewall(port) if NAMESPACE in os.environ else Proxy(port)
        stack.callback(proxy.close)
        server = {"pilot_listen": f"127.0.0.1:{port}", "pilot_urls": [proxy.address], "orphan_timeout": orphan_timeout}
        sections = {"alpha": {"link": {"kind": "tunnel", "resume": resume}}}
        lab = stack.enter_context(slurm_lab([alpha], [deployment(alpha, engine, scale=HOT)], sections, **server))
        stack.callback(proxy.say, "swallow none")
        lab.wait_live()
        yield alpha, lab, proxy


@WAYS
def test_for_five_seconds(folder: Path, way: str) -> None:
    """Nobody notices: the stream is whole, byte for byte, and so is one that begins meanwhile."""
    with parted(folder, "10s") as (alpha, lab, proxy), Asking(lab) as asking:
        job = only_job(lab, alpha)
        asking.read_tokens(20)
        proxy.say(f"swallow {way}")
        time.sleep(5)
        proxy.say("swallow none")
        answer = asking.rest()
        assert (answer.ending, answer.tokens) == ("done", TOKENS)
        assert ask(lab, max_tokens=5).ending == "done"
        assert only_job(lab, alpha)["id"] == job["id"]
        assert len(lab.jobs()) == 1


@WAYS
@pytest.mark.parametrize(
    ("partition_s", "resume"), [(20, "1s"), pytest.param(60, "10s", marks=pytest.mark.long)], ids=["short", "full"]
)
def test_for_longer_than_streams_wait(folder: Path, way: str, partition_s: float, resume: str) -> None:
    """Open streams end visibly; afterwards the same replica serves, and no other was started."""
    endless = fake_engine("QuickEngine", tokens=100_000, token_delay=0.02)
    with parted(folder, resume, engine=endless) as (alpha, lab, proxy), Asking(lab) as asking:
        job = only_job(lab, alpha)
        asking.read_tokens(20)
        proxy.say(f"swallow {way}")
        heals_at = time.monotonic() + partition_s
        assert asking.rest().ending == "error"
        time.sleep(max(0.0, heals_at - time.monotonic()))
        proxy.say("swallow none")
        wait_for("it serves again", lambda: ask(lab, max_tokens=5).ending == "done")
        assert only_job(lab, alpha)["id"] == job["id"]
        assert len(lab.jobs()) == 1
        assert len(lab.pilots()) == 1
        wait_for("the engine works for nobody any more", lambda: not in_flight(lab, "m"))


@WAYS
def test_past_the_lease(folder: Path, way: str) -> None:
    """The pilot leaves by itself, its job ends, another comes: never two that serve."""
    with parted(folder, "1s", orphan_timeout="10s") as (alpha, lab, proxy):
        job = only_job(lab, alpha)
        proxy.say(f"swallow {way}")
        wait_for("its job is over", lambda: next(row for row in lab.jobs() if row["id"] == job["id"])["ended_at"], 90)
        proxy.say("swallow none")
        wait_for("it serves again", lambda: ask(lab, max_tokens=5).ending == "done")
        assert len(living(lab, alpha)) == 1
        assert only_job(lab, alpha)["id"] != job["id"]
        wait_for("one pilot is left", lambda: len(lab.pilots()) == 1)


@pytest.mark.skipif(NAMESPACE in os.environ, reason="this is what runs inside")
@pytest.mark.parametrize(
    "test",
    [
        "test_for_five_seconds[both]",
        pytest.param("test_for_longer_than_streams_wait[short-up]", marks=pytest.mark.long),
    ],
)
def test_with_a_firewall(test: str) -> None:
    """The same where packets are dropped and TCP itself knows nothing of it."""
    # Names of hosts are not looked up where there is no address but that of the loopback.
    network = "ip link set lo up; ip address add 10.0.0.1/32 dev lo"
    apart = ["unshare", "--net", "sh", "-ec", f'{network}; nft list ruleset; exec "$@"', "sh"]
    if subprocess.run([*apart, "true"], check=False, capture_output=True).returncode != 0:
        pytest.skip("no network namespace, or no nftables in it, for this user")
    argv = [*apart, sys.executable, "-m", "pytest", "-q", f"{__file__}::{test}"]
    done = subprocess.run(argv, check=False, env={**os.environ, NAMESPACE: "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:]
