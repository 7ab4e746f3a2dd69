"""An operator at work: looks, takes a cluster out of service and into it again, while a user goes on."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from lab import Lab, fake_engine, running, wait_for

RESOURCES = {"cpus_per_node": 1, "memory_gib": 0.1}


@pytest.fixture
def lab() -> Iterator[Lab]:
    deployments = [
        {"cluster": name, "engine": fake_engine(), "resources": RESOURCES, "scale": {"hot": hot}}
        for name, hot in (("here", 1), ("there", 0))
    ]
    with running({"m": {"aliases": ["n"], "deployments": deployments}}, clusters={"there": {}}) as lab:
        lab.wait_live()
        yield lab


def first(lab: Lab, *arguments: str, expect: int = 0) -> str:
    """What a command prints, as somebody types it."""
    command = [sys.executable, "-m", "firstkit.cli", *arguments]
    env = {**os.environ, "FIRST_CONFIG": str(lab.config_path), "FIRST_API_KEY": lab.key}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=env)
    assert done.returncode == expect, done.stdout + done.stderr + lab.logs()
    return done.stdout + done.stderr


def seen(lab: Lab, path: str) -> Any:
    status, body = lab.get(path, authorization=f"Bearer {lab.key}")
    assert status == 200, body
    return json.loads(body)


def statuses(lab: Lab) -> dict[str, str]:
    """Of the model, by cluster."""
    return {place["name"]: place["status"] for place in seen(lab, "/v1/models/m")["first"]["clusters"]}


def places(lab: Lab) -> set[str]:
    """Where anything runs."""
    return {job["cluster"] for job in seen(lab, "/v1/jobs")["data"]}


def pinned(lab: Lab, cluster: str) -> tuple[int, Any]:
    """A request that only ``cluster`` may answer, and soon."""
    with closing(http.client.HTTPConnection("127.0.0.1", lab.port, timeout=30)) as connection:
        body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hello"}]})
        headers = {"authorization": f"Bearer {lab.key}", "content-type": "application/json", "x-first-max-wait": "0.5"}
        connection.request("POST", f"/v1/clusters/{cluster}/chat/completions", body, headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())


def test_a_cluster_is_drained_and_resumed(lab: Lab) -> None:
    assert "here\topen\t" in first(lab, "status")
    assert first(lab, "explain", "n").startswith("m is live.\n")
    assert pinned(lab, "here")[0] == 200

    said = first(lab, "cluster", "drain", "here", "--message", "cooling until 18:00")
    assert said.startswith("here is drained: cooling until 18:00\n")
    status, refused = pinned(lab, "here")
    assert (status, refused["error"]["code"]) == (503, "model_not_ready")
    assert "cooling until 18:00" in refused["error"]["message"]
    assert first(lab, "chat", "hello", "--model", "m"), "the other cluster answers"
    assert statuses(lab) == {"here": "offline", "there": "live"}
    [here, *_] = seen(lab, "/v1/clusters")["data"]
    assert (here["status"], here["message"]) == ("drained", "cooling until 18:00")
    assert "here\tdrained\t" in first(lab, "status")
    assert "The cluster is drained: cooling until 18:00" in first(lab, "explain", "m")
    wait_for("only the other one is left", lambda: places(lab) == {"there"})

    assert first(lab, "cluster", "resume", "here") == "here takes requests and jobs.\n"
    wait_for("what is hot there is live again", lambda: statuses(lab)["here"] == "live")
    assert pinned(lab, "here")[0] == 200


def test_a_drain_outlives_the_gateway(lab: Lab) -> None:
    first(lab, "cluster", "drain", "there", "--message", "cooling")
    lab.kill_gateway()
    lab.start_gateway()
    wait_for("it is read", lambda: seen(lab, "/v1/clusters/there")["status"] == "drained")
    assert "there is no cluster" in first(lab, "cluster", "drain", "nowhere", "--message", "x", expect=1).lower()
