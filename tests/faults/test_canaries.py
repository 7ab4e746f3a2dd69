"""Secrets and prompts appear in no log, error, metric, argument, script, environment or table."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest

from firstkit.store.tables import api_keys, audit, jobs, replicas, usage, users
from lab import Lab, environment_of, fake_engine, one_model, running, wait_for

PROMPT = "canary-prompt-7f3a9c"


def ask_in_many_ways(lab: Lab) -> list[str]:
    """Good, bad and broken requests that carry the canary; returns the error texts that clients saw."""
    errors = []
    messages: Any = [{"role": "user", "content": PROMPT}]
    bodies: list[dict[str, Any]] = [
        {"model": "m", "messages": messages},
        {"model": "m", "messages": messages, "stream": True},
        {"model": "m", "messages": messages, "max_tokens": -1},
        {"model": "m", "messages": messages, "n": "x"},
        {"model": "gone", "messages": messages},
        {"model": "hidden", "messages": messages},
        {"model": "dies", "messages": messages, "stream": True},
    ]
    with openai.OpenAI(base_url=lab.base_url, api_key=lab.key, max_retries=0) as client:
        for body in bodies:
            try:
                answer: Any = client.chat.completions.create(**body)
                for _ in answer:
                    pass
            except openai.APIError as error:
                errors.append(str(error))
    return errors


def everything_written(lab: Lab) -> dict[str, str]:
    """Every file below the lab but the ones that are meant to hold a secret, by name."""
    meant = {"pilot.json"}
    texts = {}
    for path in lab.folder.rglob("*"):
        if path.is_file() and path.name not in meant:
            texts[str(path)] = path.read_bytes().decode(errors="replace")
    return texts


def everything_running(lab: Lab) -> dict[str, str]:
    """Arguments and environment of gateway, controller and every process of their jobs."""
    assert lab.gateway
    assert lab.controller
    texts = {}
    for process in [psutil.Process(lab.gateway.pid), psutil.Process(lab.controller.pid), *lab.processes()]:
        with contextlib.suppress(psutil.Error, OSError):
            texts[f"argv of {process.pid}"] = " ".join(process.cmdline())
            texts[f"environment of {process.pid}"] = environment_of(process.pid)
    return texts


@pytest.mark.timeout(180)
def test_canaries(database_url: str) -> None:
    scale = {"hot": 1, "max": 1}
    port_engine = fake_engine("QuickEngine", tokens=4)
    at = port_engine["argv"].index("--socket")
    port_engine["argv"][at : at + 2] = ["--port", "{port}", "--key-env", "FIRST_ENGINE_KEY"]
    models = one_model(port_engine, scale=scale)
    models["dies"] = one_model(fake_engine("DyingEngine", tokens=50, after=3), scale=scale)["m"]
    hidden = one_model(fake_engine("QuickEngine", tokens=4), scale={"hot": 0, "max": 1})["m"]
    with running({**models, "hidden": {**hidden, "access": {"users": ["nobody"]}}}, database_url) as lab:
        for model in models:
            lab.wait_live(model)
        seen = everything_running(lab)
        secret_files = list(lab.folder.rglob("pilot.json"))
        assert secret_files
        assert all(path.stat().st_mode & 0o777 == 0o600 for path in secret_files)
        tokens = [json.loads(path.read_text())["enrolment_token"] for path in secret_files]
        errors = ask_in_many_ways(lab)
        assert errors
        wait_for("usage is loaded", lambda: len(lab.usage()) >= 3)
        lab.get("/admin/audit", lab.config.server.path("admin.sock"))  # what was denied is written down before
        seen |= everything_written(lab) | {f"error {i}": text for i, text in enumerate(errors)}
        seen["metrics"] = lab.get("/metrics", lab.config.server.path("admin.sock"))[1].decode()
        seen["status"] = json.dumps(lab.status())
        for table in (usage, jobs, replicas, audit, users, api_keys):
            seen[f"rows of {table.name}"] = str(lab.rows(table))
        assert "denied" in seen["rows of audit"]
        [told, *_] = json.loads(lab.get("/v1/models", authorization=f"Bearer {lab.key}")[1])["data"]
        assert told["first"]["privacy"]["stores_prompts"] is False, "what is said is what is done"
        for where, text in seen.items():
            for secret in (lab.key, lab.key.rpartition("-")[2], PROMPT, *tokens):
                assert secret not in text, f"found in {Path(where).name}"
