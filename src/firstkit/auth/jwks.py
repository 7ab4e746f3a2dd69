"""The public keys of an identity provider, and tokens that one of them is said to have signed."""

from __future__ import annotations

import base64
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import msgspec
from joserfc import jws
from joserfc.errors import JoseError, SecurityWarning
from joserfc.jwa import JWSAlgModel
from joserfc.jwk import ECKey, OKPKey, RSAKey, import_key
from joserfc.jws import CompactSignature, JWSRegistry

from firstkit.auth.tokens import LONGEST
from firstkit.errors import Unauthenticated

MOST_KEYS = 50
_JWT = re.compile(r"[\w-]+\.[\w-]+\.[\w-]+", re.ASCII)
_OBJECT = msgspec.json.Decoder(dict[str, Any])
_UNFIT = (JoseError, ValueError, TypeError, RecursionError)
PublicKey = RSAKey | ECKey | OKPKey


class UnknownKey(Exception):
    """None of the keys that we have can have signed this; the provider may have newer ones."""


@dataclass(frozen=True, slots=True)
class Signed:
    """Header and claims of a token in the form of a JWT; whether they are true is another question."""

    token: str
    header: dict[str, Any]
    claims: dict[str, Any]


class _Algorithms(JWSRegistry):
    """The algorithms that are allowed, and no others."""

    max_header_length = max_payload_length = LONGEST

    def get_alg(self, name: str) -> JWSAlgModel:
        if name not in (self.allowed or ()):
            raise Unauthenticated("The token is signed by an algorithm that this service does not take.")
        return self.algorithms[name]


class Keys:
    """The keys of one provider that may sign something."""

    def __init__(self, keys: Sequence[PublicKey]) -> None:
        self._keys = tuple(keys)

    def __len__(self) -> int:
        return len(self._keys)

    def check(self, signed: Signed, algorithms: Sequence[str]) -> None:
        """Raise Unauthenticated unless one of the keys signed this, UnknownKey where it may be one that is not here."""
        registry = _Algorithms(algorithms=algorithms, strict_check_header=False)
        name = signed.header.get("alg")
        algorithm = registry.get_alg(name if isinstance(name, str) else "")
        if "crit" in signed.header or "b64" in signed.header:
            raise Unauthenticated("The token is signed in a way that this service does not know.")
        fitting = self._fitting(algorithm, signed.header)
        read = _read(signed.token, registry)
        if any(_is_by(key, read, registry) for key in fitting):
            return
        if not fitting or "kid" not in signed.header:
            raise UnknownKey
        raise Unauthenticated("The signature of the token is wrong.")

    def _fitting(self, algorithm: JWSAlgModel, header: dict[str, Any]) -> list[PublicKey]:
        """The keys that a header may mean: by id where it names one, else all of the right kind."""
        of_kind = [key for key in self._keys if key.key_type == algorithm.key_type]
        found = [key for key in of_kind if key.alg in (None, algorithm.name)]
        return [key for key in found if key.kid == header["kid"]] if "kid" in header else found


def read_keys(document: Any) -> Keys:
    """The keys of a JWK set, without those that are secret, too weak, unreadable or not for signatures."""
    entries = document.get("keys") if isinstance(document, dict) else None
    entries = entries[:MOST_KEYS] if isinstance(entries, list) else []
    return Keys([key for entry in entries if (key := _public_key(entry)) is not None])


def unproven(token: str) -> Signed | None:
    """What a token says of itself; None for what is no JWT."""
    if len(token) > LONGEST or not _JWT.fullmatch(token):
        return None
    try:
        header, claims = (_OBJECT.decode(_decoded(part)) for part in token.split(".")[:2])
    except (ValueError, RecursionError):
        return None
    return Signed(token, header, claims)


def _decoded(part: str) -> bytes:
    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))


def _public_key(entry: Any) -> PublicKey | None:
    if not isinstance(entry, dict) or entry.get("kty") not in ("RSA", "EC", "OKP"):
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", SecurityWarning)  # for RSA keys below 2048 bits
            key = cast(PublicKey, import_key(entry))
            key.check_use("sig")
    except (*_UNFIT, SecurityWarning):
        return None
    return None if key.is_private else key


def _read(token: str, registry: JWSRegistry) -> CompactSignature:
    try:
        return jws.extract_compact(token.encode(), registry=registry)
    except _UNFIT:
        raise Unauthenticated("The token cannot be read.") from None


def _is_by(key: PublicKey, read: CompactSignature, registry: JWSRegistry) -> bool:
    try:
        return jws.validate_compact(read, key, registry=registry)
    except _UNFIT:
        return False
