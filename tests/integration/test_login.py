"""``first login`` and what follows from it, as people do it: on a command line, at a gateway somewhere else."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

import httpx
import openai
import pytest
import yaml

from firstkit.testing.globus_cloud import GlobusCloud
from firstkit.testing.globus_records import Client, Identity
from integration.oidc_provider import RealProvider, log_in, real_provider
from lab import Lab, fake_engine, one_model, wait_for

LAB_PROVIDER = str(uuid4())


@dataclass
class Person:
    """Somebody with a command line of their own and nothing else of FIRST."""

    home: Path
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def _environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("FIRST_", "OPENAI_"))}
        home = {"HOME": str(self.home), "XDG_CONFIG_HOME": str(self.home / "c"), "XDG_STATE_HOME": str(self.home / "s")}
        return {**kept, **home, **self.environment}

    def begin(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "firstkit.cli", *arguments],
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str, status: int = 0) -> str:
        """What a command prints; both of its outputs where it fails as it should."""
        command = self.begin(*arguments)
        out, err = command.communicate(timeout=60)
        assert command.returncode == status, out + err
        return out if status == 0 else out + err

    def read(self, *arguments: str) -> Any:
        return json.loads(self.run(*arguments, "--json"))


def _address(command: subprocess.Popen[str]) -> str:
    """Where ``first login`` sends people to."""
    assert command.stderr is not None
    said = ""
    while not (found := re.search(r"http://\S+", said)):
        line = command.stderr.readline()
        assert line, f"it ended without an address: {said}"
        said += line
    return found[0]


@dataclass
class Site:
    """A gateway that knows people by Globus, and that Globus."""

    lab: Lab
    cloud: GlobusCloud
    service: Client
    native: Client
    ada: Identity
    group: str

    def log_in(self, person: Person, identity: Identity) -> str:
        """``first login``, with somebody at the browser; what it says."""
        command = person.begin("login", "--server", self.lab.base_url)
        address = _address(command)
        self.cloud.visitor = self.cloud.log_in(identity)
        page = httpx.get(address, follow_redirects=False)
        assert page.status_code in (302, 303), page.text
        [code] = parse_qs(urlsplit(page.headers["location"]).query)["code"]
        out, err = command.communicate(f"{code}\n", timeout=60)
        assert command.returncode == 0, out + err
        assert code not in out + err
        return err


@pytest.fixture
def site(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    with GlobusCloud() as cloud:
        for name, value in cloud.environ.items():
            monkeypatch.setenv(name, value)
        service, native = cloud.add_service(), cloud.add_native()
        ada = cloud.add_identity("ada@lab.gov", LAB_PROVIDER)
        group = cloud.add_group("climate modellers")
        cloud.join(ada, group)
        models = one_model(fake_engine("QuickEngine", tokens=4), scale={"hot": 1, "max": 1})
        lab = Lab.make(models, database_url)
        try:
            _configure(lab, service, native, group)
            lab.start()
            lab.wait_live("m")
            yield Site(lab, cloud, service, native, ada, group)
        finally:
            lab.close()


def _configure(lab: Lab, service: Client, native: Client, group: str) -> None:
    secret = lab.folder / "globus-secret"
    secret.write_text(str(service.secret))
    secret.chmod(0o600)
    config = yaml.safe_load(lab.config_path.read_text())
    config["auth"] = {
        "cache": "5s",
        "globus": {
            "client_id": service.id,
            "client_secret_file": str(secret),
            "login_client_id": native.id,
            "identity_providers": [{"id": LAB_PROVIDER}],
        },
    }
    config["projects"] = {"climate": {"groups": [group]}}
    lab.config_path.write_text(yaml.safe_dump(config))


@pytest.fixture
def ada(site: Site, tmp_path: Path) -> Person:
    return Person(tmp_path, site.cloud.environ)


def test_from_a_login_to_an_answer(site: Site, ada: Person) -> None:
    assert "You are ada@lab.gov" in site.log_in(ada, site.ada)
    me = ada.read("whoami")
    assert (me["name"], me["project"]) == ("ada@lab.gov", "climate")
    assert [project["name"] for project in me["projects"]] == ["climate"]
    assert ada.run("chat", "hi").strip(), "the login itself is good for questions"
    key = ada.run("keys", "create", "laptop", "--model", "m", "--expires", "1d").strip()
    with openai.OpenAI(base_url=site.lab.base_url, api_key=key, max_retries=0) as client:
        client.chat.completions.create(model="m", messages=[{"role": "user", "content": "hi"}])
    [listed] = ada.read("keys", "list")
    assert (listed["name"], listed["project"], listed["models"]) == ("laptop", "climate", ["m"])
    wait_for("both are in the ledger", lambda: len(site.lab.usage()) == 2)
    [used] = ada.read("usage")
    assert (used["project"], used["model"], used["requests"]) == ("climate", "m", 2)
    ada.run("keys", "revoke", "laptop")
    assert ada.read("keys", "list") == []
    wait_for("the key is no good any more", lambda: _status(site, key) == 401, limit_s=6)


def _status(site: Site, token: str) -> int:
    return site.lab.get("/v1/models", authorization=f"Bearer {token}")[0]


def test_other_programs_can_use_the_login_until_it_ends(site: Site, ada: Person) -> None:
    site.log_in(ada, site.ada)
    token = ada.run("login", "--print-token").strip()
    assert _status(site, token) == 200
    kept = json.loads((ada.home / "c" / "first" / "login.json").read_text())
    assert kept["access_token"] == token
    _expire(ada, kept)
    newer = ada.run("login", "--print-token").strip()
    assert newer != token
    assert _status(site, newer) == 200
    assert "logged out" in ada.begin("logout").communicate(timeout=60)[1]
    assert not (ada.home / "c" / "first" / "login.json").exists()
    wait_for("the token is revoked", lambda: _status(site, newer) == 401, limit_s=12)
    assert "first login --server" in ada.run("whoami", status=1)


def _expire(person: Person, kept: dict[str, Any]) -> None:
    path = person.home / "c" / "first" / "login.json"
    path.write_text(json.dumps({**kept, "expires_at": 0}))


def test_one_of_several_projects_is_the_default(site: Site, ada: Person) -> None:
    site.log_in(ada, site.ada)
    for act in (("create", "plasma"), ("add", "plasma", "ada@lab.gov")):
        ada.run("projects", *act, "--config", str(site.lab.config_path))
    wait_for("it is not clear any more what is charged", lambda: ada.read("whoami")["project"] is None, limit_s=15)
    assert "'climates'" in ada.run("projects", "use", "climates", status=1)
    assert "'plasma'" in ada.run("projects", "use", "plasma")
    wait_for("it is charged", lambda: ada.read("whoami")["project"] == "plasma", limit_s=15)


def test_who_leaves_the_group_leaves_the_project(site: Site, ada: Person) -> None:
    site.log_in(ada, site.ada)
    token = ada.run("login", "--print-token").strip()
    key = ada.run("keys", "create", "laptop").strip()
    assert _status(site, key) == 200
    site.cloud.join(site.ada, site.group, "left")
    wait_for("Globus was asked again", lambda: _projects(site, token) == [], limit_s=15)
    wait_for("the key has no project left", lambda: _status(site, key) == 401, limit_s=6)


def _projects(site: Site, token: str) -> list[Any]:
    return list(json.loads(site.lab.get("/v1/me", authorization=f"Bearer {token}")[1])["projects"])


def test_whom_nobody_admits(site: Site, tmp_path: Path) -> None:
    mallory = site.cloud.add_identity("ada@lab.gov.evil.org", str(uuid4()))
    person = Person(tmp_path, site.cloud.environ)
    command = person.begin("login", "--server", site.lab.base_url)
    address = _address(command)
    site.cloud.visitor = site.cloud.log_in(mallory)
    page = httpx.get(address, follow_redirects=False)
    [code] = parse_qs(urlsplit(page.headers["location"]).query)["code"]
    err = command.communicate(f"{code}\n", timeout=60)[1]
    assert command.returncode == 1
    assert "identity provider" in err
    wait_for("it is in the audit log", lambda: "login_refused" in _audit(site))


def _audit(site: Site) -> str:
    return site.lab.get("/admin/audit", site.lab.config.server.path("admin.sock"))[1].decode()


def test_where_nobody_can_log_in(site: Site, tmp_path: Path) -> None:
    person = Person(tmp_path, site.cloud.environ)
    assert "has no login by 'oidc'" in person.run(
        "login", "--server", site.lab.base_url, "--provider", "oidc", status=2
    )
    assert "others could read" in person.run("login", "--server", "http://first.example.org", status=2)
    assert "which gateway?" in person.run("login", status=2)
    assert "not logged in" in person.run("whoami", status=1)


# -- another OpenID provider -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def provider(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealProvider]:
    with real_provider(tmp_path_factory.mktemp("oidc")) as real:
        yield real


@pytest.fixture
def lab_of(provider: RealProvider, database_url: str) -> Iterator[Lab]:
    models = one_model(fake_engine("QuickEngine", tokens=4), scale={"hot": 1, "max": 1})
    oidc = {"issuer": provider.url, "audience": "first", "login_client_id": "first-cli"}
    auth = {"oidc": {**oidc, "claims": {"user": "email", "projects": "projects"}}}
    lab = Lab.make(models, database_url, sections={"auth": auth})
    try:
        lab.start()
        lab.wait_live("m")
        yield lab
    finally:
        lab.close()


@pytest.mark.parametrize("way", [(), ("--browser",)])
def test_by_another_provider(lab_of: Lab, tmp_path: Path, way: tuple[str, ...]) -> None:
    person = Person(tmp_path, {"BROWSER": "true"})
    command = person.begin("login", "--server", lab_of.base_url, *way)
    page = log_in(_address(command), "alice")
    if way:
        assert page.text == "You may close this page.\n"
    out, err = command.communicate(timeout=60)
    assert command.returncode == 0, out + err
    me = person.read("whoami")
    assert (me["name"], me["project"], me["came_by"]) == ("alice@anl.gov", "fusion", "oidc")
    assert person.run("chat", "hi").strip()
    kept = json.loads((person.home / "c" / "first" / "login.json").read_text())
    _expire(person, kept)
    assert person.read("whoami")["name"] == "alice@anl.gov", "the login is made new"
