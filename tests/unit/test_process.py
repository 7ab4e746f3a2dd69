"""How jobs of a cluster are told to reach the gateway."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from firstkit.config import Config
from firstkit.links.messages import LinkSpec, PilotSpec
from firstkit.process import links_of, private_ca
from firstkit.wire import decode, encode


def config(state_dir: Path, link: dict[str, Any]) -> Config:
    server = {"state_dir": str(state_dir), "pilot_listen": "0.0.0.0:8443", "pilot_urls": ["a.example:8443", "b:1"]}
    return Config.model_validate({"server": server, "clusters": {"here": {"link": link}}, "models": {}})


def test_on_one_host_it_is_a_socket(tmp_path: Path) -> None:
    spec = links_of(config(tmp_path, {}), "here")("job-1")
    assert spec == LinkSpec("socket", str(tmp_path / "pilots.sock"))


def test_a_tunnel_has_addresses_ca_proxy_and_time(tmp_path: Path) -> None:
    link = {"kind": "tunnel", "proxy": "http://proxy:3128", "resume": "20s"}
    spec = links_of(config(tmp_path, link), "here")("job-1")
    ca = private_ca(tmp_path).certificate_pem
    assert spec == LinkSpec(
        "tunnel", addresses=("a.example:8443", "b:1"), ca_pem=ca, proxy="http://proxy:3128", resume_s=20.0
    )


def test_each_job_that_is_dialled_has_a_key_of_its_own(tmp_path: Path) -> None:
    link_of = links_of(config(tmp_path, {"kind": "direct"}), "here")
    one, other = link_of("job-1"), link_of("job-2")
    assert (one.kind, one.resume_s, one.ca_pem) == ("direct", 10.0, other.ca_pem)
    assert one.identity_pem != other.identity_pem
    assert "PRIVATE KEY" in (one.identity_pem or "")
    pilot = PilotSpec("job-1", "here", one, "token")
    assert decode(PilotSpec, encode(pilot)) == pilot
    assert "PRIVATE" not in repr(pilot)


@pytest.mark.parametrize("kind", ["socket", "tunnel"])
def test_jobs_that_dial_share_what_they_are_told(tmp_path: Path, kind: str) -> None:
    link_of = links_of(config(tmp_path, {"kind": kind}), "here")
    assert link_of("job-1") is link_of("job-2")
