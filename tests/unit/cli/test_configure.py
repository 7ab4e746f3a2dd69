"""``first configure``: what each tool gets, where it goes, and whose key it is."""

from __future__ import annotations

import json
import shlex
import stat
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from firstkit.cli.access import checked_url
from firstkit.cli.commands import build
from firstkit.cli.tools import TOOLS, Model, Target
from unit.cli.servers import Answers, answer, on_port, on_socket

KEY = "first-secret"


def model(name: str, *able: str, context: int | None = None, aliases: tuple[str, ...] = ()) -> dict[str, Any]:
    return {"id": name, "first": {"capabilities": able, "context_length": context, "aliases": aliases}}


MODELS = [
    model("vectors", "embeddings"),
    model("org/talker", "chat", "completions", context=65536, aliases=("default",)),
    model("native", "responses", "messages"),
    model("small", "chat", context=2048),
]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("CODEX_HOME", "FIRST_API_KEY", "FIRST_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("FIRST_STATE_DIR", str(tmp_path / "state"))
    return tmp_path / "home"


@pytest.fixture
def gateway(home: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Answers]:
    """A gateway with these models, its configuration, and a key for it in FIRST_API_KEY."""
    with on_port({"/v1/models": answer("200 OK", json.dumps({"data": MODELS}).encode())}) as server:
        path = folder / "first.yaml"
        path.write_text(yaml.safe_dump({"server": {"listen": f"127.0.0.1:{server.port}", "state_dir": str(folder)}}))
        monkeypatch.setenv("FIRST_CONFIG", str(path))
        monkeypatch.setenv("FIRST_API_KEY", KEY)
        yield server


def configure(*arguments: str, expect: int = 0) -> Result:
    result = CliRunner().invoke(build(["configure", "keys"]), ["configure", *arguments])
    assert result.exit_code == expect, result.output
    return result


def sent_key(server: Answers) -> str:
    return server.requests[-1].partition(b"Authorization: Bearer ")[2].partition(b"\r\n")[0].decode()


def variables(text: str) -> dict[str, str]:
    """What a shell would have after reading it."""
    lines = [shlex.split(line, comments=True) for line in text.splitlines()]
    return dict(words[-1].split("=", 1) for words in lines if words)


# -- what each tool gets -----------------------------------------------------------------------------------------------


def test_lines_for_a_shell(gateway: Answers) -> None:
    text = configure("openai").stdout
    assert variables(text) == {"OPENAI_BASE_URL": gateway.base_url, "OPENAI_API_KEY": KEY}
    assert all(line.startswith(("#", "export ")) for line in text.splitlines())
    assert variables(configure("langchain").stdout) == {"OPENAI_API_BASE": gateway.base_url, "OPENAI_API_KEY": KEY}
    root = gateway.base_url.removesuffix("/v1")
    assert variables(configure("anthropic").stdout) == {"ANTHROPIC_BASE_URL": root, "ANTHROPIC_AUTH_TOKEN": KEY}


def test_open_webui_gets_lines_that_containers_take(gateway: Answers) -> None:
    lines = configure("open-webui").stdout.splitlines()[1:]
    assert dict(line.split("=", 1) for line in lines) == {
        "OPENAI_API_BASE_URL": gateway.base_url,
        "OPENAI_API_KEY": KEY,
        "DEFAULT_MODELS": "org/talker",
        "ENABLE_OLLAMA_API": "false",
    }


def test_opencode(gateway: Answers) -> None:
    sign, _, text = configure("opencode").stdout.partition("\n")
    found = json.loads(text)
    assert sign.startswith("// ")
    assert (found["model"], found["small_model"]) == ("first/org/talker", "first/org/talker")
    assert found["provider"]["first"]["options"] == {"baseURL": gateway.base_url, "apiKey": KEY}
    limits = {name: each.get("limit") for name, each in found["provider"]["first"]["models"].items()}
    assert limits == {
        "org/talker": {"context": 65536, "output": 16384},
        "small": {"context": 2048, "output": 512},
    }


def test_claude_code(gateway: Answers) -> None:
    env = json.loads(configure("claude-code").stdout)["env"]
    assert env["ANTHROPIC_BASE_URL"] == gateway.base_url.removesuffix("/v1")
    assert env["ANTHROPIC_AUTH_TOKEN"] == KEY
    assert {value for name, value in env.items() if name.endswith("MODEL")} == {"org/talker"}
    assert env["CLAUDE_CODE_MAX_OUTPUT_TOKENS"] == "16384"


def test_codex(gateway: Answers) -> None:
    found = tomllib.loads(configure("codex").stdout)
    provider = found["model_providers"][found["model_provider"]]
    assert (found["model"], found["model_context_window"]) == ("org/talker", 65536)
    assert (provider["base_url"], provider["experimental_bearer_token"]) == (gateway.base_url, KEY)
    assert provider["wire_api"] == "responses"
    assert "model_context_window" not in tomllib.loads(configure("codex", "--model", "native").stdout)


def test_continue(gateway: Answers) -> None:
    found = yaml.safe_load(configure("continue").stdout)
    assert found["schema"] == "v1"
    assert [(each["model"], each["roles"][0]) for each in found["models"]] == [
        ("org/talker", "chat"), ("small", "chat"), ("vectors", "embed"),
    ]  # fmt: skip
    assert {(each["apiBase"], each["apiKey"]) for each in found["models"]} == {(gateway.base_url, KEY)}


def test_aider(gateway: Answers) -> None:
    found = yaml.safe_load(configure("aider").stdout)
    assert (found["model"], found["weak-model"]) == ("openai/org/talker", "openai/org/talker")
    assert (found["openai-api-base"], found["openai-api-key"]) == (gateway.base_url, KEY)


def test_the_list(home: Path) -> None:
    rows = json.loads(configure("--list", "--json").stdout)
    assert [row["tool"] for row in rows] == list(TOOLS)
    assert {row["tool"]: row["needs"] for row in rows}["codex"] == "/v1/responses"
    assert len(configure("--list").stdout.splitlines()) == len(TOOLS) + 1


@pytest.mark.parametrize("name", TOOLS)
def test_whatever_a_name_or_a_key_holds_it_stays_one_value(name: str) -> None:
    odd = Target("https://h/v1", "k$(id)`#", (Model("a: b # 'c'\"\\é"),))
    text = TOOLS[name].text(odd)
    assert TOOLS[name].is_ours(text)
    body = text if name == "claude-code" else text.split("\n", 1)[1]
    read: dict[str, Any] = {"codex": tomllib.loads, "opencode": json.loads, "claude-code": json.loads}
    found = read.get(name, variables if ".env" in TOOLS[name].file else yaml.safe_load)(body)
    assert odd.key in _values(found)


def _values(found: Any) -> Iterator[str]:
    """All texts in what was read."""
    inner = found.values() if isinstance(found, dict) else found if isinstance(found, list) else ()
    for value in inner:
        yield from _values(value)
    if isinstance(found, str):
        yield found


# -- for which model, with which key -----------------------------------------------------------------------------------


def test_a_model_by_an_alias_is_named_by_it(gateway: Answers) -> None:
    assert json.loads(configure("claude-code", "--model", "default").stdout)["env"]["ANTHROPIC_MODEL"] == "default"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("codex", "--model", "vectors"), ("/v1/responses", "org/talker, native, small")),
        (("claude-code", "--model", "vectors"), ("/v1/messages", "org/talker, native, small")),
        (("aider", "--model", "native"), ("/v1/chat/completions", "org/talker, small")),
        (("openai", "--model", "nobody"), ("no model 'nobody'", "org/talker, small")),
    ],
)
def test_a_model_that_does_not_serve_what_is_needed(
    gateway: Answers, arguments: tuple[str, ...], words: tuple[str, ...]
) -> None:
    result = configure(*arguments, expect=1)
    assert result.stdout == ""
    assert all(word in result.stderr for word in words)


def test_where_no_model_serves_what_is_needed(gateway: Answers) -> None:
    gateway.by_path["/v1/models"] = answer("200 OK", json.dumps({"data": MODELS[:1]}).encode())
    assert "no model here serves /v1/responses" in configure("codex", expect=1).stderr


def test_a_context_that_the_tool_alone_would_fill_is_told(gateway: Answers) -> None:
    assert "2048 tokens" in configure("codex", "--model", "small").stderr
    assert "tokens" not in configure("codex").stderr


def test_another_gateway_by_its_url(gateway: Answers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIRST_CONFIG", "/nowhere")
    assert variables(configure("openai", "--url", gateway.base_url).stdout)["OPENAI_BASE_URL"] == gateway.base_url
    assert sent_key(gateway) == KEY


def test_keys_come_from_files_and_variables(gateway: Answers, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "key").write_text("from-file\n")
    monkeypatch.setenv("OTHER", "from-variable")
    for arguments, key in (
        (("--key-file", str(folder / "key")), "from-file"),
        (("--key-env", "OTHER"), "from-variable"),
    ):
        assert variables(configure("openai", *arguments).stdout)["OPENAI_API_KEY"] == key
        assert sent_key(gateway) == key


@pytest.mark.parametrize("content", ["", "two words", 'a"b', "caf\xe9", "a\nb"])
def test_what_is_no_key_goes_nowhere(gateway: Answers, folder: Path, content: str) -> None:
    (folder / "key").write_text(content)
    assert "not a key" in configure("openai", "--key-file", str(folder / "key"), expect=1).stderr
    assert gateway.requests == []


def test_without_a_key(gateway: Answers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FIRST_API_KEY")
    assert "first keys create" in configure("openai", expect=1).stderr
    assert "one place" in configure("openai", "--new-key", "--key-env", "X", expect=2).stderr
    assert "cannot be read" in configure("openai", "--key-file", "/nowhere", expect=1).stderr


def test_the_key_of_the_demonstration_stays_there(
    gateway: Answers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FIRST_API_KEY")
    monkeypatch.delenv("FIRST_CONFIG")
    state = tmp_path / "state"
    state.mkdir()
    (state / "first.yaml").write_text(
        yaml.safe_dump({"server": {"listen": f"127.0.0.1:{gateway.port}", "state_dir": str(state)}})
    )
    (state / "demonstration.key").write_text(f"{KEY}\n")
    assert variables(configure("openai").stdout)["OPENAI_API_KEY"] == KEY
    assert "not set" in configure("openai", "--url", gateway.base_url, expect=1).stderr


def test_a_gateway_that_refuses_the_key(gateway: Answers) -> None:
    refusal = {"error": {"message": "No.", "type": "x", "param": None, "code": "invalid_api_key"}}
    gateway.by_path["/v1/models"] = answer("401 Unauthorized", json.dumps(refusal).encode())
    result = configure("codex", "--write", expect=1)
    assert "FIRST_API_KEY" in result.stderr
    assert not Path(TOOLS["codex"].file).expanduser().exists()


NEW = {"name": "codex-me", "prefix": "first-new", "user": "me", "key": "first-new-key"}


def test_a_new_key(gateway: Answers, folder: Path) -> None:
    answers = {"/admin/keys": answer("201 Created", json.dumps(NEW).encode())}
    with on_socket(folder / "admin.sock", answers) as admin:
        result = configure("codex", "--new-key")
    assert tomllib.loads(result.stdout)["model_providers"]["first"]["experimental_bearer_token"] == "first-new-key"
    assert sent_key(gateway) == "first-new-key"
    assert "first-new" in result.stderr
    assert len(admin.requests) == 1


def test_a_new_key_does_not_outlive_a_failure(gateway: Answers, folder: Path) -> None:
    answers = {path: answer("200 OK", json.dumps(NEW).encode()) for path in ("/admin/keys", "/admin/keys/revoke")}
    with on_socket(folder / "admin.sock", answers) as admin:
        configure("codex", "--new-key", "--model", "vectors", expect=1)
    assert json.loads(admin.requests[-1].partition(b"\r\n\r\n")[2]) == {"name_or_prefix": "first-new"}


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("https://h", "https://h/v1"),
        ("https://h/v1/", "https://h/v1"),
        ("http://h:1/some/where", "http://h:1/some/where/v1"),
        ("https://h/v1/clusters/polaris", "https://h/v1/clusters/polaris"),
    ],
)
def test_urls(given: str, url: str) -> None:
    assert checked_url(given) == url


@pytest.mark.parametrize(
    "given", ["h", "ftp://h/v1", "https://u:p@h/v1", "https://h/v1?x=1", "https://h/a b", "https://"]
)
def test_what_is_no_url(home: Path, given: str) -> None:
    assert "https://first.example.org/v1" in configure("openai", "--url", given, expect=2).stderr


def test_claude_code_cannot_be_held_to_one_cluster(gateway: Answers) -> None:
    assert "cluster" in configure("claude-code", "--url", f"{gateway.base_url}/clusters/here", expect=1).stderr


# -- to where ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TOOLS)
def test_written_again_and_again(gateway: Answers, home: Path, name: str) -> None:
    path = Path(TOOLS[name].file).expanduser()
    assert path.is_relative_to(home)
    for key in (KEY, "first-other"):
        result = CliRunner(env={"FIRST_API_KEY": key}).invoke(build(["configure"]), ["configure", name, "--write"])
        assert (result.exit_code, result.stdout) == (0, ""), result.output
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert key in path.read_text()
        assert key not in result.stderr
        assert TOOLS[name].use.format(file=path) in result.stderr
    assert [found.name for found in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("name", TOOLS)
def test_a_file_of_somebody_else_stays(gateway: Answers, tmp_path: Path, name: str) -> None:
    path = tmp_path / "mine"
    for content in ('{"env": {"ANTHROPIC_BASE_URL": "mine"}}', "model = 'mine'", "", "\xff"):
        path.write_text(content, encoding="latin-1")
        assert "--force" in configure(name, "--to", str(path), expect=1).stderr
        assert path.read_text(encoding="latin-1") == content
    assert gateway.requests == []
    configure(name, "--to", str(path), "--force")
    assert KEY in path.read_text()


def test_links_stay_links(gateway: Answers, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "real")
    configure("openai", "--to", str(tmp_path / "link"))
    assert (tmp_path / "link").is_symlink()
    assert KEY in (tmp_path / "real").read_text()
    assert "folder" in configure("openai", "--to", str(tmp_path), expect=1).stderr


def test_codex_in_a_folder_of_its_own(gateway: Answers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CODEX_HOME", str(tmp_path / "codex"))
    configure("codex", "--write")
    assert (tmp_path / "codex" / "first.config.toml").exists()
    assert "only" in configure("codex", "--to", str(tmp_path / "other.toml")).stderr


def test_it_imports_nothing_heavy(gateway: Answers) -> None:
    code = (
        "import os, sys; sys.argv = ['first', 'configure', 'codex']; os._exit = sys.exit\n"
        "from firstkit.cli.main import run\n"
        "try: run()\n"
        "except SystemExit as end: print(end.code)\n"
        "print(*{'pydantic', 'sqlalchemy', 'asyncio', 'rich', 'fastapi'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.splitlines()[-2:] == ["0", ""], result.stderr


def test_tools_that_nobody_knows(home: Path) -> None:
    assert "--list" in configure("emacs", expect=2).stderr
    assert "--list" in configure(expect=2).stderr
