"""The figures of the main job on this machine: cold start, idle cost, command line.

    python bench/vertical.py            # prints a table; needs make install

Every figure stands beside its limit. Cold start is told as what FIRST adds to the engine's own load time.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import openai
import psutil

from figures import report

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from acceptance.test_openai_client import weights
from lab import Lab, running, wait_for

IDLE_S = 20.0
COMMANDS = (
    "--help",
    "status",
    "models",
    "keys create NEW",
    "keys list",
    "keys revoke NEW",
    "usage",
    "doctor",
    "config check",
    "config show",
)
ROUNDS = 5


def demonstration() -> dict[str, object]:
    """The demonstration's model, started on demand and stopped after a second without requests."""
    deployment = {
        "cluster": "here",
        "engine": {"kind": "llamacpp"},
        "weights": str(weights()),
        "args": {"ctx-size": 1024},
        "resources": {"cpus_per_node": len(os.sched_getaffinity(0)), "memory_gib": 1},
        "scale": {"hot": 0, "max": 1, "max_in_flight": 4, "idle_timeout": 1},
    }
    return {"m": {"deployments": [deployment]}}


def first_token_s(lab: Lab) -> float:
    """Seconds from the request to its first piece of text."""
    with openai.OpenAI(base_url=lab.base_url, api_key=lab.key, max_retries=0) as client:
        started = time.monotonic()
        stream = client.chat.completions.create(
            model="m", messages=[{"role": "user", "content": "Hi"}], max_tokens=4, stream=True
        )
        for chunk in stream:
            if chunk.choices and chunk.choices[0].delta.content:
                elapsed = time.monotonic() - started
                stream.close()
                return elapsed
    raise RuntimeError("no text came")


def cold_starts(lab: Lab) -> None:
    added = []
    wait_for("the controller is there", lambda: lab.status()["controller"] == "connected")
    for _ in range(ROUNDS):
        wait_for("the model is cold", lambda: lab.model_status() == "offline" and not lab.processes())
        elapsed = first_token_s(lab)
        load_s = max(lab.replicas(), key=lambda row: row["created_at"])["load_s"]
        warm = first_token_s(lab)
        added.append(elapsed - load_s)
        print(
            f"  cold {elapsed:.2f} s = load {load_s:.2f} s + {elapsed - load_s:.2f} s (a warm one takes {warm:.2f} s)"
        )
    report("cold start beyond the engine's load", statistics.median(added), "s", 1.0)


def idle(lab: Lab) -> None:
    assert lab.gateway
    assert lab.controller
    wait_for("all jobs are over", lambda: all(job["ended_at"] for job in lab.jobs()))
    processes = [psutil.Process(lab.gateway.pid), psutil.Process(lab.controller.pid)]

    def spent() -> float:
        times = [process.cpu_times() for process in processes]
        return sum(t.user + t.system + t.children_user + t.children_system for t in times)

    before, started = spent(), time.monotonic()
    time.sleep(IDLE_S)
    share = 100 * (spent() - before) / (time.monotonic() - started)
    sizes = [process.memory_full_info() for process in processes]
    resident = sum(size.rss for size in sizes) / 1e6
    print(f"  resident {resident:.0f} MB, with the pages that both map counted twice")
    report("idle gateway + controller, memory", sum(size.pss for size in sizes) / 1e6, "MB", 150)
    report("idle gateway + controller, CPU", share, "%", 1)


def commands(lab: Lab) -> None:
    first = str(Path(sys.executable).parent / "first")
    environment = os.environ | {"FIRST_CONFIG": str(lab.config_path)}
    for arguments in COMMANDS:
        times = []
        for number in range(ROUNDS):
            words = arguments.replace("NEW", f"key-{number}").split()
            started = time.monotonic()
            subprocess.run([first, *words], env=environment, check=True, capture_output=True)
            times.append(time.monotonic() - started)
        report(f"first {arguments}", statistics.median(times), "s", 0.4)


def main() -> None:
    with running(demonstration()) as lab:
        cold_starts(lab)
        idle(lab)
        commands(lab)


if __name__ == "__main__":
    main()
