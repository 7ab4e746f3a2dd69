"""Our own OpenAPI document, taken at its word by Schemathesis: no request that it allows, or forbids, is a fault."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

from faults.outside import EchoEngine, Outside, assert_sound, gateway
from lab import Lab

CONFIGURATION = """
[parameters]
"path.model_id" = "echo"
"body.model" = "echo"

[checks.not_a_server_error]
expected-statuses = ["2xx", "3xx", "4xx", 502, 503, 504]
"""
"""Statuses of engines that fail, are not ready or say nothing are documented; no others of 500 and more are."""
CHECKS = "not_a_server_error,content_type_conformance,response_schema_conformance,unsupported_method,ignored_auth"


@pytest.fixture(scope="module")
def lab(engines: Outside, engine: EchoEngine) -> Iterator[Lab]:
    with gateway(engines, idle_timeout=5) as lab:
        yield lab
        assert_sound(lab)


FEW = pytest.param(5, marks=pytest.mark.timeout(300))
MANY = pytest.param(300, marks=[pytest.mark.long, pytest.mark.timeout(1800)])


@pytest.mark.parametrize("examples", [FEW, MANY])
def test_every_route_keeps_to_the_document(lab: Lab, engine: EchoEngine, examples: int) -> None:
    """Every route with data that fits and data that does not, with a key that opens all of them."""
    configuration = lab.folder / "schemathesis.toml"
    configuration.write_text(CONFIGURATION)
    options = ["--generation-deterministic", "--no-color", "--phases", "coverage,fuzzing"]
    options += ["--max-examples", str(examples), "--checks", CHECKS]
    options += ["--exclude-path", "/admin/budgets"]  # one of nothing for all would refuse what comes after it
    options += ["--header", f"Authorization: Bearer {lab.key}", "--request-timeout", "30"]
    program = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(configuration), "run"]
    url = f"http://127.0.0.1:{lab.port}/openapi.json"
    done = subprocess.run([*program, *options, url], capture_output=True, text=True, cwd=lab.folder, check=False)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    generated = re.search(r"(\d+) generated", done.stdout)
    assert generated, done.stdout
    assert int(generated[1]) > 8 * examples
    assert len(engine.bodies) >= examples, "some of it was good enough to be passed on"
