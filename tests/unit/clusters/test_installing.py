import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from firstkit.clusters.installing import allowed_of, install_script, program_name, public_key_of, run_there
from firstkit.config import Config, parse_config
from firstkit.errors import ConfigError
from firstkit.onsite.allowed import check_replica, check_resources, parse_allowed, read_allowed

FIRST_YAML = """
server: {pilot_listen: "127.0.0.1:8443"}
clusters:
  far:
    scheduler: {kind: slurm, partition: gpu, account: proj, directives: [--licenses=x]}
    carrier: {kind: ssh, host: far-login, user: first, key_file: /k, known_hosts: /h}
    link: {kind: tunnel}
    env: {SLURM_CONF: /etc/slurm/far.conf}
    state_dir: STATE
    models_root: /eagle/models
    engines:
      vllm: {kind: vllm, python: /opt/vllm/bin/python, setup: module load cuda}
      spare: {kind: llamacpp, binary: /opt/llama-server}
  here: {models_root: /m}
models:
  one:
    deployments:
      - {cluster: far, engine: vllm, weights: one, args: {max-model-len: 8, trust-remote-code: true}}
      - {cluster: here, engine: {kind: command, argv: [x, "{socket}"]}}
  two:
    deployments:
      - cluster: far
        engine: vllm
        weights: /old/two
        args: {chat-template: /t.jinja}
        resources: {partition: big, qos: night, directives: [--reservation=r]}
  three:
    deployments:
      - {cluster: far, engine: {kind: command, argv: [/opt/s, "{socket}"]}}
"""


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return parse_config(FIRST_YAML.replace("STATE", str(tmp_path / "state")))


def test_the_list_is_what_the_configuration_needs(config: Config) -> None:
    allowed = allowed_of(config, "far")
    assert (allowed.scheduler, allowed.env) == ("slurm", {"SLURM_CONF": "/etc/slurm/far.conf"})
    assert [entry.engine.name for entry in allowed.engines] == ["vllm", "spare", "command"]
    assert allowed.weights == ("/eagle/models", "/old/two")
    assert (allowed.partitions, allowed.accounts, allowed.qos) == (("big", "gpu"), ("proj",), (None, "night"))
    assert allowed.directives == ("--licenses=x", "--reservation=r")
    rules = allowed.engines[0].args
    assert (rules["max-model-len"], rules["trust-remote-code"]) == ("any", [True])
    assert rules["chat-template"] == ["/t.jinja"]
    assert "worker-cls" not in rules
    for deployment in config.deployments():
        if deployment.cluster == "far":
            check_replica(allowed, deployment.replica_spec("r"))
            check_resources(allowed, deployment.resources)


def test_the_script_sets_the_cluster_up(config: Config, tmp_path: Path) -> None:
    script = install_script(config, "far", "ssh-ed25519 AAAA me")
    done = subprocess.run(
        [sys.executable, "-I", "-"], input=script, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1].endswith('" ssh-ed25519 AAAA me')
    state_dir = tmp_path / "state"
    assert (state_dir / "bin" / program_name()).exists()
    allowed = read_allowed(str(state_dir))
    assert allowed is not None
    assert allowed.engines == parse_allowed(json.loads((state_dir / "allowed.json").read_text())).engines
    assert allowed.engines[0].engine.setup == "module load cuda"


def test_the_script_says_so_where_python_is_too_old(config: Config) -> None:
    script = install_script(config, "far", None).replace("(3, 9)", "(9, 9)")
    done = subprocess.run([sys.executable, "-"], input=script, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "Python 3.9 or newer is needed" in done.stderr


def test_the_public_half_of_a_key(tmp_path: Path) -> None:
    key = tmp_path / "key"
    with pytest.raises(ConfigError, match="can be read as a key"):
        public_key_of(key)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "me", "-f", str(key)], check=True)
    public = key.with_name("key.pub")
    text = public.read_text().strip()
    assert public_key_of(key) == text
    public.unlink()
    assert public_key_of(key) == text
    public.write_text('command="x" ssh-ed25519 AAAA\nmore\n')
    with pytest.raises(ConfigError):
        public_key_of(key)


def test_a_person_goes_there_by_ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ssh = tmp_path / "ssh"
    ssh.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {tmp_path}/words\ncat > {tmp_path}/script\nexit 7\n')
    ssh.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert run_there("me@far", "/usr/bin/python3.11", "print()") == 7
    assert (tmp_path / "words").read_text().split() == ["-T", "--", "me@far", "/usr/bin/python3.11", "-I", "-"]
    assert (tmp_path / "script").read_text() == "print()"
