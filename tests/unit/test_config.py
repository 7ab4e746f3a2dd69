"""The configuration: every fault names its path, its value and what is allowed; nothing else is ever raised."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from firstkit.config import Config, Limits, load_config, parse_config
from firstkit.errors import ConfigError
from firstkit.schedulers import pbs_commands
from firstkit.schedulers.slurm_commands import read_defaults, shape_options

COMMAND = {"kind": "command", "argv": ["/opt/x"]}
EXTERNAL = {"kind": "external", "url": "https://x.example/v1"}


@pytest.fixture(autouse=True)
def _state_dir(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIRST_STATE_DIR", "/var/lib/first")


def parse(data: Any) -> Config:
    return parse_config(yaml.safe_dump(data), "first.yaml")


def minimal(**sections: Any) -> dict[str, Any]:
    deployment = {"cluster": "here", "engine": COMMAND}
    return {"clusters": {"here": {}}, "models": {"m": {"deployments": [deployment]}}, **sections}


def with_deployment(clusters: dict[str, Any] | None = None, **values: Any) -> dict[str, Any]:
    deployment = {"cluster": "here", "engine": COMMAND, **values}
    return {"clusters": clusters or {"here": {}}, "models": {"m": {"deployments": [deployment]}}}


def fault(data: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(data)
    return caught.value.message


def test_limits_are_off_unless_they_are_given() -> None:
    assert not any(parse(minimal()).limits.model_dump().values())
    given = {"requests_per_minute_per_key": 60, "concurrency_per_key": 4, "tokens_per_minute_per_user": "60k"}
    found = parse(minimal(limits=given)).limits
    assert found == Limits(**{**given, "tokens_per_minute_per_user": 60_000})
    assert found.concurrency_per_project is None


def test_an_answer_has_an_hour_unless_it_is_said_otherwise() -> None:
    assert parse(minimal()).server.total_timeout == 3600
    assert parse(minimal(server={"total_timeout": "2h"})).server.total_timeout == 7200


# -- faults ----------------------------------------------------------------------------------------------------------

D = "models.m.deployments[0]"
FAULTS: list[tuple[dict[str, Any], str]] = [
    (
        minimal(sever={}),
        "  sever: unknown key; allowed: server, auth, limits, accounting, projects, budgets, clusters, models",
    ),
    ({"clusters": {}}, "  models: missing"),
    (
        minimal(server={"lisen": 1}),
        "  server.lisen: unknown key; allowed: listen, pilot_listen, pilot_urls, public_url",
    ),
    (minimal(server={"listen": "8000"}), "  server.listen: '8000' is not allowed: must be HOST:PORT"),
    (minimal(server={"listen": "h:65536"}), "  server.listen: 'h:65536' is not allowed: must be HOST:PORT"),
    (minimal(server={"listen": "h:²"}), "  server.listen: 'h:²' is not allowed: must be HOST:PORT"),
    (minimal(server={"hold": "soon"}), "  server.hold: 'soon' is not allowed: must be a duration such as 90s"),
    (minimal(server={"hold": -1}), "  server.hold: -1 is not allowed: Input should be greater than or equal to 0"),
    (minimal(server={"total_timeout": 0}), "  server.total_timeout: 0 is not allowed: Input should be greater than 0"),
    (
        minimal(limits={"requests_per_minute_per_key": 0}),
        "  limits.requests_per_minute_per_key: 0 is not allowed: Input should be greater than or equal to 1",
    ),
    (
        minimal(limits={"concurrency_per_key": 10_000_001}),
        "  limits.concurrency_per_key: 10000001 is not allowed: Input should be less than or equal to 10000000",
    ),
    (
        minimal(limits={"tokens": 1}),
        "  limits.tokens: unknown key; allowed: requests_per_minute_per_key, requests_per_minute_per_user",
    ),
    (minimal(server={"hold": True}), "  server.hold: True is not allowed: must be a duration"),
    (
        minimal(server={"hold": "101000d"}),
        "  server.hold: '101000d' is not allowed: Input should be less than or equal",
    ),
    (minimal(server={"hold": 10**400}), "  server.hold: 1000"),
    (with_deployment(scale={"max_in_flight": 10**9}), f"  {D}.scale.max_in_flight: 1000000000 is not allowed: Input"),
    (minimal(server={"hold": float("inf")}), "  server.hold: inf is not allowed: Input should be a finite number"),
    (minimal(server={"hold": "9" * 400 + "d"}), "is not allowed: Input should be a finite number"),
    (minimal(server={"max_waiting": 0}), "  server.max_waiting: 0 is not allowed: Input should be greater than"),
    (minimal(auth={"api_keys": False}), "  auth.api_keys: False is not allowed: Input should be True"),
    (minimal(auth={"ldap": {}}), "  auth.ldap: unknown key; allowed: api_keys, globus, oidc, cache, session"),
    (minimal(auth={"globus": {"client_id": "x"}}), "  auth.globus.client_id: 'x' is not allowed: must be a UUID"),
    (minimal(auth={"globus": {}}), "  auth.globus.client_secret_file: missing"),
    (minimal(auth={"oidc": {"issuer": "x", "audience": "y"}}), "  auth.oidc.issuer: 'x' is not allowed: must be an ad"),
    (
        minimal(auth={"oidc": {"issuer": "https://x.org", "audience": "y", "introspection": True}}),
        "  auth.oidc: introspection: client_id and client_secret_file are needed with it",
    ),
    (
        minimal(auth={"oidc": {"issuer": "https://x.org", "audience": "y", "algorithms": ["none"]}}),
        "  auth.oidc.algorithms[0]: 'none' is not allowed: Input should be 'RS256'",
    ),
    (minimal(server={"trusted_proxies": ["x"]}), "  server.trusted_proxies[0]: 'x' is not allowed: must be an address"),
    (minimal(server={"public_url": "x.org"}), "  server.public_url: 'x.org' is not allowed: must be an address such"),
    (minimal(projects={"a": {"domains": ["x"]}}), "  projects.a.domains[0]: 'x' is not allowed: must be a domain"),
    (minimal(projects={"a": {"share": 0}}), "  projects.a.share: 0 is not allowed: Input should be greater than 0"),
    (minimal(budgets=[{"project": "a"}]), "  budgets[0]: one of tokens and node_hours is needed, and not both"),
    (minimal(budgets=[{"tokens": "many"}]), "  budgets[0].tokens: 'many' is not allowed: must be a whole number such"),
    (minimal(budgets=[{"tokens": 1, "model": "x"}]), "  budgets[0].model: 'x' is not a model; allowed: m"),
    (minimal(budgets=[{"node_hours": 1, "each": "user"}]), "  budgets[0]: node_hours: these are of projects"),
    (minimal(budgets=[{"tokens": 1, "each": "user", "user": "x"}]), "  budgets[0]: each: the user is named"),
    (minimal(clusters={"a b": {}}), "  clusters.a b: 'a b' is not allowed: must be letters, digits"),
    (minimal(clusters={"here": {"scheduler": {"kind": "lsf"}}}), "  clusters.here.scheduler.kind: 'lsf' is not"),
    (minimal(clusters={"here": {"x": 1}}), "  clusters.here.x: unknown key; allowed: kind, scheduler, carrier, link"),
    (minimal(models={"a b": {"deployments": []}}), "  models.a b: 'a b' is not allowed: must be letters, digits"),
    (minimal(models={"m": {"deployments": []}}), "  models.m.deployments: [] is not allowed: "),
    (minimal(models={"m": {}}), "  models.m.deployments: missing"),
    (with_deployment(engine={"kind": "magic"}), f"  {D}.engine.kind: 'magic' is not allowed: Input should be 'llam"),
    (with_deployment(engine={"kind": "vllm", "binry": 1}), f"  {D}.engine.binry: unknown key; allowed: kind, python"),
    (with_deployment(engine={"kind": "command"}), f"  {D}.engine: argv: an engine of kind 'command' needs the prog"),
    (with_deployment(engine={**EXTERNAL, "url": "ftp://x"}), f"  {D}.engine: url: an engine of kind 'external' needs"),
    (with_deployment(engine={**COMMAND, "api_key_env": "K"}), f"  {D}.engine: url and api_key_env are for engines of"),
    (with_deployment(engine={"kind": "vllm", "argv": ["x"]}), f"  {D}.engine: argv is for engines of kind 'command'"),
    (
        with_deployment(engine={"kind": "vllm"}),
        f"  {D}.weights: an engine of kind 'vllm' needs the path of the weights",
    ),
    (
        with_deployment(engine={"kind": "sglang"}),
        f"  {D}.weights: an engine of kind 'sglang' needs the path of the weights",
    ),
    (
        with_deployment(engine={**COMMAND, "capabilities": ["chatt"]}),
        f"  {D}.engine.capabilities[0]: 'chatt' is not allowed: must be one of chat, completions, embeddings",
    ),
    (
        with_deployment(engine={**COMMAND, "capabilities": ["tasks/Two Words"]}),
        f"  {D}.engine.capabilities[0]: 'tasks/Two Words' is not allowed: must be one of",
    ),
    (with_deployment(engine="vllm"), f"  {D}.engine: 'vllm' is not an engine of here; allowed: none are defined"),
    (with_deployment({"here": {"engines": {"x": COMMAND}}}, engine="y"), "'y' is not an engine of here; allowed: x"),
    (
        with_deployment(engine=EXTERNAL),
        f"  {D}.engine: an engine of kind 'external' and a cluster of kind 'external' go",
    ),
    (with_deployment({"here": {"kind": "external"}}), f"  {D}.engine: an engine of kind 'external' and a cluster of"),
    (with_deployment(cluster="there"), f"  {D}.cluster: 'there' is not a cluster; allowed: here"),
    (with_deployment(scale={"hot": 2}), f"  {D}.scale: hot: 2 is more than max: 1"),
    (with_deployment(scale={"replicas": 2}), f"  {D}.scale.replicas: unknown key; allowed: hot, max, max_in_flight"),
    (with_deployment(resources={"nodes": 0}), f"  {D}.resources.nodes: 0 is not allowed: Input should be greater"),
    (with_deployment(resources={"walltime": "9s"}), f"  {D}.resources.walltime: '9s' is not allowed: Input should be"),
    (with_deployment(resources={"walltime": float("inf")}), f"  {D}.resources.walltime: inf is not allowed"),
    (with_deployment(resources={"memory_gib": float("nan")}), f"  {D}.resources.memory_gib: nan is not allowed"),
    (
        with_deployment(weights={"path": "x", "rev": "y"}),
        f"  {D}.weights.rev: unknown key; allowed: path, stage, revision",
    ),
]


@pytest.mark.parametrize(("data", "said"), FAULTS, ids=[said[:60] for _, said in FAULTS])
def test_a_fault_names_path_value_and_what_is_allowed(data: dict[str, Any], said: str) -> None:
    message = fault(data)
    assert message.startswith("first.yaml is not valid:\n")
    assert said in message
    assert "function-" not in message


def test_all_faults_are_told_at_once() -> None:
    message = fault(minimal(server={"hold": "x", "max_wait": "y"}, auth={"z": 1}))
    assert [line.split(":")[0].strip() for line in message.splitlines()[1:]] == [
        "server.hold",
        "server.max_wait",
        "auth.z",
    ]


@pytest.mark.parametrize("name", ["Engineering", "Weights-1", "constrained-x", "function-call", "engine", "weights"])
def test_a_name_stays_in_the_path_whatever_it_is(name: str) -> None:
    models = {name: {"deployments": [{"cluster": "here", "engine": {"kind": "?"}}]}}
    assert f"  models.{name}.deployments[0].engine.kind: '?' is not allowed" in fault(minimal(models=models))


@pytest.mark.parametrize(
    ("models", "said"),
    [
        ({"a": ["x"], "b": ["x"]}, "models.b: the name 'x' is taken by models.a"),
        ({"a": ["b"], "b": []}, "models.b: the name 'b' is taken by models.a"),
        ({"a": ["a"]}, "models.a: the name 'a' is taken by models.a"),
    ],
)
def test_a_name_means_one_model(models: dict[str, list[str]], said: str) -> None:
    deployments = [{"cluster": "here", "engine": COMMAND}]
    data = {name: {"aliases": aliases, "deployments": deployments} for name, aliases in models.items()}
    assert said in fault(minimal(models=data))


def test_two_deployments_of_a_model_on_one_cluster() -> None:
    data = minimal()
    data["models"]["m"]["deployments"] *= 2
    assert "models.m.deployments[1].cluster: 'here' has a deployment of this model already" in fault(data)


@pytest.mark.parametrize("text", ["server: {}\nserver: {}", "clusters: {a: {}, a: {}}", '{"models": 1, "models": 2}'])
def test_a_key_that_is_given_twice(text: str) -> None:
    with pytest.raises(ConfigError, match=r"first.yaml: not valid YAML: the key '\w+' is given twice(?s:.*)line \d"):
        parse_config(text, "first.yaml")


def test_a_state_directory_that_is_too_long_for_sockets() -> None:
    room = 107 - len("/controller.sock")
    parse(minimal(server={"state_dir": "/" + "x" * (room - 1)}))
    for too_long in ("/" + "x" * room, "/" + "é" * (room // 2 + 1)):
        said = (
            f"first.yaml: server.state_dir: '{too_long}' is too long for UNIX sockets; at most {room} bytes are allowed"
        )
        assert fault(minimal(server={"state_dir": too_long})) == said


@pytest.mark.parametrize("path", ["~nobody-of-that-name/x", "a\0b", "\ud800"])
def test_a_state_directory_that_cannot_be(path: str) -> None:
    with pytest.raises(ConfigError, match=r"server\.state_dir: .* is not allowed|invalid Unicode"):
        parse_config(yaml.safe_dump(minimal(server={"state_dir": path})))


@pytest.mark.parametrize("text", ["", "[]", "x", "1", "null"])
def test_a_file_that_is_no_mapping(text: str) -> None:
    with pytest.raises(ConfigError, match="must be a mapping with the keys server, auth, limits, accounting, projects"):
        parse_config(text)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"first\.yaml: cannot be read: No such file"):
        load_config(tmp_path / "first.yaml")
    (tmp_path / "first.yaml").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(ConfigError, match="not UTF-8 text"):
        load_config(tmp_path / "first.yaml")


# -- what is read ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "seconds"),
    [(90, 90), (1.5, 1.5), ("90", 90), ("250ms", 0.25), ("90s", 90), ("5m", 300), ("1.5h", 5400), ("7 d", 604800)],
)
def test_durations(given: object, seconds: float) -> None:
    assert parse(minimal(server={"max_wait": given})).server.max_wait == pytest.approx(seconds)


def test_defaults_survive_a_round_trip() -> None:
    config = parse(minimal())
    assert parse(config.model_dump(mode="json", exclude_unset=True)) == config
    assert parse(config.model_dump(mode="json")) == config


def test_addresses() -> None:
    assert (parse(minimal()).server.host, parse(minimal()).server.port) == ("127.0.0.1", 8000)
    server = parse(minimal(server={"listen": "[::1]:80"})).server
    assert (server.host, server.port) == ("::1", 80)


def test_the_database_is_in_the_state_directory_unless_one_is_named() -> None:
    assert parse(minimal()).server.database_url == "sqlite:////var/lib/first/first.db"
    assert parse(minimal(server={"database": "postgresql:///x"})).server.database_url == "postgresql:///x"


def test_where_clusters_keep_their_state() -> None:
    clusters = {"here": {}, "there": {"state_dir": "/eagle/first"}}
    config = parse(minimal(clusters=clusters))
    assert config.cluster_state_dir("here") == Path("/var/lib/first/clusters/here")
    assert config.cluster_state_dir("there") == Path("/eagle/first")


def test_deployments_are_resolved() -> None:
    clusters = {"here": {"models_root": "/models", "engines": {"v": {"kind": "vllm", "setup": "module load x"}}}}
    deployment = {
        "cluster": "here",
        "engine": "v",
        "weights": "llama",
        "args": {"max-model-len": 8192},
        "resources": {"memory_gib": 0.5, "walltime": "6h", "gpus_per_node": 4},
        "scale": {"max": 3, "max_in_flight": 64},
    }
    [resolved] = parse(minimal(clusters=clusters, models={"org/m": {"deployments": [deployment]}})).deployments()
    assert (resolved.name, resolved.weights, resolved.is_external) == ("org/m@here", "/models/llama", False)
    spec = resolved.replica_spec("rep-1")
    assert (spec.engine.name, spec.engine.kind, spec.engine.setup) == ("v", "vllm", "module load x")
    assert (spec.needs.memory_bytes, spec.needs.walltime_s, spec.needs.gpus_per_node) == (2**29, 21600, 4)
    assert (spec.args, spec.max_in_flight) == ({"max-model-len": 8192}, 64)


def test_weights_may_be_absolute_or_have_a_revision() -> None:
    engine = {"kind": "llamacpp"}
    clusters = {"here": {"models_root": "/models"}}
    for weights, path in (("/other/x.gguf", "/other/x.gguf"), ({"path": "x.gguf", "revision": "1"}, "/models/x.gguf")):
        [resolved] = parse(with_deployment(clusters, engine=engine, weights=weights)).deployments()
        assert resolved.weights == path


# -- anything --------------------------------------------------------------------------------------------------------

WORDS = [
    *("server", "auth", "clusters", "models", "listen", "state_dir", "hold", "here", "m", "deployments", "cluster"),
    *("engine", "kind", "command", "external", "argv", "url", "weights", "path", "args", "resources", "scale", "hot"),
    *("memory_gib", "walltime", "aliases", "engines", "scheduler", "local", "127.0.0.1:1", "http://x", "~x", "1e400d"),
]
words = st.sampled_from(WORDS) | st.text(max_size=6)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | words | st.dates()
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words | st.integers() | st.none(), inner, max_size=4),
    max_leaves=12,
)


def mutate(data: Any, draw: Any) -> Any:
    """``data`` with one value somewhere in it replaced, left out or added."""
    if isinstance(data, list) and data:
        return [mutate(data[0], draw), *data[1:]]
    if not isinstance(data, dict) or draw(st.integers(0, 3)) == 0:
        return draw(values)
    key = draw(st.sampled_from([*data, *WORDS]))
    return {**data, key: mutate(data.get(key), draw)}


@given(st.dictionaries(words, values, max_size=5))
def test_any_mapping_is_a_configuration_or_an_error(data: dict[str, Any]) -> None:
    with contextlib.suppress(ConfigError):
        parse(data).deployments()


@given(st.data())
def test_any_change_of_a_good_file_is_a_configuration_or_an_error(data: st.DataObject) -> None:
    with contextlib.suppress(ConfigError):
        parse(mutate(with_deployment(scale={"hot": 1}, resources={"memory_gib": 1}), data.draw)).deployments()


PIECES = [
    *("{", "}", "[", "]", ": ", "- ", "\n", "  ", "&a ", "*a", "!!int ", "!!float ", "!!bool ", "!!timestamp ", "? "),
    *(
        "!!python/object/apply:os.abort []",
        "!!set",
        "!!omap",
        "<<: ",
        "|",
        "'",
        '"',
        "#",
        "%",
        "9" * 5000,
        "2024-99-99",
    ),
    *("2024-02-30T25:61:61Z", "0b2", "0o9", "1:99", "=", "\\ud800", "server", "clusters", "models", "!!binary ", "é"),
]


@given(st.lists(st.sampled_from(PIECES) | st.text(max_size=4), max_size=12).map("".join))
def test_any_text_is_a_configuration_or_an_error(text: str) -> None:
    with contextlib.suppress(ConfigError):
        parse_config(text).deployments()


@pytest.mark.parametrize(
    "text",
    [
        "a: 2024-99-99",
        "a: !!int x",
        "a: !!bool x",
        "a: !!timestamp x",
        "a: " + "9" * 5000,
        "&a [*a]",
        "server: &a {x: *a}",
        "models: &a [*a]",
        "[" * 2000,
        "{a: " * 2000,
        "? {a: b}\n: c",
        "!!python/object/apply:os.abort []",
    ],
)
def test_traps_of_yaml(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_config(text)


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[2] / "examples").glob("*.yaml")), ids=lambda path: path.name
)
def test_examples_are_valid(path: Path) -> None:
    assert load_config(path).deployments()


def test_what_holds_for_all_jobs_of_slurm_reaches_each_job_once() -> None:
    text = """
clusters: {far: {scheduler: {kind: slurm, partition: gpu, directives: [--licenses=x]}}}
models:
  m:
    deployments:
      - {cluster: far, engine: {kind: command, argv: [x]}, resources: {qos: high, directives: [--switches=1]}}
"""
    config = parse_config(text)
    [deployment] = config.deployments()
    settings = config.clusters["far"].scheduler_settings()
    options = shape_options(deployment.resources, read_defaults(settings))
    assert options[-4:] == ["--partition=gpu", "--qos=high", "--licenses=x", "--switches=1"]


PBS = "{kind: pbs, queue: prod, account: proj, project: science, filesystems: [home], constraint: a=1}"


def on_pbs(resources: str, scheduler: str = PBS) -> str:
    return f"""
clusters: {{far: {{scheduler: {scheduler}}}}}
models: {{m: {{deployments: [{{cluster: far, engine: {{kind: command, argv: [x]}}, resources: {resources}}}]}}}}
"""


def test_what_holds_for_all_jobs_of_pbs_reaches_each_job_once() -> None:
    config = parse_config(on_pbs("{partition: big}"))
    [deployment] = config.deployments()
    assert deployment.resources.partition == "big"
    settings = config.clusters["far"].scheduler_settings()
    options = pbs_commands.shape_options(deployment.resources, pbs_commands.read_defaults(settings))
    assert options[:2] == ["-l", "select=1:ncpus=1:mem=1024mb:a=1"]
    assert options[-8:] == ["-l", "filesystems=home", "-q", "big", "-A", "proj", "-P", "science"]


@pytest.mark.parametrize(
    ("resources", "field", "words"),
    [
        ("{qos: high}", "qos", "PBS has no QOS"),
        ("{directives: [--x=1]}", "directives", "PBS takes none"),
        ("{constraint: a100}", "constraint", "resources of a chunk are needed"),
        ("{gpus_per_node: 2}", "gpus_per_node", "exclusive: true"),
        ("{gpus_per_node: 2}", "gpus_per_node", "assigns_gpus: true"),
        ("{gpus_per_node: 2}", "gpus_per_node", "devices: [...]"),
    ],
)
def test_what_a_job_of_pbs_cannot_have_is_refused_with_its_field(resources: str, field: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(on_pbs(resources))
    assert f"models.m.deployments[0].resources.{field}: " in caught.value.message
    assert words in caught.value.message


@pytest.mark.parametrize(
    ("resources", "scheduler"),
    [
        ("{gpus_per_node: 2, exclusive: true}", PBS),
        ("{gpus_per_node: 2}", "{kind: pbs, assigns_gpus: true}"),
        ("{gpus_per_node: 2}", "{kind: pbs, devices: ['0', '1']}"),
    ],
)
def test_each_way_to_gpus_of_pbs_is_valid(resources: str, scheduler: str) -> None:
    assert parse_config(on_pbs(resources, scheduler)).deployments()


SPREAD = {"nodes": 2, "exclusive": True}
RANKED = {"kind": "command", "argv": ["/x", "{rank}", "{socket}"]}


@pytest.mark.parametrize(
    ("resources", "engine", "scheduler", "message"),
    [
        (SPREAD, RANKED, "local", "resources.nodes: more than 1 needs a scheduler of kind 'slurm' or 'pbs'"),
        ({"nodes": 2}, RANKED, "slurm", "resources.exclusive: must be true where a replica has several nodes"),
        (SPREAD, {"kind": "sglang"}, "slurm", "engine: an engine of kind 'sglang' runs on one node; on several: vllm"),
        (SPREAD, {"kind": "command", "argv": ["/x", "{socket}"]}, "pbs", "engine.argv: {rank} is needed"),
    ],
)
def test_a_replica_of_several_nodes_that_nobody_could_start(
    resources: dict[str, Any], engine: dict[str, Any], scheduler: str, message: str
) -> None:
    deployment = {"cluster": "c", "engine": engine, "resources": resources, "weights": "w"}
    clusters = {"c": {"scheduler": {"kind": scheduler}}}
    with pytest.raises(ConfigError) as caught:
        parse({"clusters": clusters, "models": {"m": {"deployments": [deployment]}}})
    assert f"models.m.deployments[0].{message}" in str(caught.value)


@pytest.mark.parametrize("scheduler", ["slurm", "pbs"])
@pytest.mark.parametrize("engine", [RANKED, {"kind": "vllm"}])
def test_a_replica_of_several_nodes(scheduler: str, engine: dict[str, Any]) -> None:
    deployment = {"cluster": "c", "engine": engine, "resources": SPREAD, "weights": "w"}
    clusters = {"c": {"scheduler": {"kind": scheduler}}}
    config = parse({"clusters": clusters, "models": {"m": {"deployments": [deployment]}}})
    assert config.deployments()[0].resources.nodes == 2


@pytest.mark.parametrize(
    ("cluster", "path", "sentence"),
    [
        ({}, "/m", "deployments[0].weights.stage: 'node-local' needs clusters.here.scratch, a folder of each node"),
        ({"scratch": "tmp"}, "/m", "clusters.here.scratch: 'tmp' must begin with / or a variable: $TMPDIR"),
        ({"scratch": "/tmp"}, "m", "weights.path: 'm' must be absolute to be copied, or below models_root"),
    ],
)
def test_copies_of_weights_need_a_place_on_the_node(cluster: dict[str, str], path: str, sentence: str) -> None:
    weights = {"path": path, "stage": "node-local"}
    assert sentence in fault(with_deployment({"here": cluster}, weights=weights))


def test_weights_are_copied_where_the_configuration_says_so() -> None:
    config = parse(
        with_deployment(
            {"here": {"scratch": "$TMPDIR", "models_root": "/models"}}, weights={"path": "m", "stage": "node-local"}
        )
    )
    [deployment] = config.deployments()
    assert (deployment.weights, deployment.replica_spec("rep-1").stage) == ("/models/m", "node-local")
