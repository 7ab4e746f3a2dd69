"""What ``first cluster install`` brings to a cluster: a script that sets it up, and the list of what is allowed."""

from __future__ import annotations

import base64
import json
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from firstkit.clusters.zipapp import build, content_hash, sources
from firstkit.config import Config, ResolvedDeployment
from firstkit.engines.engine import EngineSpec
from firstkit.errors import ConfigError
from firstkit.onsite.allowed import Allowed, AllowedEngine, allowed_document, usual_args

SCRIPT = """\
# Sets up FIRST on a cluster: run it there as the user whose jobs run the engines, with Python 3.9 or newer.
import base64, json, os, shutil, sys, tempfile
if sys.version_info < (3, 9):
    sys.exit("Error: Python 3.9 or newer is needed; %s is %s: name another" % (sys.executable, sys.version.split()[0]))
NAME = {name}
ORDER = json.loads({order})
PROGRAM = {program}
folder = tempfile.mkdtemp(prefix="first-install-")
try:
    program = os.path.join(folder, NAME)
    with open(program, "wb") as file:
        file.write(base64.b64decode(PROGRAM))
    sys.path.insert(0, program)
    from firstkit.onsite.placing import main
    status = main(program, NAME, ORDER)
finally:
    shutil.rmtree(folder)
sys.exit(status)
"""


def install_script(config: Config, name: str, public_key: str | None) -> str:
    """A Python program that sets up the cluster ``name`` where it is run; it holds no secret."""
    files = sources()
    order = {
        "state_dir": str(config.cluster_state_dir(name)),
        "allowed": allowed_document(allowed_of(config, name)),
        "public_key": public_key,
    }
    return SCRIPT.format(
        name=repr(program_name(files)),
        order=repr(json.dumps(order)),
        program=repr(base64.b64encode(build(files)).decode()),
    )


def program_name(files: dict[str, bytes] | None = None) -> str:
    """The name of our program, which tells it from that of any other version."""
    return f"first-{content_hash(sources() if files is None else files)}.pyz"


def run_there(target: str, python: str, script: str) -> int:
    """Run the script on ``target`` by this person's own ssh, which may ask for a password; returns the exit status."""
    command = ["ssh", "-T", "--", target, python, "-I", "-"]
    return subprocess.run(command, input=script.encode(), check=False).returncode


def public_key_of(key_file: Path) -> str:
    """The public half of a key, as in ``authorized_keys``; raises ConfigError when there is none to be had."""
    public = key_file.with_name(f"{key_file.name}.pub")
    import asyncssh

    try:
        key = asyncssh.read_public_key(public) if public.is_file() else asyncssh.read_private_key(key_file)
        return key.export_public_key().decode().strip()
    except (OSError, ValueError, asyncssh.Error) as exc:
        raise ConfigError(f"neither {public} nor {key_file} can be read as a key: {exc}") from exc


# -- the list ----------------------------------------------------------------------------------------------------------


def allowed_of(config: Config, name: str) -> Allowed:
    """The least that the configuration needs on the cluster: its engines, with the options that size them and what its
    deployments say besides, its weights, partitions (of PBS: queues), accounts, projects, QOS and directives."""
    cluster = config.clusters[name]
    deployments = [deployment for deployment in config.deployments() if deployment.cluster == name]
    needs = [deployment.resources for deployment in deployments]
    usual = cluster.scheduler.model_dump()
    return Allowed(
        scheduler=cluster.scheduler.kind,
        env=dict(cluster.env),
        engines=_engines([engine.spec(key) for key, engine in cluster.engines.items()], deployments),
        weights=_weights(cluster.models_root, deployments),
        partitions=_names(usual.get("partition") or usual.get("queue"), [need.partition for need in needs]),
        accounts=_names(usual.get("account"), [need.account for need in needs]),
        projects=(usual.get("project"),) if cluster.scheduler.kind == "pbs" else None,
        qos=_names(usual.get("qos"), [need.qos for need in needs]),
        directives=tuple(sorted({*usual.get("directives", ()), *(one for need in needs for one in need.directives)})),
    )


def _engines(named: Iterable[EngineSpec], deployments: Sequence[ResolvedDeployment]) -> tuple[AllowedEngine, ...]:
    specs: list[EngineSpec] = []
    for spec in (*named, *(deployment.engine for deployment in deployments)):
        if spec not in specs:
            specs.append(spec)
    return tuple(AllowedEngine(spec, _args(spec, deployments)) for spec in specs)


def _args(spec: EngineSpec, deployments: Iterable[ResolvedDeployment]) -> dict[str, Any]:
    rules = usual_args(spec.kind)
    for deployment in deployments:
        if deployment.engine == spec:
            for option, value in deployment.args.items():
                rule = rules.setdefault(option, [])
                if isinstance(rule, list) and json.dumps(value) not in map(json.dumps, rule):  # true is not 1
                    rule.append(value)
    return rules


def _weights(models_root: Path | None, deployments: Iterable[ResolvedDeployment]) -> tuple[str, ...]:
    """The folder of the models, and each path that is elsewhere."""
    folder = [] if models_root is None else [str(models_root)]
    paths = {deployment.weights for deployment in deployments if deployment.weights is not None}
    elsewhere = {path for path in paths if models_root is None or not Path(path).is_relative_to(models_root)}
    return (*folder, *sorted(elsewhere))


def _names(usual: str | None, needed: Iterable[str | None]) -> tuple[str | None, ...]:
    found = {*needed, usual} if usual is not None else set(needed)
    return tuple(sorted(found, key=lambda name: (name is not None, name or "")))
