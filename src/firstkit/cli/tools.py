"""The configurations by which other people's programs use a gateway: one function for each, from values to text."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from firstkit.gateway.apis import CHAT, MESSAGES_API, RESPONSES_API, Api

ANSWER_SHARE, LONGEST_ANSWER = 4, 32_000
"""Of a model's context that part, and no more tokens than that, is left to one answer of an agent."""
ROOT_OF = "/v1"


@dataclass(frozen=True)
class Model:
    """A model, as tools are told of it. ``context``: None where nobody knows."""

    name: str
    context: int | None = None

    @property
    def answer(self) -> int | None:
        """The most tokens of one answer."""
        return None if self.context is None else max(1, min(LONGEST_ANSWER, self.context // ANSWER_SHARE))


@dataclass(frozen=True)
class Target:
    """A gateway, a key, and the models to use there, the chosen one first. ``base_url`` ends in ``/v1``, or in the name
    of a cluster. ``embedder``: a model that makes embeddings."""

    base_url: str
    key: str
    models: tuple[Model, ...]
    embedder: str | None = None

    @property
    def model(self) -> Model:
        return self.models[0]

    @property
    def root(self) -> str:
        """The URL to which clients of Anthropic add ``/v1/messages``."""
        return self.base_url.removesuffix(ROOT_OF)


@dataclass(frozen=True)
class Tool:
    """One program or library.

    ``file``: where ``--write`` puts its configuration. ``use``: the command that uses ``{file}``; without that the tool
    finds it there only. ``context``: the tokens that its own instructions take before anything is asked, as measured.
    """

    gets: str
    file: str
    use: str
    text: Callable[[Target], str]
    api: Api = CHAT
    context: int = 0
    home: str = ""
    """A variable that may name another folder for ``file``."""
    begins: str = "#"
    """The sign of a comment; empty: the format has none."""

    def is_ours(self, text: str) -> bool:
        """Whether ``text`` was made here, for whatever gateway."""
        if self.begins:
            return text.startswith(f"{self.begins} {SIGN}")
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            return False
        return bool(_keys(found) == _keys(json.loads(self.text(NOBODY))))


SIGN = "Written by 'first configure"
NOBODY = Target("http://localhost/v1", "key", (Model("model", 1),))


def _sign(tool: str, comment: str = "#") -> str:
    return f"{comment} {SIGN} {tool}': changes are lost when it is run again. It holds a key.\n"


def _keys(value: Any) -> Any:
    """The keys of objects in objects, without what they hold."""
    return {key: _keys(inner) for key, inner in value.items()} if isinstance(value, dict) else None


def _lines(tool: str, variables: Mapping[str, str], prefix: str = "export ") -> str:
    return _sign(tool) + "".join(f"{prefix}{name}={shlex.quote(value)}\n" for name, value in variables.items())


def openai(target: Target) -> str:
    """What the packages ``openai`` of Python and Node read by themselves."""
    return _lines("openai", {"OPENAI_BASE_URL": target.base_url, "OPENAI_API_KEY": target.key})


def anthropic(target: Target) -> str:
    """What the packages of Anthropic read by themselves."""
    return _lines("anthropic", {"ANTHROPIC_BASE_URL": target.root, "ANTHROPIC_AUTH_TOKEN": target.key})


def langchain(target: Target) -> str:
    """What ``langchain-openai`` reads by itself."""
    return _lines("langchain", {"OPENAI_API_BASE": target.base_url, "OPENAI_API_KEY": target.key})


def open_webui(target: Target) -> str:
    """Lines as containers take them, too: without ``export``, and without quotes, which they would keep."""
    variables = {
        "OPENAI_API_BASE_URL": target.base_url,
        "OPENAI_API_KEY": target.key,
        "DEFAULT_MODELS": target.model.name,
        "ENABLE_OLLAMA_API": "false",
    }
    return _lines("open-webui", variables, prefix="")


def opencode(target: Target) -> str:
    """A provider ``first`` with all models that can chat."""
    provider = {
        "npm": "@ai-sdk/openai-compatible",
        "name": "FIRST",
        "options": {"baseURL": target.base_url, "apiKey": target.key},
        "models": {model.name: _opencode_model(model) for model in target.models},
    }
    chosen = f"first/{target.model.name}"
    content = {
        "$schema": "https://opencode.ai/config.json",
        "provider": {"first": provider},
        "model": chosen,
        "small_model": chosen,
        "enabled_providers": ["first"],
    }
    return _sign("opencode", "//") + _json(content)


def _opencode_model(model: Model) -> dict[str, Any]:
    limit = {} if model.context is None else {"limit": {"context": model.context, "output": model.answer}}
    return {"name": model.name, **limit}


def claude_code(target: Target) -> str:
    """All its models are the chosen one. What it would ask of its makers besides, it does not ask."""
    name = target.model.name
    env = {
        "ANTHROPIC_BASE_URL": target.root,
        "ANTHROPIC_AUTH_TOKEN": target.key,
        "ANTHROPIC_MODEL": name,
        "ANTHROPIC_DEFAULT_OPUS_MODEL": name,
        "ANTHROPIC_DEFAULT_SONNET_MODEL": name,
        "ANTHROPIC_DEFAULT_HAIKU_MODEL": name,
        "CLAUDE_CODE_MAX_OUTPUT_TOKENS": str(target.model.answer or LONGEST_ANSWER),
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    }
    return _json({"env": env})


def codex(target: Target) -> str:
    """A profile, and the provider that it uses. Web search is a service of OpenAI's."""
    top: dict[str, str | int] = {"model": target.model.name, "model_provider": "first", "web_search": "disabled"}
    if target.model.context is not None:
        top["model_context_window"] = target.model.context
    provider = {
        "name": "FIRST",
        "base_url": target.base_url,
        "wire_api": "responses",
        "experimental_bearer_token": target.key,
    }
    return f"{_sign('codex')}{_toml(top)}\n[model_providers.first]\n{_toml(provider)}"


def continue_(target: Target) -> str:
    """All models that can chat, and one that makes embeddings."""
    models = [_continue_chat(target, model) for model in target.models]
    if target.embedder is not None:
        models.append({**_continue_model(target, target.embedder, "embeddings"), "roles": ["embed"]})
    return _sign("continue") + _yaml({"name": "FIRST", "version": "1.0.0", "schema": "v1", "models": models})


def _continue_chat(target: Target, model: Model) -> dict[str, Any]:
    limits = {"contextLength": model.context, "maxTokens": model.answer}
    return {
        **_continue_model(target, model.name),
        "roles": ["chat", "edit", "apply"],
        "capabilities": ["tool_use"],
        **({} if model.context is None else {"defaultCompletionOptions": limits}),
    }


def _continue_model(target: Target, name: str, use: str = "") -> dict[str, Any]:
    shown = f"{name} ({use})" if use else name  # each has its own
    return {"name": shown, "provider": "openai", "model": name, "apiBase": target.base_url, "apiKey": target.key}


def aider(target: Target) -> str:
    """It knows the models of others only, and would warn of ours at each start."""
    name = f"openai/{target.model.name}"
    content = {
        "model": name,
        "weak-model": name,
        "openai-api-base": target.base_url,
        "openai-api-key": target.key,
        "show-model-warnings": False,
    }
    return _sign("aider") + _yaml(content)


def _json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2) + "\n"


def _yaml(content: Mapping[str, Any]) -> str:
    import yaml

    return str(yaml.safe_dump(content, sort_keys=False, width=1000))


def _toml(content: Mapping[str, str | int]) -> str:
    """Texts of TOML are written like those of JSON."""
    return "".join(f"{name} = {json.dumps(value, ensure_ascii=False)}\n" for name, value in content.items())


TOOLS = {
    "openai": Tool(
        "OPENAI_BASE_URL and OPENAI_API_KEY for a shell",
        "~/.config/first/openai.env",
        ". {file}",
        openai,
    ),
    "anthropic": Tool(
        "ANTHROPIC_BASE_URL and ANTHROPIC_AUTH_TOKEN for a shell",
        "~/.config/first/anthropic.env",
        ". {file}",
        anthropic,
        api=MESSAGES_API,
    ),
    "langchain": Tool(
        "OPENAI_API_BASE and OPENAI_API_KEY for a shell",
        "~/.config/first/langchain.env",
        ". {file}",
        langchain,
    ),
    "open-webui": Tool(
        "variables of its connection, for a shell or a container",
        "~/.config/first/open-webui.env",
        "set -a; . {file}; open-webui serve",
        open_webui,
    ),
    "opencode": Tool(
        "a provider with all chat models",
        "~/.config/opencode/first.json",
        "OPENCODE_CONFIG={file} opencode",
        opencode,
        context=8_000,
        begins="//",
    ),
    "claude-code": Tool(
        "settings: URL, key, and one model for all of its own",
        "~/.claude/first.json",
        "claude --settings {file}",
        claude_code,
        api=MESSAGES_API,
        context=20_000,
        begins="",
    ),
    "codex": Tool(
        "a profile with its provider",
        "~/.codex/first.config.toml",
        "codex --profile first",
        codex,
        api=RESPONSES_API,
        context=10_000,
        home="CODEX_HOME",
    ),
    "continue": Tool(
        "an agent with all chat models, and one for embeddings",
        "~/.continue/first.yaml",
        "cn --config {file}",
        continue_,
        context=1_500,
    ),
    "aider": Tool(
        "URL, key and model",
        "~/.aider.first.yml",
        "aider --config {file}",
        aider,
    ),
}
"""By name, in the order in which they are listed."""
