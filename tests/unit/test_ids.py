"""Identifiers and secrets: random, of one form, and known to the store only by their digest."""

from __future__ import annotations

import hashlib
import re

from firstkit.ids import digest, new_id, new_secret


def test_the_form_of_an_id() -> None:
    assert re.fullmatch(r"rep-[a-z2-7]{16}", new_id("rep"))
    assert re.fullmatch(r"req-[a-z2-7]{26}", new_id("req", 16))


def test_a_secret_has_256_bits() -> None:
    assert re.fullmatch(r"[a-z2-7]{52}", new_secret())


def test_no_two_are_the_same() -> None:
    assert len({new_id("x") for _ in range(2000)}) == len({new_secret() for _ in range(2000)}) == 2000


def test_a_digest_covers_the_whole_secret() -> None:
    secret = new_secret()
    assert digest(secret) == hashlib.sha256(secret.encode()).hexdigest()
    assert digest(secret) != digest(secret[:-1])
    assert secret not in digest(secret)
