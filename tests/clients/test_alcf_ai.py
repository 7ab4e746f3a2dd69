"""The package ``alcf-ai`` with another base URL makes the calls that it makes: the real client and command line, a real
gateway with fake engines."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from clients.reader import FOLDER
from firstkit.testing.background import Background
from lab import Lab, fake_engine, running


@contextlib.contextmanager
def its_packages() -> Iterator[None]:
    """Those of the clients' environment, behind ours, and for no other test."""
    path = list(sys.path)
    sys.path += map(str, FOLDER.glob(f"lib/python3.{sys.version_info.minor}/site-packages"))
    try:
        yield
    finally:
        sys.path[:] = path


with its_packages():
    alcf_ai = pytest.importorskip("alcf_ai", reason="alcf-ai is not installed: run make test-clients")
    import httpx
    from alcf_ai.cli import _cli_state, cli
    from typer.testing import CliRunner

MODEL = "org/chat"
ELSEWHERE = "chat-of-others"
WORDS = "word0 word1 word2 word3 word4 word5 word6 word7 "
"""What the fake engine answers."""
ASK: Any = [{"role": "user", "content": "Say eight words."}]


def on(cluster: str, engine: dict[str, Any]) -> dict[str, Any]:
    resources = {"cpus_per_node": 1, "memory_gib": 0.1}
    return {"deployments": [{"cluster": cluster, "engine": engine, "resources": resources, "scale": {"hot": 1}}]}


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """The clusters that the client knows by name: one with jobs, and two that others run."""
    with its_packages(), Background() as engines:
        _, url = engines.add()
        others = {"kind": "external", "url": url, "model": "fake-model", "capabilities": ["chat"]}
        models = {
            MODEL: {"description": "eight words", **on("sophia", fake_engine())},
            "org/broken": on("sophia", fake_engine("GarbageEngine", variant="error-event")),
            ELSEWHERE: on("metis", others),
            "nemotron-3-ultra": on("minerva", others),
        }
        clusters: dict[str, Any] = {"sophia": {}, "metis": {"kind": "external"}, "minerva": {"kind": "external"}}
        with running(models, clusters=clusters) as lab:
            lab.wait_live(MODEL)
            lab.wait_live("org/broken")
            yield lab


@pytest.fixture
def base_url(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> str:
    """That of the older service; tokens are keys of this one."""
    for module in ("client", "agent"):
        monkeypatch.setattr(f"alcf_ai.{module}.get_access_token", lambda service: lab.key)
    return f"http://127.0.0.1:{lab.port}/resource_server/"


@pytest.fixture
def client(base_url: str) -> Iterator[Any]:
    with alcf_ai.InferenceClient(base_url=base_url) as client:
        yield client


# -- what there is -----------------------------------------------------------------------------------------------------


def test_endpoints(client: Any) -> None:
    clusters = client.list_endpoints()["clusters"]
    assert {"sophia", "metis"} <= set(clusters)
    served = clusters["sophia"]["frameworks"]["vllm"]
    assert served["models"] == ["org/broken", MODEL]
    assert {"/v1/chat/completions", "/v1/completions", "/v1/embeddings"} <= set(served["endpoints"])
    assert clusters["metis"]["frameworks"]["api"]["models"] == [ELSEWHERE]


def test_models(client: Any) -> None:
    listed = {model["id"]: model for model in client.list_models("sophia")}
    assert set(listed) == {MODEL, "org/broken"}
    assert listed[MODEL]["framework"] == "vllm"
    assert {"chat_completions", "responses"} <= set(listed[MODEL]["capabilities"]["api_protocols"])


def test_jobs(client: Any) -> None:
    jobs = client.clusters("sophia").get_jobs()
    job = next(job for job in jobs["running"] if MODEL in job["Models"].split(","))
    assert (job["Model Status"], job["Job State"], job["Cluster"]) == ("running", "R", "sophia")
    assert jobs["cluster_status"]["free_nodes"] >= -1
    others = client.clusters("metis").get_jobs()
    assert [job["Models"] for job in others["running"]] == [ELSEWHERE]
    assert others["cluster_status"]["live_models"] == 1


# -- requests to models ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("cluster", "model"), [("sophia", MODEL), ("metis", ELSEWHERE)])
def test_chat(client: Any, cluster: str, model: str) -> None:
    sdk: openai.OpenAI = client.clusters(cluster).openai
    answer = sdk.chat.completions.create(model=model, messages=ASK)
    assert answer.choices[0].message.content == WORDS
    assert answer.choices[0].finish_reason == "stop"
    assert (answer.model_extra or {}).keys() == {"response_time", "throughput_tokens_per_second"}
    chunks = list(sdk.chat.completions.create(model=model, messages=ASK, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == WORDS
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_responses(client: Any) -> None:
    sdk: openai.OpenAI = client.clusters("sophia").openai
    assert sdk.responses.create(model=MODEL, input="Say eight words.").output_text == WORDS
    events = list(sdk.responses.create(model=MODEL, input="Say eight words.", stream=True))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == WORDS
    last = events[-1]
    assert last.type == "response.completed"
    assert last.response.output_text == WORDS


def test_completions_and_embeddings(client: Any) -> None:
    sdk: openai.OpenAI = client.clusters("sophia").openai
    assert sdk.completions.create(model=MODEL, prompt="Say").choices[0].text == WORDS
    assert sdk.embeddings.create(model=MODEL, input="cat").data[0].embedding


def test_a_stream_that_breaks_is_no_answer(client: Any) -> None:
    sdk: openai.OpenAI = client.clusters("sophia").openai
    stream = sdk.chat.completions.create(model="org/broken", messages=ASK, stream=True)
    with pytest.raises(openai.APIError, match="engine failed"):
        list(stream)


# -- refusals ----------------------------------------------------------------------------------------------------------


def test_a_wrong_token(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alcf_ai.client.get_access_token", lambda service: "wrong")
    with pytest.raises(httpx.HTTPStatusError, match="401"):
        client.list_endpoints()
    with pytest.raises(openai.AuthenticationError) as refused:
        client.clusters("sophia").openai.chat.completions.create(model=MODEL, messages=ASK)
    assert refused.value.code == "unauthorized"


def test_a_model_or_cluster_that_is_not_there(client: Any) -> None:
    for cluster, model, code in (("sophia", "org/nothing", "endpoint_not_found"), ("tara", MODEL, "cluster_not_found")):
        with pytest.raises(openai.NotFoundError) as missing:
            client.clusters(cluster).openai.chat.completions.create(model=model, messages=ASK)
        assert missing.value.code == code
    with pytest.raises(httpx.HTTPStatusError, match="404"):
        client.clusters("tara").get_jobs()


def test_services_that_are_not_here(client: Any) -> None:
    """They end at once and say why: nobody waits for a task that never was."""
    calls = {
        400: client.ensure_staging_area,
        404: lambda: client.sam3.submit_image("file:///x.png", "a cat"),
    }
    for status, call in (*calls.items(), (404, lambda: client.dinov3.submit("/x"))):
        with pytest.raises(httpx.HTTPStatusError) as refused:
            call()
        assert refused.value.response.status_code == status
        assert refused.value.response.json()["error"]["message"].endswith(".")


# -- the command line --------------------------------------------------------------------------------------------------


def types(base_url: str, *words: str) -> str:
    done = CliRunner().invoke(cli, ["--base-url", base_url, *words], catch_exceptions=False)
    _cli_state.pop("client").close()
    assert done.exit_code == 0, done.output
    return done.stdout


def test_listing_commands(base_url: str) -> None:
    assert MODEL in types(base_url, "ls-endpoints")
    assert MODEL in types(base_url, "ls-models", "sophia")
    assert "Model Status" in types(base_url, "ls-jobs", "sophia")


@pytest.mark.parametrize("options", [(), ("--stream",)])
@pytest.mark.parametrize(("cluster", "model"), [("sophia", MODEL), ("metis", ELSEWHERE)])
def test_chat_command(base_url: str, cluster: str, model: str, options: tuple[str, ...]) -> None:
    said = types(base_url, "chat", "Say eight words.", "--model", model, "--cluster", cluster, *options)
    assert said.split() == WORDS.split()


def test_agents_are_configured_for_paths_that_answer(
    lab: Lab, base_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    types(base_url, "agent", "configure", "opencode", "--include-experimental")
    config = json.loads((tmp_path / ".config" / "opencode" / "opencode.jsonc").read_text())
    provider = config["provider"]["alcf-inference-service-sophia-vllm"]
    assert MODEL in provider["models"]
    types(base_url, "agent", "configure", "claude", "--default-cluster", "sophia", "--default-model", MODEL)
    env = json.loads((tmp_path / ".claude" / "settings.json").read_text())["env"]
    headers = {"authorization": f"Bearer {lab.key}"}
    calls = {
        f"{provider['options']['baseURL']}/chat/completions": {"model": MODEL, "messages": ASK},
        f"{env['ANTHROPIC_BASE_URL']}/v1/messages": {"model": env["ANTHROPIC_MODEL"], "messages": ASK, "max_tokens": 8},
    }
    for url, body in calls.items():
        assert httpx.post(url, json=body, headers=headers).status_code == 200, url
