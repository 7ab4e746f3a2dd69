import json
import os
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstkit.engines.engine import EngineSpec, ReplicaSpec
from firstkit.onsite.allowed import (
    ALLOWED_FILE,
    ANY,
    GATE_FILE,
    Allowed,
    AllowedEngine,
    NotAllowed,
    allowed_document,
    check_replica,
    check_resources,
    document_digest,
    parse_allowed,
    read_allowed,
    usual_args,
)
from firstkit.schedulers.scheduler import Resources
from firstkit.wire import WireError

VLLM = EngineSpec("vllm", "vllm", python="/opt/vllm/bin/python", env={"A": "b"}, setup="module load conda")
RULES: dict[str, Any] = {**usual_args("vllm"), "chat-template": ["/opt/t.jinja"], "trust-remote-code": [False, 1]}
LIST = Allowed("slurm", {}, (AllowedEngine(VLLM, RULES),), ("/eagle/models", "/old/one.gguf"), path="/x/allowed.json")
REPLICA = ReplicaSpec("rep-1", "org/m", "org/m@far", VLLM, weights="/eagle/models/m", args={"max-model-len": 4096})


def test_what_is_on_the_list_may_run() -> None:
    check_replica(LIST, REPLICA)
    for weights in (None, "/old/one.gguf", "/eagle/models/a/b..c/.d"):
        check_replica(LIST, replace(REPLICA, weights=weights))
    args = {"chat-template": "/opt/t.jinja", "trust-remote-code": False, "enforce-eager": True, "dtype": "half"}
    check_replica(LIST, replace(REPLICA, args=args))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"engine": EngineSpec("vllm", "other")}, 'the engine "other" is not in /x/allowed.json'),
        ({"engine": replace(VLLM, setup="id")}, "defined otherwise in /x/allowed.json: setup"),
        ({"engine": replace(VLLM, binary="/bin/sh", env={})}, "otherwise in /x/allowed.json: binary, env"),
        ({"engine": replace(VLLM, kind="command", argv=("/bin/sh",))}, "kind, argv"),
        ({"args": {"trust-remote-code": True}}, "args.trust-remote-code: /x/allowed.json allows other values"),
        ({"args": {"chat-template": "/etc/passwd"}}, "args.chat-template"),
        ({"args": {"max-model-le": 1}}, 'the option "max-model-le" of the engine'),
        ({"args": {"worker-cls": "os.system"}}, 'the option "worker-cls"'),
        ({"args": {"max-model-len": ["1", "--x"]}}, "text, a number, true or false"),
        ({"args": {"max-model-len": {"a": 1}}}, "text, a number, true or false"),
        ({"args": {"max-model-len": None}}, "text, a number, true or false"),
        ({"weights": "/eagle/models/../keys"}, "are not at a place"),
        ({"weights": "/eagle/modelsx"}, "are not at a place"),
        ({"weights": "/eagle/models/./m"}, "are not at a place"),
        ({"weights": "/eagle/models/m/"}, "are not at a place"),
        ({"weights": "//eagle/models/m"}, "are not at a place"),
        ({"weights": "/eagle/models/\0"}, "are not at a place"),
        ({"weights": "org/from-the-net"}, "are not at a place"),
        ({"weights": ""}, "are not at a place"),
        ({"model": "--trust-remote-code"}, "the name of a model"),
        ({"model": "m\n"}, "the name of a model"),
        ({"deployment": "m@far\nline of a log"}, "the name of a model"),
    ],
)
def test_what_is_not_on_the_list_may_not(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(NotAllowed) as caught:
        check_replica(LIST, replace(REPLICA, **changes))
    assert words in caught.value.message


def test_any_option_where_the_operator_says_so() -> None:
    anything = replace(LIST, engines=(AllowedEngine(VLLM, ANY),))
    check_replica(anything, replace(REPLICA, args={"trust-remote-code": True}))


def test_of_several_definitions_of_one_name_each_may_run() -> None:
    two = replace(LIST, engines=(AllowedEngine(VLLM), AllowedEngine(replace(VLLM, setup="other"), ANY)))
    check_replica(two, replace(REPLICA, engine=replace(VLLM, setup="other")))
    with pytest.raises(NotAllowed, match="max-model-len"):
        check_replica(two, REPLICA)


def test_what_requests_write_is_no_weights(tmp_path: Path) -> None:
    """Not even where somebody keeps the state below the models, by whatever name."""
    state = tmp_path / "models" / "state"
    state.mkdir(parents=True)
    (tmp_path / "models" / "link").symlink_to(state)
    own = replace(LIST, weights=(str(tmp_path / "models"),), path=str(state / ALLOWED_FILE))
    check_replica(own, replace(REPLICA, weights=str(tmp_path / "models" / "m")))
    for folder in ("state", "link"):
        with pytest.raises(NotAllowed):
            check_replica(own, replace(REPLICA, weights=str(tmp_path / "models" / folder / "jobs" / "x")))


@given(st.text(alphabet="abm./\0 ~", max_size=24))
def test_no_text_leads_out_of_the_folder(text: str) -> None:
    weights = f"/m/{text}"
    try:
        check_replica(replace(LIST, weights=("/m",)), replace(REPLICA, weights=weights))
    except NotAllowed:
        return
    assert os.path.normpath(weights).startswith("/m/")


def test_jobs_have_what_the_list_gives() -> None:
    free = Allowed(path="/x")
    check_resources(free, Resources(partition="a", account="b", qos="c", constraint="d&e", walltime_s=10**9, nodes=99))
    bounds = replace(
        *(free,), partitions=("gpu", None), accounts=("p",), directives=("--x=1",), max_nodes=2, max_walltime_s=60
    )
    good = Resources(nodes=2, walltime_s=60, account="p", directives=("--x=1",))
    check_resources(bounds, good)
    for changes, words in (
        ({"partition": "cpu"}, 'the partition "cpu" is not in /x'),
        ({"account": None}, "a job without account is not in /x"),
        ({"directives": ("--x=1", "--x=2")}, 'the directive "--x=2" is not in /x'),
        ({"nodes": 3}, "3 nodes are more than the 2"),
        ({"walltime_s": 61}, "the walltime is more than the 60 s"),
        ({"walltime_s": None}, "the walltime is more than the 60 s"),
        ({"constraint": "a\n--uid=0"}, "the constraint is no printable text"),
        ({"constraint": ""}, "the constraint is no printable text"),
    ):
        with pytest.raises(NotAllowed, match=words):
            check_resources(bounds, replace(good, **changes))  # type: ignore[arg-type]


def test_a_list_says_which_projects_a_gateway_may_name() -> None:
    assert parse_allowed({"scheduler": "pbs", "projects": ["science", None]}).projects == ("science", None)
    assert parse_allowed({"scheduler": "pbs"}).projects is None


# -- the file ----------------------------------------------------------------------------------------------------------


def written(folder: Path, text: str) -> Path:
    path = folder / ALLOWED_FILE
    path.write_text(text)
    path.chmod(0o600)
    return path


def test_the_file_holds_the_whole_list(tmp_path: Path) -> None:
    path = written(tmp_path, json.dumps(allowed_document(LIST)))
    assert read_allowed(str(tmp_path)) == replace(LIST, path=str(path))
    document = json.loads(path.read_text())
    assert document["written_by_install"] == document_digest(document)
    assert document_digest({**document, "max_nodes": 1}) != document_digest(document)


def test_without_file_and_gate_nothing_is_confined(tmp_path: Path) -> None:
    assert read_allowed(str(tmp_path)) is None
    (tmp_path / "bin").mkdir()
    (tmp_path / GATE_FILE).touch()
    with pytest.raises(NotAllowed, match="is missing: nothing is allowed"):
        read_allowed(str(tmp_path))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "an object is needed"),
        ('{"max_node": 1}', "max_node: is not known; allowed: accounts, directives"),
        ('{"path": "/x"}', "path: is not known"),
        ('{"engines": [{}]}', "engines[0].engine: missing"),
        ('{"engines": [{"engine": {"kind": "vllm"}, "arg": "any"}]}', "engines[0].arg: is not known"),
        ('{"engines": [{"engine": {"kind": "vllm", "binry": "x"}}]}', "engines[0].engine.binry: is not known"),
        ('{"engines": [{"engine": {"kind": "vllm"}, "args": "all"}]}', 'engines[0].args: "any" or an object'),
        ('{"engines": [{"engine": {"kind": "vllm"}, "args": {"a": 1}}]}', "engines[0].args.a"),
        ('{"weights": "/"}', "weights: list is needed"),
    ],
)
def test_a_file_that_cannot_be_understood_allows_nothing(tmp_path: Path, text: str, words: str) -> None:
    written(tmp_path, text)
    with pytest.raises(NotAllowed) as caught:
        read_allowed(str(tmp_path))
    assert words in caught.value.message
    assert ALLOWED_FILE in caught.value.message


def test_a_file_that_others_may_write_allows_nothing(tmp_path: Path) -> None:
    path = written(tmp_path, "{}")
    for mode in (0o620, 0o602):
        path.chmod(mode)
        with pytest.raises(NotAllowed, match="may be written by others"):
            read_allowed(str(tmp_path))
    path.unlink()
    path.mkdir()
    with pytest.raises(NotAllowed, match="cannot be read"):
        read_allowed(str(tmp_path))
    assert stat.S_ISDIR(path.stat().st_mode)


def test_the_least_that_a_list_can_say() -> None:
    assert parse_allowed({}) == Allowed()
    with pytest.raises(NotAllowed):
        check_replica(Allowed(), REPLICA)
    with pytest.raises(WireError):
        parse_allowed(None)


def test_no_option_that_loads_code_or_reads_files_is_usual() -> None:
    """By the words that such options of vLLM are made of."""
    words = "code plugin template cls config module path lora loader load-format download tokenizer override endpoint "
    words += "middleware host port url dir file transfer speculative backend"
    for kind in ("vllm", "llamacpp"):
        assert [name for name in usual_args(kind) if any(word in name for word in words.split())] == []
    assert usual_args("command") == {}
