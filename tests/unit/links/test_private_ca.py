"""The gateway's own CA: made once, renewed in time, good for one name."""

from __future__ import annotations

import os
import ssl
import stat
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from firstkit.clock import now
from firstkit.links import private_ca
from firstkit.links.private_ca import (
    CA_FILE,
    CA_LIFE,
    RENEW_BEFORE,
    SERVER_FILE,
    SERVER_LIFE,
    CaUnusable,
    PrivateCa,
    job_name,
)


def certificate(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def travel(monkeypatch: pytest.MonkeyPatch, by: timedelta) -> None:
    """Let the clock of the CA be ahead of ours, or behind."""
    then = now() + by
    monkeypatch.setattr(private_ca, "now", lambda: then)


def shakes_hands(client: ssl.SSLContext, server: ssl.SSLContext, name: str = private_ca.SERVER_NAME) -> str:
    """A handshake in memory; returns the version of TLS. Raises what the client or the server finds wrong."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(to_client, to_server, server_hostname=name),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    for _ in range(10):
        for end in list(ends):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
            ends.remove(end)
            version = end.version()
        if not ends:
            return version or ""
    raise AssertionError("no end of the handshake")


def trusting(pem: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=pem)
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    return context


def test_it_is_made_at_first_and_found_again(tmp_path: Path) -> None:
    first = PrivateCa(tmp_path)
    first.server_context()
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(files) == {CA_FILE, SERVER_FILE}
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o600}
    second = PrivateCa(tmp_path)
    second.server_context()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == files
    assert second.certificate_pem == first.certificate_pem
    assert "PRIVATE" not in first.certificate_pem


def test_whoever_trusts_it_accepts_its_server_under_its_name_only(tmp_path: Path) -> None:
    ca = PrivateCa(tmp_path)
    server, client = ca.server_context(), trusting(ca.certificate_pem)
    assert shakes_hands(client, server) == "TLSv1.3"
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    assert shakes_hands(client, server) == "TLSv1.2"
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        shakes_hands(client, server, "first.example.org")


def test_another_ca_is_not_trusted(tmp_path: Path) -> None:
    for name in ("ours", "theirs"):
        (tmp_path / name).mkdir()
    client = trusting(PrivateCa(tmp_path / "ours").certificate_pem)
    with pytest.raises(ssl.SSLCertVerificationError, match="local issuer"):
        shakes_hands(client, PrivateCa(tmp_path / "theirs").server_context())


def test_it_can_vouch_for_no_other_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ca = PrivateCa(tmp_path)
    monkeypatch.setattr(private_ca, "SERVER_NAME", "first.example.org")
    with pytest.raises(ssl.SSLCertVerificationError, match="permitted subtree violation"):
        shakes_hands(trusting(ca.certificate_pem), ca.server_context(), "first.example.org")


def test_a_job_gets_a_name_below_the_gateways(tmp_path: Path) -> None:
    """Its pilot is believed under that name alone: it cannot pass for the gateway, nor for another pilot."""
    ca = PrivateCa(tmp_path)
    pilot, gateway = pilot_of(ca, tmp_path, "job-1"), ca.client_context()
    gateway.verify_flags |= ssl.VERIFY_X509_STRICT
    assert shakes_hands(gateway, pilot, job_name("job-1")) == "TLSv1.3"
    for name in (private_ca.SERVER_NAME, job_name("job-2")):
        with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
            shakes_hands(gateway, pilot, name)
        with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
            shakes_hands(trusting(ca.certificate_pem), pilot, name)


def test_a_pilots_certificate_is_not_a_clients(tmp_path: Path) -> None:
    ca = PrivateCa(tmp_path)
    pilot = pilot_of(ca, tmp_path, "job-1")
    another = trusting(ca.certificate_pem)
    another.load_cert_chain(tmp_path / "job-1.pem")
    with pytest.raises(ssl.SSLError, match=r"verify failed|unsupported certificate"):
        shakes_hands(another, pilot, job_name("job-1"))


def pilot_of(ca: PrivateCa, folder: Path, job_id: str) -> ssl.SSLContext:
    """A server as a pilot is one: it asks for certificates of the same CA."""
    (folder / f"{job_id}.pem").write_text(ca.identity_pem(job_id))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=ca.certificate_pem)
    context.load_cert_chain(folder / f"{job_id}.pem")
    return context


def test_a_certificate_of_before_that_is_no_clients_is_renewed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ca = PrivateCa(tmp_path)
    with monkeypatch.context() as before:
        before.setattr(private_ca, "_GATEWAY", [ExtendedKeyUsageOID.SERVER_AUTH])
        ca.server_context()
    old = certificate(tmp_path / SERVER_FILE)
    ca.client_context()
    new = certificate(tmp_path / SERVER_FILE)
    assert new != old
    assert ExtendedKeyUsageOID.CLIENT_AUTH in new.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value


def test_lives(tmp_path: Path) -> None:
    PrivateCa(tmp_path).server_context()
    ca, server = certificate(tmp_path / CA_FILE), certificate(tmp_path / SERVER_FILE)
    for each, life in ((ca, CA_LIFE), (server, SERVER_LIFE)):
        assert abs(each.not_valid_after_utc - now() - life) < timedelta(minutes=5)
        assert each.not_valid_before_utc < now() - timedelta(days=1)


@pytest.mark.parametrize(("left", "is_renewed"), [(timedelta(days=31), False), (timedelta(days=29), True)])
def test_the_servers_certificate_is_renewed_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: timedelta, is_renewed: bool
) -> None:
    travel(monkeypatch, left - SERVER_LIFE)
    ca = PrivateCa(tmp_path)
    context = ca.server_context()
    before = certificate(tmp_path / SERVER_FILE)
    travel(monkeypatch, timedelta())
    ca.refresh(context)
    after = certificate(tmp_path / SERVER_FILE)
    assert (before != after) is is_renewed
    assert shakes_hands(trusting(ca.certificate_pem), context)


def test_near_its_end_the_ca_vouches_no_longer_than_it_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ca = PrivateCa(tmp_path)
    travel(monkeypatch, CA_LIFE - RENEW_BEFORE / 2)
    context = ca.server_context()
    made = certificate(tmp_path / SERVER_FILE)
    assert made.not_valid_after_utc == certificate(tmp_path / CA_FILE).not_valid_after_utc
    ca.refresh(context)
    assert certificate(tmp_path / SERVER_FILE) == made
    travel(monkeypatch, CA_LIFE + timedelta(days=1))
    assert PrivateCa(tmp_path).certificate_pem != ca.certificate_pem


@pytest.mark.parametrize("content", [b"", b"no PEM", None])
def test_a_damaged_certificate_of_the_server_is_made_anew(tmp_path: Path, content: bytes | None) -> None:
    ca = PrivateCa(tmp_path)
    ca.server_context()
    path = tmp_path / SERVER_FILE
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if content is None else content)
    assert shakes_hands(trusting(ca.certificate_pem), PrivateCa(tmp_path).server_context())


def test_a_certificate_of_another_ca_is_made_anew(tmp_path: Path) -> None:
    for name in ("ours", "theirs"):
        (tmp_path / name).mkdir()
        PrivateCa(tmp_path / name).server_context()
    (tmp_path / "theirs" / SERVER_FILE).rename(tmp_path / "ours" / SERVER_FILE)
    ca = PrivateCa(tmp_path / "ours")
    assert shakes_hands(trusting(ca.certificate_pem), ca.server_context())


@pytest.mark.parametrize("content", [b"", b"no PEM", None])
def test_a_damaged_ca_is_told_and_left_alone(tmp_path: Path, content: bytes | None) -> None:
    PrivateCa(tmp_path)
    path = tmp_path / CA_FILE
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if content is None else content)
    damaged = path.read_bytes()
    with pytest.raises(CaUnusable, match="damaged"):
        PrivateCa(tmp_path)
    assert path.read_bytes() == damaged


def test_a_start_that_was_interrupted_leaves_nothing_in_the_way(tmp_path: Path) -> None:
    (tmp_path / f".{CA_FILE}.{os.getpid()}").write_bytes(b"half")
    PrivateCa(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [CA_FILE]


def test_what_runs_on_clusters_does_not_import_it() -> None:
    code = "import sys, firstkit.onsite.pilot, firstkit.onsite.command; sys.exit('cryptography' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
