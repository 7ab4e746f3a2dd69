"""Pilots in processes of their own, reached through the network: cut, proxied, dialled, and by the wrong ones."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TextIO

import pytest

from firstkit.links.entrance import Arrival
from firstkit.links.messages import LinkSpec, Outcome
from firstkit.links.private_ca import PrivateCa, job_name
from firstkit.testing.fault_proxy import FaultProxy
from integration.pilots import ENDLESS, READY, Job, installed, made, replica
from unit.onsite.test_python39 import PYTHON39, needs_python39
from waiting import until

JOB = "job-abcdefghij234567"
PYTHONS = [sys.executable, pytest.param(PYTHON39, marks=needs_python39)]


@pytest.fixture(scope="module")
def zipapp() -> Iterator[Path]:
    with installed() as path:
        yield path


@pytest.fixture
async def job(zipapp: Path) -> AsyncIterator[Job]:
    async with made(zipapp, JOB) as job:
        yield job


@asynccontextmanager
async def tunnel(job: Job, resume_s: float = 10.0) -> AsyncIterator[tuple[FaultProxy, LinkSpec]]:
    """The way from the pilot to the gateway, and what can go wrong on it."""
    ca = PrivateCa(job.folder)
    async with FaultProxy(await job.listen_tunnel(ca.server_context())).listening() as proxy:
        yield proxy, LinkSpec("tunnel", addresses=(proxy.address,), ca_pem=ca.certificate_pem, resume_s=resume_s)


@pytest.mark.parametrize("python", PYTHONS)
async def test_a_stream_outlives_its_connection(job: Job, python: str) -> None:
    async with tunnel(job) as (proxy, link):
        job.start(replica("rep-1", tokens=200, token_delay=0.01), python=python, link=link)
        await job.until(READY)
        whole = job.ask(200)
        assert await job.outcome(whole) is Outcome.COMPLETE
        sinks = [job.ask(200) for _ in range(5)]
        await job.tokens_of(sinks[0])
        for cuts in (1, 2):
            proxy.cut()
            await until(lambda cuts=cuts: job.news.count("up") == 1 + cuts, "the link again")
        for sink in sinks:
            assert await job.outcome(sink) is Outcome.COMPLETE
            assert _texts(sink.data) == _texts(whole.data)
        assert "lost" not in job.news


def _texts(data: bytes) -> list[str]:
    events = [json.loads(line[6:]) for line in data.splitlines() if line.startswith(b"data: {")]
    return [event["choices"][0]["delta"].get("content", "") for event in events if event["choices"]]


async def test_a_link_that_does_not_come_back_ends_its_streams_and_engines_go_on(job: Job) -> None:
    async with tunnel(job, resume_s=0.5) as (proxy, link):
        job.start(replica("rep-1", **ENDLESS), link=link)
        await job.until(READY)
        sink = job.ask(100_000)
        await job.tokens_of(sink)
        proxy.refuses = True
        started = time.monotonic()
        proxy.cut()
        assert await job.outcome(sink) is Outcome.LOST
        assert time.monotonic() - started > 0.4, "it had its time to come back"
        assert len(job.engines()) == 1
        job.reports.clear()
        proxy.refuses = False
        report = await job.until(READY)
        assert report.in_flight == 0, "nobody waits for it any more"


async def test_a_pilot_killed_is_missed_after_its_time(job: Job) -> None:
    async with tunnel(job, resume_s=0.5) as (_, link):
        job.start(replica("rep-1", **ENDLESS), link=link)
        await job.until(READY)
        sink = job.ask(100_000)
        await job.tokens_of(sink)
        job.process.kill()
        assert await job.outcome(sink) is Outcome.LOST
        assert job.news == ["up", "down", "lost"]


@contextmanager
def proxy_process(target: str) -> Iterator[tuple[str, TextIO]]:
    """A fault proxy of its own: where it listens, and what it obeys."""
    command = [sys.executable, "-m", "firstkit.testing.fault_proxy", target]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield process.stdout.readline().strip(), process.stdin
        process.stdin.close()
        assert process.wait(10) == 0


async def test_the_fault_proxy_as_a_process(job: Job) -> None:
    ca = PrivateCa(job.folder)
    with proxy_process(await job.listen_tunnel(ca.server_context())) as (address, orders):
        job.start(link=LinkSpec("tunnel", addresses=(address,), ca_pem=ca.certificate_pem, resume_s=10.0))
        await until(lambda: job.reports, "the link: a pilot that was not welcomed yet would begin anew")
        assert job.news == ["up"]
        orders.write("delay 0.01\nhold both\nhold none\ncut\n")
        await until(lambda: job.news == ["up", "down", "up"], "the link again")


# -- direct ------------------------------------------------------------------------------------------------------------


class Dialling:
    """A gateway that dials the pilot of ``job``."""

    def __init__(self, job: Job, ca: PrivateCa) -> None:
        self.job = job
        self.ca = ca
        self.spec = LinkSpec("direct", ca_pem=ca.certificate_pem, identity_pem=ca.identity_pem(JOB), resume_s=10.0)

    async def dial(self, ca: PrivateCa | None = None, name: str = job_name(JOB)) -> Arrival:
        path = self.job.folder / "address"
        await until(path.exists, "the address")
        host, _, port = path.read_text().rpartition(":")
        _, arrival = await asyncio.get_running_loop().create_connection(
            lambda: Arrival(self.job.entrance, JOB),
            host.strip("[]"),
            int(port),
            ssl=(ca or self.ca).client_context(),
            server_hostname=name,
        )
        return arrival


@pytest.mark.parametrize("python", PYTHONS)
async def test_a_pilot_that_is_dialled(job: Job, python: str) -> None:
    gateway = Dialling(job, PrivateCa(job.folder))
    job.start(replica("rep-1", tokens=100, token_delay=0.01), python=python, link=gateway.spec)
    assert await (await gateway.dial()).link is not None
    await job.until(READY)
    assert os.stat(job.folder / "address").st_mode & 0o777 == 0o600
    sink = job.ask(100)
    await job.tokens_of(sink)
    await gateway.dial()
    assert await job.outcome(sink) is Outcome.COMPLETE
    assert job.news == ["up", "up"]
    await job.link.call("exit")
    assert await job.exit_status() == 0
    key = gateway.spec.identity_pem or ""
    assert key.splitlines()[1] not in job.log()
    assert not [path for path in job.folder.rglob("*.pem") if path.read_text() == key]


async def test_wrong_certificates_both_ways(job: Job, tmp_path: Path) -> None:
    """A gateway of another CA hears nothing from the pilot; a pilot of another CA, or job, nothing from the gateway."""
    gateway, stranger = Dialling(job, PrivateCa(job.folder)), PrivateCa(tmp_path)
    job.start(link=gateway.spec)
    with pytest.raises(OSError, match="verify failed"):
        await gateway.dial(stranger)
    with pytest.raises(OSError, match="Hostname mismatch"):
        await gateway.dial(name=job_name("job-anotheranother2"))
    context = stranger.client_context()
    context.load_verify_locations(cadata=gateway.ca.certificate_pem)
    stranger.client_context = lambda: context  # type: ignore[method-assign]
    arrival = await gateway.dial(stranger)  # it believes the pilot, but the pilot does not believe it
    assert await arrival.link is None
    assert job.secrets == set()
    assert job.process.poll() is None
    assert await (await gateway.dial()).link is not None


async def test_a_direct_link_that_cannot_be_ends_the_pilot(job: Job) -> None:
    job.start(link=LinkSpec("direct", ca_pem=PrivateCa(job.folder).certificate_pem, identity_pem="nonsense"))
    assert await job.exit_status() != 0
    assert "link.identity_pem" in job.log()
