"""``first cluster install`` and ``first cluster check``, with a cluster on this machine and one that is not there."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from firstkit.cli.commands import build

FIRST_YAML = """
server: {{pilot_listen: "127.0.0.1:1", state_dir: {folder}/server}}
clusters:
  here:
    scheduler: {{cpus: 1}}
    state_dir: {folder}/here
    engines: {{sh: {{kind: command, argv: [/bin/sh, "{{socket}}"]}}}}
  far:
    carrier: {{kind: ssh, host: 127.0.0.1, port: 1, user: me, key_file: {folder}/key, known_hosts: {folder}/hosts}}
    link: {{kind: tunnel}}
    state_dir: {folder}/far
  cloud: {{kind: external}}
models:
  m: {{deployments: [{{cluster: here, engine: sh, weights: {folder}, resources: {{memory_gib: 0.1}}}}]}}
"""
PUBLIC = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIK0wmN/Cr3JXqmLW7u+g9pTh+wyqDHpSQEIQczXkVx9q me"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "first.yaml"
    path.write_text(FIRST_YAML.format(folder=tmp_path))
    return path


def first(config: Path, *words: str) -> Result:
    return CliRunner().invoke(build(["cluster"]), ["cluster", *words, "--config", str(config)])


def test_a_cluster_on_this_machine_is_installed_and_checked(config: Path, tmp_path: Path) -> None:
    result = first(config, "install", "here")
    assert (result.exit_code, result.output) == (0, f"{next((tmp_path / 'here' / 'bin').iterdir())} is in place.\n")
    result = first(config, "check", "here", "--job", "--wait", "30")
    assert result.exit_code == 0, result.output
    for line in ("ok       carrier: this machine", "ok       m@here: weights", "ok       trial job: ran on"):
        assert line in result.output


def test_what_fails_is_said_with_what_to_do_and_the_status(config: Path) -> None:
    config.write_text(
        config.read_text().replace("/bin/sh", "/no/such/sh").replace("memory_gib: 0.1", "memory_gib: 9999")
    )
    result = first(config, "check", "here")
    assert result.exit_code == 1
    assert "failed   m@here: program: /no/such/sh is not on" in result.output
    assert "correct the path" in result.output
    assert "failed   m@here: job: the job asks for" in result.output
    assert "Error: 2 failed: m@here: program, m@here: job." in result.output
    findings = json.loads(first(config, "check", "here", "--json").stdout)
    assert {"what", "status", "found", "fix"} == set(findings[0])


def test_a_cluster_that_cannot_be_reached(config: Path, tmp_path: Path) -> None:
    result = first(config, "check", "far")
    assert result.exit_code == 1
    assert f"failed   carrier: key_file: {tmp_path}/key cannot be read" in result.output
    (tmp_path / "key").touch(mode=0o600)
    (tmp_path / "hosts").touch()
    assert "failed   carrier: " in first(config, "check", "far").output


def test_names_that_are_no_clusters(config: Path) -> None:
    for name in ("nowhere", "cloud"):
        for command in ("install", "check"):
            result = first(config, command, name)
            assert result.exit_code == 1
            assert f"there is no cluster '{name}' with a scheduler" in result.output
            assert "here, far" in result.output


def test_an_installation_elsewhere_needs_to_know_how(config: Path, tmp_path: Path) -> None:
    assert "ssh-keygen -t ed25519" in first(config, "install", "far").output
    (tmp_path / "key.pub").write_text(PUBLIC)
    result = first(config, "install", "far")
    assert result.exit_code == 1
    assert "--to me@127.0.0.1" in result.output
    assert "without blanks" in first(config, "install", "far", "--to", "x", "--python", "a; id").output
    script = tmp_path / "set-up.py"
    result = first(config, "install", "far", "--script", str(script))
    assert result.exit_code == 0, result.output
    assert PUBLIC in script.read_text()
