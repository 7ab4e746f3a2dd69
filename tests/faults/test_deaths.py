"""What survives the death of what, with real processes."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import openai
import psutil
import pytest

from lab import Lab, fake_engine, one_model, pid_is_alive, running, wait_for

STREAM: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hello"}], "stream": True}
ASK: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
SLOW = fake_engine("QuickEngine", tokens=2000, token_delay=0.01)
HOT = {"hot": 1, "max": 1, "max_in_flight": 16}


def client_of(lab: Lab, **options: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=lab.base_url, api_key=lab.key, max_retries=0, timeout=30, **options)


@pytest.fixture
def slow_lab(database_url: str) -> Iterator[Lab]:
    """One hot replica whose answers take long."""
    with running(one_model(SLOW, scale=HOT), database_url) as lab:
        lab.wait_live()
        yield lab


def test_engine_killed_in_mid_stream(slow_lab: Lab) -> None:
    """The client gets the error event, partial usage is recorded once, a new replica comes."""
    lab = slow_lab
    with client_of(lab) as client:
        stream = iter(client.chat.completions.create(**STREAM))
        for _ in range(5):
            next(stream)
        [engine] = lab.engines()
        engine.kill()
        with pytest.raises(openai.APIError, match="engine failed"):
            list(stream)
        [row] = wait_for("the usage line is loaded", lab.usage)
        assert row["outcome"] == "failed"
        assert row["estimated"]
        assert row["completion_tokens"] >= 4
        wait_for("a new replica is ready", lambda: sum(r["state"] == "READY" for r in lab.replicas()) == 1)
        lab.wait_live()
        assert client.chat.completions.create(**STREAM | {"max_tokens": 3, "stream": False}).choices
    assert len(lab.usage()) <= 2


def test_pilot_killed_takes_its_engines_along(slow_lab: Lab) -> None:
    lab = slow_lab
    [pilot] = lab.pilots()
    engines = [engine.pid for engine in lab.engines()]
    assert engines
    pilot.kill()
    wait_for("the engines died", lambda: not any(pid_is_alive(pid) for pid in engines))
    wait_for("the job is over", lambda: any(job["state"] == "FAILED" for job in lab.jobs()))
    wait_for("another job took over", lambda: sum(job["state"] == "RUNNING" for job in lab.jobs()) == 1)
    lab.wait_live()


def test_pilot_leaves_when_nobody_wants_it(database_url: str) -> None:
    """Without a gateway for longer than orphan_timeout the pilot stops its engines and ends its job."""
    with running(one_model(SLOW, scale=HOT), database_url, orphan_timeout=2) as lab:
        lab.wait_live()
        pids = [process.pid for process in lab.processes()]
        lab.kill_controller()
        lab.kill_gateway()
        wait_for("pilot and engines are gone", lambda: not any(pid_is_alive(pid) for pid in pids), 30)


def test_gateway_restart_leaves_engines_alone(slow_lab: Lab) -> None:
    lab = slow_lab
    before = {process.pid for process in lab.processes()}
    lab.kill_gateway()
    lab.start_gateway()
    lab.wait_live()
    assert {process.pid for process in lab.processes()} == before
    assert len(lab.jobs()) == 1


def test_controller_killed_while_a_job_starts(database_url: str) -> None:
    """Whatever moment it dies in, its successor finds the job: never an orphan, never a twin."""
    engine = fake_engine("QuickEngine", load_delay=1)
    with running(one_model(engine, scale=HOT), database_url) as lab:
        states = ["SUBMITTING", "PENDING", "RUNNING"]
        while states:
            wait_for(f"a job is {states[0]} or beyond", lambda: any(job["state"] in states for job in lab.jobs()))
            del states[0]
            lab.kill_controller()
            lab.start_controller()
        lab.wait_live()
        alive = [job for job in lab.jobs() if job["state"] in ("PENDING", "RUNNING", "SUBMITTING")]
        assert len(alive) == 1
        assert len(lab.pilots()) == 1
        assert len(lab.engines()) == 1


class Crowd:
    """Threads that ask without end and remember which requests were answered in full."""

    def __init__(self, lab: Lab, size: int) -> None:
        self.lab = lab
        self.finished: list[str] = []
        self.stopping = threading.Event()
        self.threads = [threading.Thread(target=self._ask, args=(i % 2 == 0,)) for i in range(size)]
        for thread in self.threads:
            thread.start()

    def _ask(self, stream: bool) -> None:
        with client_of(self.lab) as client:
            while not self.stopping.is_set():
                try:
                    self.finished.append(self._one(client, stream))
                except openai.APIError:
                    self.stopping.wait(0.05)

    def _one(self, client: openai.OpenAI, stream: bool) -> str:
        answer = client.chat.completions.with_raw_response.create(**ASK, stream=stream)
        request_id = answer.headers["x-request-id"]
        parsed: Any = answer.parse()
        ending = list(parsed)[-1] if stream else parsed
        assert ending.choices[0].finish_reason
        return request_id

    def stop(self) -> None:
        self.stopping.set()
        for thread in self.threads:
            thread.join(30)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("times", [4, pytest.param(20, marks=pytest.mark.long)])
def test_gateway_killed_again_and_again_under_load(database_url: str, times: int) -> None:
    """No job lost, no twin, every finished request in the ledger exactly once."""
    engine = fake_engine("QuickEngine", tokens=20, token_delay=0.005)
    with running(one_model(engine, scale=HOT), database_url) as lab:
        lab.wait_live()
        before = {process.pid for process in lab.processes()}
        crowd = Crowd(lab, 6)
        try:
            for _ in range(times):
                enough = len(crowd.finished) + 4
                wait_for("requests are answered again", lambda enough=enough: len(crowd.finished) >= enough)
                lab.kill_gateway()
                lab.start_gateway()
        finally:
            crowd.stop()
        assert {process.pid for process in lab.processes()} == before
        assert len(lab.jobs()) == 1
        finished = set(crowd.finished)
        assert len(finished) == len(crowd.finished)
        wait_for("the ledger has them all", lambda: finished <= {row["request_id"] for row in lab.usage()})
        rows = lab.usage()
        assert len({row["request_id"] for row in rows}) == len(rows)
        complete = {row["request_id"] for row in rows if row["outcome"] == "complete"}
        assert finished <= complete
        assert {row["outcome"] for row in rows} <= {"complete", "lost", "cancelled"}


def test_silent_engine_process_is_replaced(slow_lab: Lab) -> None:
    """An engine that stands still is no engine: its replica fails its health check and another comes."""
    lab = slow_lab
    [engine] = lab.engines()
    os.kill(engine.pid, signal.SIGSTOP)
    try:
        wait_for("the replica is given up", lambda: any(r["state"] == "FAILED" for r in lab.replicas()), 60)
    finally:
        if psutil.pid_exists(engine.pid):
            os.kill(engine.pid, signal.SIGCONT)
    lab.wait_live()
