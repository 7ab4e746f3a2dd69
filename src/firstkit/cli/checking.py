"""``first config``: what is wrong with a configuration, and what all of it is."""

from __future__ import annotations

import os
import re
import shutil
import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import typer

from firstkit.cli.common import ConfigOption, fail, find_config, open_config
from firstkit.errors import ConfigError

if TYPE_CHECKING:
    from firstkit.config import Config, ResolvedDeployment

app = typer.Typer(help="Check and show the configuration.", no_args_is_help=True)
PASSWORD = re.compile(r"(://[^/@\s:]*:)[^@\s]*(?=@)|([?&]password=)[^&\s]*")


@app.command()
def check(config: ConfigOption = None) -> None:
    """Look at the whole configuration and name every fault."""
    path = find_config(config)
    found = open_config(path)
    deployments = found.deployments()
    if faults := [fault for deployment in deployments if (fault := _fault(deployment))]:
        fail("\n  ".join([f"{path} is not valid:", *faults]), "Correct the file and look again: 'first config check'.")
    warnings = [*_machine_warnings(found), *(words for one in deployments for words in _warnings(one))]
    for words in warnings:
        print(f"Warning: {words}", file=sys.stderr)
    print(f"{path} is valid: {_count(len(found.clusters), 'cluster')}, {_count(len(found.models), 'model')}.")


@app.command()
def show(config: ConfigOption = None) -> None:
    """Print the configuration with all defaults, without passwords."""
    import yaml

    content = masked(open_config(config).model_dump(mode="json"))
    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    sys.stdout.write(yaml.dump(content, Dumper=dumper, sort_keys=False, allow_unicode=True))


def masked(value: Any) -> Any:
    """``value`` with every password in a URL replaced by ``***``."""
    if isinstance(value, dict):
        return {key: masked(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [masked(inner) for inner in value]
    return PASSWORD.sub(lambda match: f"{match[1] or match[2]}***", value) if isinstance(value, str) else value


def _fault(deployment: ResolvedDeployment) -> str | None:
    """What the engine itself says against a deployment."""
    from firstkit.engines.registry import engine_of

    try:
        engine_of(deployment.engine).check(deployment.replica_spec("check"))
    except ConfigError as exc:
        return exc.message
    return None


def _warnings(deployment: ResolvedDeployment) -> list[str]:
    """What is not on this machine; it may be there when the model starts."""
    engine, where = deployment.engine, f"models.{deployment.model} on {deployment.cluster}"
    found = []
    if deployment.weights and not os.path.exists(deployment.weights):
        found.append(f"{where}: there are no weights at {deployment.weights}.")
    program = engine.program
    if program and not engine.setup and shutil.which(program) is None:
        found.append(f"{where}: the program {program} is not there, or may not be run.")
    if engine.kind == "llamacpp" and not program and find_spec("xllamacpp") is None:
        found.append(f"{where}: the package xllamacpp is missing: pip install 'firstkit[demo]'.")
    if engine.api_key_env and not os.environ.get(engine.api_key_env):
        found.append(f"{where}: the environment variable {engine.api_key_env} is not set here; the gateway needs it.")
    return found


def _machine_warnings(config: Config) -> list[str]:
    """Deployments that ask for more than their cluster lends: their jobs would be REJECTED."""
    from firstkit.errors import SchedulerRefused
    from firstkit.schedulers.machine import check_fits, read_machine

    found = []
    for deployment in config.deployments():
        cluster = config.clusters[deployment.cluster]
        if cluster.kind != "batch" or cluster.scheduler.kind != "local":
            continue
        try:
            machine = read_machine(cluster.scheduler.model_dump(), {**os.environ, **cluster.env})
            check_fits(deployment.resources, machine)
        except SchedulerRefused as exc:
            found.append(f"models.{deployment.model} on {deployment.cluster}: {exc.message}.")
    return found


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
