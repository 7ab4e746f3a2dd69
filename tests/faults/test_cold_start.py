"""Requests for a model that does not run: what they are told, that they start it, that it stops again."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from lab import Lab, fake_engine, one_model, running, wait_for

COLD = {"hot": 0, "max": 1, "max_in_flight": 4, "idle_timeout": 2}
ASK: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}


@contextlib.contextmanager
def raw_post(lab: Lab, body: dict[str, Any], **headers: str) -> Iterator[http.client.HTTPResponse]:
    """One request, its connection closed at the end."""
    connection = http.client.HTTPConnection("127.0.0.1", lab.port, timeout=60)
    names = {"authorization": f"Bearer {lab.key}", "content-type": "application/json"}
    names |= {key.replace("_", "-"): value for key, value in headers.items()}
    with contextlib.closing(connection):
        connection.request("POST", "/v1/chat/completions", json.dumps(body), names)
        with connection.getresponse() as answer:
            yield answer


def test_cold_model_starts_stops_and_starts_again(database_url: str) -> None:
    engine = fake_engine("QuickEngine", tokens=3, load_delay=0.5)
    with running(one_model(engine, scale=COLD), database_url) as lab:
        with openai.OpenAI(base_url=lab.base_url, api_key=lab.key, max_retries=0) as client:
            assert lab.model_status() == "offline"
            assert lab.jobs() == []
            assert client.chat.completions.create(**ASK).choices[0].message.content
            assert lab.model_status() == "live"
            wait_for("the idle replica was stopped", lambda: lab.model_status() == "offline", 30)
            wait_for("its processes are gone", lambda: not lab.processes(), 30)
            assert [row["state"] for row in lab.replicas()] == ["STOPPED"]
            assert client.chat.completions.create(**ASK).choices[0].message.content
        assert len(lab.replicas()) == 2


def test_stream_hears_position_and_eta_while_it_waits(database_url: str) -> None:
    engine = fake_engine("QuickEngine", tokens=3, load_delay=2)
    with running(one_model(engine, scale=COLD), database_url) as lab:
        with raw_post(lab, ASK | {"stream": True}, x_first_hold="0.2") as answer:
            assert answer.status == 200
            text = answer.read().decode()
        assert text.startswith(": position=1 status=")
        assert "eta_s=" in text
        assert text.endswith("data: [DONE]\n\n")


def test_fail_when_cold_is_answered_at_once_and_starts_nothing(database_url: str) -> None:
    engine = fake_engine("QuickEngine", load_delay=30)
    with running(one_model(engine, scale=COLD), database_url) as lab:
        with raw_post(lab, ASK, x_first_on_cold="fail") as answer:
            error = json.loads(answer.read())["error"]
        assert answer.status == 503
        assert error["code"] == "model_not_ready"
        assert error["status"] == "offline"
        assert int(answer.headers["retry-after"]) >= 1
        assert answer.headers["x-should-retry"] == "false"
        assert lab.jobs() == []


def test_plain_request_waits_as_long_as_it_says(database_url: str) -> None:
    engine = fake_engine("QuickEngine", load_delay=600)
    # the start must outlast its demand, however slowly the machine comes to look at it
    with running(one_model(engine, scale=COLD | {"idle_timeout": 120}), database_url) as lab:
        wait_for("the controller listens", lambda: lab.status()["controller"] == "connected")
        with raw_post(lab, ASK, x_first_max_wait="0.5") as answer:
            assert answer.status == 503
            error = json.loads(answer.read())["error"]
        assert error["type"] == "server_error"
        assert "eta_s" in error
        wait_for("the wait was demand", lambda: lab.model_status() == "starting")
        with raw_post(lab, ASK | {"stream": True}, x_first_hold="0", x_first_max_wait="0.5") as answer:
            late = answer.read().decode()
        assert '"code": "model_not_ready"' in late
        assert "[DONE]" not in late


def test_full_line_answers_429(database_url: str) -> None:
    engine = fake_engine("QuickEngine", load_delay=600)
    with running(one_model(engine, scale=COLD), database_url, max_waiting=1) as lab:
        waiting = http.client.HTTPConnection("127.0.0.1", lab.port, timeout=60)
        headers = {"authorization": f"Bearer {lab.key}", "content-type": "application/json"}
        waiting.request("POST", "/v1/chat/completions", json.dumps(ASK), headers)
        wait_for("one waits", lambda: lab.status()["models"][0]["waiting"] == 1)
        with raw_post(lab, ASK) as answer:
            assert answer.status == 429
            assert answer.headers["retry-after"]
            assert json.loads(answer.read())["error"]["code"] == "overloaded"
        waiting.close()
        wait_for("who hung up left the line", lambda: lab.status()["models"][0]["waiting"] == 0)


def test_engine_that_dies_at_load_backs_off_and_shows_its_log(database_url: str) -> None:
    with running(one_model(fake_engine("CrashAtLoadEngine"), scale=COLD | {"hot": 1}), database_url) as lab:
        wait_for("it failed three times", lambda: sum(r["state"] == "FAILED" for r in lab.replicas()) >= 3, 60)
        failed = [row for row in lab.replicas() if row["state"] == "FAILED"]
        assert all(row["log_tail"] for row in failed)
        failed.sort(key=lambda row: row["created_at"])
        pauses = [(b["created_at"] - a["ended_at"]).total_seconds() for a, b in itertools.pairwise(failed)]
        assert all(pause > least for pause, least in zip(pauses, (0.9, 1.9), strict=False)), pauses
        assert "fail" in lab.status()["models"][0]["reason"].lower()


def test_two_replicas_in_one_job_on_disjoint_cores(database_url: str) -> None:
    engine = fake_engine("QuickEngine", tokens=2)
    models = one_model(
        engine,
        scale={"hot": 2, "max": 2, "max_in_flight": 2},
        resources={"cpus_per_node": 1, "memory_gib": 0.1, "exclusive": True},
    )
    with running(models, database_url) as lab:
        wait_for("both are ready", lambda: sum(r["state"] == "READY" for r in lab.replicas()) == 2)
        assert len([job for job in lab.jobs() if job["state"] == "RUNNING"]) == 1
        cores = [set(engine.cpu_affinity()) for engine in lab.engines()]
        assert len(cores) == 2
        assert all(len(own) == 1 for own in cores)
        assert not cores[0] & cores[1]


@pytest.mark.timeout(180)
def test_replicas_follow_demand_up_to_max(database_url: str) -> None:
    """Full replicas bring another, up to max; when demand is gone only the hot ones stay."""
    engine = fake_engine("QuickEngine", tokens=400, token_delay=0.02)
    models = one_model(engine, scale={"hot": 1, "max": 2, "max_in_flight": 1, "idle_timeout": 2, "sustain": 0})
    with running(models, database_url) as lab:
        lab.wait_live()
        ask = ASK | {"stream": True}
        with raw_post(lab, ask, x_first_hold="0") as first, raw_post(lab, ask, x_first_hold="0") as second:
            wait_for("a second replica is ready", lambda: sum(r["state"] == "READY" for r in lab.replicas()) == 2)
            assert first.read().endswith(b"data: [DONE]\n\n")
            assert second.read().endswith(b"data: [DONE]\n\n")
        wait_for("one is left", lambda: sum(r["state"] == "READY" for r in lab.replicas()) == 1, 30)
        assert lab.model_status() == "live"
