"""The gateway dials pilots that wait for it: those of jobs that run, where the store says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from firstkit.clock import now
from firstkit.gateway import dialling
from firstkit.gateway.state import Gateway
from firstkit.ids import digest
from firstkit.links.messages import Call, Exchange, LinkSpec, Open, PilotReport, PilotSpec, Sink
from firstkit.links.pilot_end import PilotLink
from firstkit.links.private_ca import PrivateCa
from firstkit.schedulers.scheduler import Resources
from firstkit.states import JobState
from firstkit.store.jobs import add_job, move_job, note_job
from firstkit.store.links import addresses
from waiting import until

JOB = "job-abcdefghij234567"


class Waiting:
    """A pilot that waits to be dialled, and the service of it."""

    def __init__(self, ca: PrivateCa, job_id: str = JOB) -> None:
        link = LinkSpec("direct", ca_pem=ca.certificate_pem, identity_pem=ca.identity_pem(job_id), resume_s=10.0)
        self.job_id = job_id
        self.found: list[str] = []
        self.overs = 0
        self.link = PilotLink(PilotSpec(job_id, "here", link, "token"), self, on_address=self.found.append)
        self.task = asyncio.ensure_future(self.link.run())

    async def address(self) -> str:
        await until(lambda: self.found, "the address")
        return self.found[0]

    def open(self, request: Open, body: bytes, sink: Sink) -> Exchange:
        raise AssertionError

    async def call(self, call: Call) -> Any: ...

    def report(self) -> PilotReport:
        return PilotReport(self.job_id)

    def over(self) -> None:
        self.overs += 1

    async def close(self) -> None:
        self.link.close()
        await self.task


@dataclass
class Scene:
    gateway: Gateway
    ca: PrivateCa
    folder: Path

    async def note(self, state: JobState = JobState.RUNNING, address: str | None = None) -> None:
        async with self.gateway.db.begin() as conn:
            await move_job(conn, JOB, state)
            await note_job(conn, JOB, address=address)


@pytest.fixture
async def scene(gateway: Gateway, folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Scene]:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(dialling, "LOOK_EVERY_S", 0.02)
    monkeypatch.setattr(dialling, "REDIAL_S", (0.01, 0.02))
    async with gateway.db.begin() as conn:
        await add_job(conn, JOB, "there", Resources(), digest("token"), now())
        await move_job(conn, JOB, JobState.SUBMITTING)
    scene = Scene(gateway, PrivateCa(folder), folder)
    running = asyncio.ensure_future(gateway.pilots.dial(["there"], scene.ca))
    yield scene
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await gateway.pilots.close()


async def test_a_pilot_that_waits_is_dialled_and_again_when_it_is_lost(scene: Scene) -> None:
    pilots, pilot = scene.gateway.pilots, Waiting(scene.ca)
    address = await pilot.address()
    await scene.note(JobState.PENDING, address)
    await asyncio.sleep(0.1)
    assert not pilot.link.is_up, "it does not run"
    await scene.note(JobState.RUNNING, address)
    await until(lambda: pilots.is_up(JOB), "the link")
    session = pilot.link._session
    assert session is not None
    session.drop()
    await until(lambda: pilot.link.is_up, "the link again")
    assert pilot.link._session is session
    await scene.note(JobState.COMPLETED, address)
    await asyncio.sleep(0.1)
    session.drop()
    await asyncio.sleep(0.1)
    assert not pilot.link.is_up, "its job is over"
    await pilot.close()


async def test_a_pilot_that_moved_is_dialled_where_it_is(scene: Scene) -> None:
    with_nobody = "127.0.0.1:9"
    await scene.note(JobState.RUNNING, with_nobody)
    await asyncio.sleep(0.05)
    pilot = Waiting(scene.ca)
    await scene.note(JobState.RUNNING, await pilot.address())
    await until(lambda: scene.gateway.pilots.is_up(JOB), "the link")
    await pilot.close()


@pytest.mark.parametrize("address", ["127.0.0.1:9", "nonsense", "host:0", "a..b:1", "x" * 290 + ":1", ""])
async def test_what_cannot_be_dialled_is_told_once(
    scene: Scene, address: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(dialling, "PATIENCE_S", 0.02)
    await scene.note(JobState.RUNNING, address)
    await until(lambda: "no link to the pilot at" in caplog.text)
    await asyncio.sleep(0.2)
    assert caplog.text.count("no link to the pilot at") == 1


async def test_whoever_shows_the_certificate_of_another_job_is_left(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    pilot = Waiting(scene.ca, "job-anotheranother2")
    await scene.note(JobState.RUNNING, await pilot.address())
    await until(lambda: "its certificate is not" in caplog.text)
    assert not scene.gateway.pilots.is_up(JOB)
    await pilot.close()


async def test_dialling_has_ended_when_it_was_stopped(gateway: Gateway, folder: Path) -> None:
    """Else the database is closed under it, which leaves a connection, and a process that does not end."""
    before = asyncio.all_tasks()
    for turns in range(20):
        dialling = asyncio.ensure_future(gateway.pilots.dial(["there"], PrivateCa(folder)))
        for _ in range(turns):
            await asyncio.sleep(0)
        dialling.cancel()
        await asyncio.wait([dialling])
        assert asyncio.all_tasks() == before, turns


async def test_what_links_need_to_know_of_jobs(scene: Scene) -> None:
    async with scene.gateway.db.read() as conn:
        assert await addresses(conn, ["there"]) == {}
    await scene.note(JobState.RUNNING, "host:1")
    async with scene.gateway.db.read() as conn:
        assert await addresses(conn, ["there", "elsewhere"]) == {JOB: "host:1"}
        assert await addresses(conn, ["elsewhere"]) == {}
    await scene.note(JobState.FAILED, "host:1")
    async with scene.gateway.db.read() as conn:
        assert await addresses(conn, ["there"]) == {}
