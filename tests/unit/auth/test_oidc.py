"""Access tokens of an OpenID provider: which are taken, and which are not whatever they look like."""

from __future__ import annotations

import hmac
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from firstkit.auth.authority import Vouched
from firstkit.auth.oidc import OpenIdProvider
from firstkit.config import Oidc
from firstkit.errors import ConfigError, LoginRefused, ProviderUnavailable, Unauthenticated
from unit.auth.loopback_issuer import (
    ALICE,
    AUDIENCE,
    LoopbackIssuer,
    coded,
    ec,
    ed25519,
    loopback_issuer,
    provider_at,
    rsa,
    unsigned,
)

AT = 1_800_000_000
LEEWAY_S = 30


@pytest.fixture
async def issuer() -> AsyncIterator[LoopbackIssuer]:
    async with loopback_issuer() as made:
        yield made


async def told(issuer: LoopbackIssuer, token: str, **config: Any) -> Vouched:
    async with provider_at(issuer, **config) as provider:
        return await provider.look_up(token)


async def is_refused(issuer: LoopbackIssuer, token: str, **config: Any) -> str:
    """The sentence with which it is."""
    with pytest.raises(Unauthenticated) as refusal:
        await told(issuer, token, **config)
    return refusal.value.message


async def test_a_good_token(issuer: LoopbackIssuer) -> None:
    vouched = await told(issuer, issuer.token())
    assert vouched.good_for_s == pytest.approx(600 + LEEWAY_S, abs=5)
    assert (vouched.issuer, vouched.subject, vouched.name) == (issuer.url, "a-1", "a-1")
    assert (vouched.email, vouched.domains) == ("alice@anl.gov", {"anl.gov"})
    assert vouched.groups == {"physics", "first-users"}
    assert vouched.projects == frozenset()


@pytest.mark.parametrize("typ", ["at+jwt", "AT+JWT", "application/at+jwt", "JWT", None])
async def test_the_types_that_access_tokens_have(issuer: LoopbackIssuer, typ: str | None) -> None:
    assert (await told(issuer, issuer.token(header={"typ": typ}))).subject == "a-1"


@pytest.mark.parametrize("aud", [AUDIENCE, [AUDIENCE], ["other", AUDIENCE]])
async def test_the_audience_is_a_text_or_a_list(issuer: LoopbackIssuer, aud: Any) -> None:
    assert (await told(issuer, issuer.token(aud=aud))).subject == "a-1"


@pytest.mark.parametrize(
    "aud", [None, "", "First", "first ", [], ["firstly"], "other first", {"first": 1}, 1, [["first"]]]
)
async def test_a_token_for_somebody_else(issuer: LoopbackIssuer, aud: Any) -> None:
    assert "audience" in await is_refused(issuer, issuer.token(aud=aud))


@pytest.mark.parametrize("suffix", ["/", "x", "/x", "?x", "#", " "])
async def test_an_issuer_that_is_nearly_ours(issuer: LoopbackIssuer, suffix: str) -> None:
    async with provider_at(issuer) as provider:
        await provider.look_up(issuer.token())
        token = issuer.token(iss=issuer.url + suffix)
        assert not provider.may_know(token)
        with pytest.raises(Unauthenticated):
            await provider.look_up(token)


async def test_a_provider_whose_name_ends_with_a_slash(issuer: LoopbackIssuer) -> None:
    issuer.metadata["issuer"] = f"{issuer.url}/"
    token = issuer.token(iss=f"{issuer.url}/")
    async with provider_at(issuer) as provider:
        assert provider.may_know(token)
        assert (await provider.look_up(token)).issuer == f"{issuer.url}/"
        assert not provider.may_know(issuer.token())
        with pytest.raises(Unauthenticated):
            await provider.look_up(issuer.token())


# -- signatures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("alg", "key"), [("PS256", rsa("p")), ("RS512", rsa("r")), ("ES256", ec("e")), ("EdDSA", ed25519("d"))]
)
async def test_algorithms_are_those_of_the_configuration(issuer: LoopbackIssuer, alg: str, key: Any) -> None:
    issuer.keys = [key]
    token = issuer.token(header={"alg": alg})
    assert (await told(issuer, token, algorithms=[alg])).subject == "a-1"
    others = {"RS256", "ES256"} - {alg}
    assert "algorithm" in await is_refused(issuer, token, algorithms=sorted(others))


async def test_a_token_without_a_signature(issuer: LoopbackIssuer) -> None:
    for name in ("none", "None", "NONE", "", None, 1, ["RS256"]):
        token = unsigned(issuer.claims(), alg=name, kid="one")
        assert "algorithm" in await is_refused(issuer, f"{token}AA")
        async with provider_at(issuer) as provider:
            assert not provider.may_know(token), "with an empty signature it is not even a JWT"


@pytest.mark.parametrize("bits", [256, 384, 512])
async def test_a_public_key_is_no_secret(issuer: LoopbackIssuer, bits: int) -> None:
    """Everybody has the provider's public key: who signs with it by HMAC must not get in."""
    public = rsa("one")
    texts = public.as_pem(private=False), public.as_der(private=False), json.dumps(issuer.jwks["keys"][0]).encode()
    for secret in texts:
        assert "algorithm" in await is_refused(issuer, by_hmac(secret, issuer.claims(), bits))


async def test_a_secret_key_that_a_provider_publishes_is_not_used(issuer: LoopbackIssuer) -> None:
    secret = b"thirty-two bytes that all can see"
    issuer.keys = [rsa("one"), {"kty": "oct", "kid": "one", "k": coded(secret)}]
    assert "algorithm" in await is_refused(issuer, by_hmac(secret, issuer.claims(), 256))


def by_hmac(secret: bytes, claims: dict[str, Any], bits: int) -> str:
    text = unsigned(claims, alg=f"HS{bits}", kid="one")
    return text + coded(hmac.digest(secret, text[:-1].encode(), f"sha{bits}"))


async def test_a_key_that_the_token_brings_along(issuer: LoopbackIssuer) -> None:
    thief = rsa("thief")
    brought = {"jwk": thief.as_dict(private=False), "jku": f"{issuer.url}/theirs", "x5u": f"{issuer.url}/theirs"}
    assert "signature" in await is_refused(issuer, issuer.token(thief, header={"kid": "one", **brought}))
    assert "/theirs" not in issuer.asked


async def test_the_right_key_of_the_wrong_algorithm(issuer: LoopbackIssuer) -> None:
    issuer.keys = [{**rsa("one").as_dict(private=False), "alg": "RS256"}]
    token = issuer.token(rsa("one"), header={"alg": "PS256"})
    assert "no key" in await is_refused(
        issuer,
        token,
        algorithms=["RS256", "PS256"],
    )


async def test_a_key_for_encryption_signs_nothing(issuer: LoopbackIssuer) -> None:
    issuer.keys = [rsa("other"), {**rsa("one").as_dict(private=False), "use": "enc"}]
    assert "no key" in await is_refused(issuer, issuer.token(rsa("one")))


async def test_keys_that_are_unreadable_or_weak_are_left_out(issuer: LoopbackIssuer) -> None:
    weak = {"kty": "RSA", "kid": "weak", "e": "AQAB", "n": coded(b"\xc1" * 128)}
    issuer.keys = [{"kty": "RSA"}, {"kty": "AKP", "kid": "q"}, {}, weak, rsa("one")]
    assert (await told(issuer, issuer.token(rsa("one")))).subject == "a-1"
    assert "no key" in await is_refused(issuer, issuer.token(rsa("one"), header={"kid": "weak"}))


async def test_a_token_without_the_id_of_its_key(issuer: LoopbackIssuer) -> None:
    issuer.keys = [rsa("one"), ec("e"), rsa("two")]
    for key, alg in ((rsa("two"), "RS256"), (ec("e"), "ES256")):
        assert (await told(issuer, issuer.token(key, header={"kid": None, "alg": alg}))).subject == "a-1"
    assert "no key" in await is_refused(issuer, issuer.token(rsa("thief"), header={"kid": None}))


@pytest.mark.parametrize("header", [{"crit": ["b64"], "b64": False}, {"crit": ["x"], "x": 1}, {"b64": False}])
async def test_a_token_that_must_be_understood_and_is_not(issuer: LoopbackIssuer, header: dict[str, Any]) -> None:
    parts = issuer.token().split(".")
    whole = {"alg": "RS256", "kid": "one", "typ": "at+jwt", **header}
    parts[0] = coded(whole)
    assert "does not know" in await is_refused(issuer, ".".join(parts))


async def test_truncated_lengthened_and_mixed_tokens(issuer: LoopbackIssuer) -> None:
    token, other = issuer.token(), issuer.token(sub="b-2")
    header, claims, signature = token.split(".")
    whole = await told(issuer, token)
    assert whole.subject == "a-1"
    bad = [token[:-1], token[:-4], f"{token}A", f"{token}AAAA", f"{header}.{other.split('.')[1]}.{signature}"]
    bad += [
        f"{header}.{claims}.{signature[::-1]}",
        f"{header}.{claims}.{signature[:-4]}AAAA",
        f"{token[:-1]}{'A' if token[-1] != 'A' else 'B'}",
    ]
    async with provider_at(issuer) as provider:
        for each in bad:
            with pytest.raises(Unauthenticated):
                await provider.look_up(each)


# -- times -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("claims", "is_good"),
    [
        ({"exp": AT + 600}, True),
        ({"exp": AT - LEEWAY_S + 1}, True),
        ({"exp": AT - LEEWAY_S + 0.01}, True),
        ({"exp": AT - LEEWAY_S}, False),
        ({"exp": AT + 600, "nbf": AT + LEEWAY_S}, True),
        ({"exp": AT + 600, "nbf": AT + LEEWAY_S + 1}, False),
        ({"exp": AT + 600, "iat": AT + LEEWAY_S}, True),
        ({"exp": AT + 600, "iat": AT + LEEWAY_S + 1}, False),
        ({"exp": AT + 600, "iat": None}, True),
        ({"exp": None}, False),
        ({"exp": 0}, False),
        ({"exp": str(AT + 600)}, False),
        ({"exp": True}, False),
        ({"exp": -1}, False),
        ({"exp": 10**400}, False),
        ({"exp": [AT + 600]}, False),
        ({"exp": AT + 600, "nbf": "now"}, False),
        ({"exp": AT + 600, "iat": {}}, False),
    ],
)
async def test_skew_up_to_the_leeway(issuer: LoopbackIssuer, claims: dict[str, Any], is_good: bool) -> None:
    token = issuer.token(**{"iat": AT - 60, **claims})
    async with provider_at(issuer, lambda: float(AT)) as provider:
        if is_good:
            left_s = (await provider.look_up(token)).good_for_s
            assert left_s == pytest.approx(claims["exp"] + LEEWAY_S - AT)
            assert left_s > 0
            return
        with pytest.raises(Unauthenticated):
            await provider.look_up(token)


@pytest.mark.parametrize("exp", ["NaN", "Infinity", "1e999"])
async def test_an_end_that_is_no_number(issuer: LoopbackIssuer, exp: str) -> None:
    claims = json.dumps(issuer.claims(exp=1)).replace('"exp": 1,', f'"exp": {exp},')
    token = issuer.token().split(".")
    token[1] = coded(claims.encode())
    async with provider_at(issuer) as provider:
        with pytest.raises(Unauthenticated):
            await provider.look_up(".".join(token))


# -- kinds of tokens ---------------------------------------------------------------------------------------------------


ID_TOKENS = [{name: "x"} for name in ("nonce", "at_hash", "c_hash", "events")]
UNTOLD = [{}, {"azp": AUDIENCE}, {"azp": AUDIENCE, "aud": [AUDIENCE]}, {"azp": "cli", "aud": ["cli", AUDIENCE]}]


@pytest.mark.parametrize("claims", [*ID_TOKENS, *({"client_id": None, **claims} for claims in UNTOLD)], ids=str)
async def test_an_id_token_opens_nothing(issuer: LoopbackIssuer, claims: dict[str, Any]) -> None:
    for typ in ("JWT", None):
        assert "no access token" in await is_refused(issuer, issuer.token(header={"typ": typ}, **claims))


@pytest.mark.parametrize(
    "claims",
    [{"azp": "cli"}, {"scope": "openid"}, {"scp": ["x"]}, {"cid": "cli"}, {"typ": "Bearer", "nonce": "n"},
     {"token_use": "access", "nonce": "n"}],
    ids=str,
)  # fmt: skip
async def test_what_access_tokens_say_of_themselves(issuer: LoopbackIssuer, claims: dict[str, Any]) -> None:
    token = issuer.token(header={"typ": "JWT"}, **{"client_id": None, **claims})
    assert (await told(issuer, token)).subject == "a-1"


@pytest.mark.parametrize("claims", [{"typ": "ID"}, {"typ": "Refresh"}, {"typ": "Offline"}, {"token_use": "id"}])
async def test_a_token_that_says_that_it_is_another_kind(issuer: LoopbackIssuer, claims: dict[str, Any]) -> None:
    assert "no access token" in await is_refused(issuer, issuer.token(**claims))


@pytest.mark.parametrize("typ", ["logout+jwt", "dpop+jwt", "secevent+jwt", "id+jwt", ""])
async def test_types_of_other_tokens(issuer: LoopbackIssuer, typ: str) -> None:
    assert "no access token" in await is_refused(issuer, issuer.token(header={"typ": typ}))


async def test_a_token_that_is_bound_to_a_key(issuer: LoopbackIssuer) -> None:
    assert "bound" in await is_refused(issuer, issuer.token(cnf={"jkt": "x"}))


# -- what may be ours --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    ["", ".", "..", "a.b.c", "a.b", "a.b.c.d.e", "first-session-x", "x" * 20_000, "é.é.é", "eyJ.eyJ.x y", "a.b.c\n"],
)
async def test_what_is_no_token_of_anybody(issuer: LoopbackIssuer, text: str) -> None:
    async with provider_at(issuer) as provider:
        assert not provider.may_know(text)
        with pytest.raises(Unauthenticated):
            await provider.look_up(text)


async def test_deep_and_large_claims_are_no_trouble(issuer: LoopbackIssuer) -> None:
    deep = coded(b"[" * 5000)
    async with provider_at(issuer) as provider:
        assert not provider.may_know(f"{deep}.{deep}.AAAA")
        assert not provider.may_know(f"{issuer.token()}{'A' * 16_384}")
        for part in (b'{"iss": 1}', b"[]", b"1", b"null", b'{"iss": "\xff"}', b"{"):
            assert not provider.may_know(f"{coded(part)}.{coded(part)}.AAAA")


async def test_tokens_of_another_issuer_are_left_to_others(issuer: LoopbackIssuer) -> None:
    async with provider_at(issuer) as provider:
        assert provider.may_know(issuer.token())
        assert not provider.may_know(issuer.token(iss="https://other.example.org"))
        assert not provider.may_know("opaque-token-of-somebody")
        assert issuer.asked == [], "nobody is asked"


# -- people ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sub", [None, "", 7, "x" * 301, "a\nb", "a\0b", ["a"]])
async def test_somebody_without_a_usable_subject(issuer: LoopbackIssuer, sub: Any) -> None:
    with pytest.raises(LoginRefused, match="sub"):
        await told(issuer, issuer.token(sub=sub))


async def test_names_by_another_claim(issuer: LoopbackIssuer) -> None:
    vouched = await told(issuer, issuer.token(preferred_username="alice"), claims={"user": "preferred_username"})
    assert (vouched.subject, vouched.name) == ("a-1", "alice")
    with pytest.raises(LoginRefused, match="preferred_username"):
        await told(issuer, issuer.token(), claims={"user": "preferred_username"})


@pytest.mark.parametrize("verified", [False, None, 1, "yes", "True", [True]])
async def test_an_address_that_is_not_verified_has_no_domain(issuer: LoopbackIssuer, verified: Any) -> None:
    vouched = await told(issuer, issuer.token(email_verified=verified))
    assert (vouched.email, vouched.domains) == ("alice@anl.gov", frozenset())
    with pytest.raises(LoginRefused, match="verified"):
        await told(issuer, issuer.token(email_verified=verified), claims={"user": "email"})


@pytest.mark.parametrize("email", [None, "", "alice", 7, "a" * 400 + "@x.org", "a\n@x.org"])
async def test_what_is_no_address(issuer: LoopbackIssuer, email: Any) -> None:
    vouched = await told(issuer, issuer.token(email=email))
    assert (vouched.email, vouched.domains) == (None, frozenset())


async def test_the_domain_is_what_stands_behind_the_last_at(issuer: LoopbackIssuer) -> None:
    assert (await told(issuer, issuer.token(email='"x@anl.gov"@Evil.ORG'))).domains == {"evil.org"}


@pytest.mark.parametrize(
    ("groups", "found"),
    [
        (["a", "b"], {"a", "b"}),
        ("a  b c", {"a", "b", "c"}),
        (["a b"], {"a b"}),
        ([1, None, "", "a", ["b"], "c\n"], {"a"}),
        ({"a": 1}, set()),
        (7, set()),
        (None, set()),
    ],
)
async def test_groups_in_the_forms_that_providers_have(issuer: LoopbackIssuer, groups: Any, found: set[str]) -> None:
    assert (await told(issuer, issuer.token(groups=groups))).groups == found


async def test_claims_inside_others_and_with_dots(issuer: LoopbackIssuer) -> None:
    token = issuer.token(realm_access={"roles": ["r"]}, **{"https://idp.example.org/projects": "fusion climate"})
    claims = {"groups": "realm_access.roles", "projects": "https://idp.example.org/projects"}
    vouched = await told(issuer, token, claims=claims)
    assert (vouched.groups, vouched.projects) == ({"r"}, {"fusion", "climate"})
    assert (await told(issuer, issuer.token(realm_access="roles"), claims=claims)).groups == frozenset()


async def test_only_members_of_a_group_come_in(issuer: LoopbackIssuer) -> None:
    assert (await told(issuer, issuer.token(), groups=["first-users", "x"])).subject == ALICE["sub"]
    for groups in ([], ["first-user"], None, ["First-Users"]):
        with pytest.raises(LoginRefused, match="groups"):
            await told(issuer, issuer.token(groups=groups), groups=["first-users", "x"])


# -- configuration -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", ["http://idp.example.org", "http://10.0.0.1", "http://127.0.0.1.example.org"])
def test_an_issuer_without_tls_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="https"):
        OpenIdProvider(Oidc(issuer=url, audience="x"))


@pytest.mark.parametrize("url", ["https://idp.example.org", "http://localhost:1", "http://[::1]:1", "http://127.0.0.2"])
def test_on_this_machine_it_is_not(url: str) -> None:
    assert OpenIdProvider(Oidc(issuer=url, audience="x")).name == "oidc"


async def test_a_provider_that_was_never_reached(issuer: LoopbackIssuer) -> None:
    issuer.is_down = True
    with pytest.raises(ProviderUnavailable):
        await told(issuer, issuer.token())
