"""Where a request comes from: what the peer is, and what proxies say that are trusted, as far as they are."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstkit.gateway.source import Sources

PROXY, OTHER, CLIENT = "10.0.0.1", "10.0.0.2", "192.0.2.7"
TRUSTED = Sources(["10.0.0.0/8", "fd00::/8", "127.0.0.1"])


@pytest.mark.parametrize(
    ("peer", "found"),
    [
        ((CLIENT, 5000), CLIENT),
        (("2001:db8::7", 5000, 0, 0), "2001:db8::7"),
        (("::ffff:192.0.2.7", 5000, 0, 0), CLIENT),
        (("fe80::7%eth0", 5000, 0, 2), "fe80::7"),
        (("", 0), ""),
        ((), ""),
        ("", ""),
        (b"", ""),
        ("/run/first/admin.sock", ""),
        (None, ""),
    ],
)
def test_the_peer_of_a_connection(peer: Any, found: str) -> None:
    """A socket in the file system has none: that is this machine."""
    assert Sources().of(peer) == found
    assert TRUSTED.of(peer) == found


@pytest.mark.parametrize(
    ("forwarded", "found"),
    [
        ([], PROXY),
        ([b""], PROXY),
        ([b"192.0.2.7"], CLIENT),
        ([b"192.0.2.7, 10.0.0.2"], CLIENT),
        ([b"192.0.2.7", b"10.0.0.2,10.0.0.3"], CLIENT),
        ([b"198.51.100.1, 192.0.2.7, 10.0.0.2"], CLIENT),
        ([b"10.0.0.9, 192.0.2.7"], CLIENT),
        ([b"10.0.0.9 , 10.0.0.2"], "10.0.0.9"),
        ([b"192.0.2.7:4711"], CLIENT),
        ([b"[2001:db8::7]:4711, fd00::1"], "2001:db8::7"),
        ([b"::ffff:192.0.2.7"], CLIENT),
        ([b"unknown"], PROXY),
        ([b"192.0.2.7, unknown, 10.0.0.2"], OTHER),
        ([b"192.0.2.7, <script>"], PROXY),
        ([b"\xff\xfe"], PROXY),
    ],
)
def test_the_first_from_the_right_that_is_no_proxy_of_ours(forwarded: list[bytes], found: str) -> None:
    assert TRUSTED.of((PROXY, 5000), forwarded) == found


@pytest.mark.parametrize("forwarded", [[b"10.0.0.2"], [b"192.0.2.9"], [b"127.0.0.1", b"::1"]])
def test_what_strangers_say_does_not_count(forwarded: list[bytes]) -> None:
    assert TRUSTED.of((CLIENT, 5000), forwarded) == CLIENT
    assert Sources().of((PROXY, 5000), forwarded) == PROXY


@given(st.lists(st.binary(max_size=40), max_size=4), st.sampled_from([PROXY, CLIENT]))
def test_whatever_is_sent_there_is_an_address(forwarded: list[bytes], peer: str) -> None:
    found = TRUSTED.of((peer, 1), forwarded)
    assert Sources().of((found, 1)) == found
    assert len(found) <= 60
