"""The private CA of a gateway: pilots trust it and nothing else, and it vouches for the gateway's name, for names of
jobs below it, and for nothing else.

It has nothing to do with the certificate that clients see. Its files lie in a folder of the gateway that only its
owner can enter; one process at a time may use them. Never part of what runs on clusters.
"""

from __future__ import annotations

import contextlib
import os
import ssl
from datetime import datetime, timedelta
from pathlib import Path
from typing import Optional

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from firstkit.clock import now
from firstkit.errors import FirstError
from firstkit.links.dial import SERVER_NAME

CA_FILE = "pilots-ca.pem"
"""Key and certificate of the CA."""
SERVER_FILE = "pilots-server.pem"
"""Key and certificate of the gateway's door for pilots."""
CA_LIFE = timedelta(days=3650)
SERVER_LIFE = timedelta(days=365)
RENEW_BEFORE = timedelta(days=30)
JOB_LIFE = timedelta(days=60)
"""As long as a job may wait and run, where the gateway dials its pilot."""
BACKDATED = timedelta(days=7)
"""Certificates are valid from before they were made: the clocks of clusters may be behind."""


class CaUnusable(FirstError):
    """The CA for pilots cannot be used."""


_GATEWAY = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
"""The gateway is dialled by pilots, or dials them."""


def job_name(job_id: str) -> str:
    """The name that the certificate of a job's pilot is for."""
    return f"{job_id}.{SERVER_NAME}"


class PrivateCa:
    """The CA in ``folder``: made at first, found again later. Its certificate for the gateway is renewed in time.

    Raises OSError when the folder cannot be read or written, CaUnusable when what lies there is damaged: a new CA would
    cut off all pilots that run, so that is for people to decide.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        path = folder / CA_FILE
        ca = _load(path)
        if ca is None and path.exists():
            raise CaUnusable(f"{path} is damaged. Without it a new CA is made, which pilots that run do not trust.")
        if ca is None or ca.certificate.not_valid_after_utc <= now():
            ca = _store(path, _make_ca(now()))
        self._ca = ca

    @property
    def certificate_pem(self) -> str:
        """What pilots have to trust: ``LinkSpec.ca_pem``."""
        return self._ca.certificate.public_bytes(serialization.Encoding.PEM).decode()

    def server_context(self) -> ssl.SSLContext:
        """For the door that pilots dial: TLS 1.2 or 1.3, no client certificates (a pilot's hello says who it is)."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_RENEGOTIATION
        context.num_tickets = 0
        self.refresh(context)
        return context

    def refresh(self, context: ssl.SSLContext) -> None:
        """Let new connections of ``context`` have a certificate that is good for RENEW_BEFORE at least, or as long as
        the CA is. To be called once a day; costs a few milliseconds."""
        path = self._folder / SERVER_FILE
        server = _load(path)
        if server is None or not self._vouches_for(server.certificate):
            _store(path, self._make(SERVER_NAME, now(), SERVER_LIFE, _GATEWAY))
        context.load_cert_chain(path)

    def client_context(self) -> ssl.SSLContext:
        """For dialling pilots, each by the ``job_name`` of its job: with the certificate of the gateway."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_verify_locations(cadata=self.certificate_pem)
        self.refresh(context)
        return context

    def identity_pem(self, job_id: str) -> str:
        """Key and certificate for the pilot of one job, that the gateway dials: ``LinkSpec.identity_pem``. They make it
        a server of that name and nothing else; it cannot pass for the gateway, nor dial another pilot."""
        return self._make(job_name(job_id), now(), JOB_LIFE, [ExtendedKeyUsageOID.SERVER_AUTH]).pem().decode()

    def _vouches_for(self, certificate: x509.Certificate) -> bool:
        try:
            certificate.verify_directly_issued_by(self._ca.certificate)
            usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        except (ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
            return False
        if any(purpose not in usage for purpose in _GATEWAY):
            return False
        last = min(now() + RENEW_BEFORE, self._ca.certificate.not_valid_after_utc)
        return certificate.not_valid_before_utc <= now() and last <= certificate.not_valid_after_utc

    def _make(self, name: str, at: datetime, life: timedelta, usage: list[x509.ObjectIdentifier]) -> _KeyAndCertificate:
        key = ec.generate_private_key(ec.SECP256R1())
        issuer = self._ca.certificate
        own_id = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        builder = _builder(name, key, issuer.subject, at, min(at + life, issuer.not_valid_after_utc))
        builder = (
            builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usage), critical=False)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own_id), critical=False)
        )
        return _KeyAndCertificate(key, builder.sign(self._ca.key, hashes.SHA256()))


class _KeyAndCertificate:
    def __init__(self, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> None:
        self.key = key
        self.certificate = certificate

    def pem(self) -> bytes:
        pem, pkcs8, plain = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        return self.key.private_bytes(pem, pkcs8, plain) + self.certificate.public_bytes(pem)


def _make_ca(at: datetime) -> _KeyAndCertificate:
    key = ec.generate_private_key(ec.SECP256R1())
    name = f"FIRST pilots {os.urandom(4).hex()}"
    only_our_names = x509.NameConstraints(permitted_subtrees=[x509.DNSName(SERVER_NAME)], excluded_subtrees=None)
    builder = (
        _builder(name, key, _name(name), at, at + CA_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(only_our_names, critical=True)
    )
    return _KeyAndCertificate(key, builder.sign(key, hashes.SHA256()))


def _builder(
    name: str, key: ec.EllipticCurvePrivateKey, issuer: x509.Name, at: datetime, until: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(_name(name))
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(at - BACKDATED)
        .not_valid_after(until)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _key_usage(signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _load(path: Path) -> Optional[_KeyAndCertificate]:
    """What ``_store`` wrote; None when it is not there, or damaged."""
    try:
        pem = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        key = serialization.load_pem_private_key(pem, None)
        certificate = x509.load_pem_x509_certificate(pem)
    except (ValueError, TypeError):
        return None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or certificate.public_key() != key.public_key():
        return None
    return _KeyAndCertificate(key, certificate)


def _store(path: Path, made: _KeyAndCertificate) -> _KeyAndCertificate:
    """Write it whole or not at all, readable by its owner only."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with contextlib.suppress(FileNotFoundError):
        partial.unlink()
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(made.pem())
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    return made
