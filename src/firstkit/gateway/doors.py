"""The ways by which a token comes with a request. Whatever the way, the same token decides the same."""

from __future__ import annotations

import base64
import binascii

from firstkit.auth.authenticator import Authenticator
from firstkit.auth.permissions import Identity
from firstkit.errors import Forbidden, Unauthenticated
from firstkit.gateway.request import RequestHead

COOKIE = "first_session"
"""The cookie of a browser that is logged in."""
_HOST_ONLY = "__Host-"
_SAFE = ("GET", "HEAD")


class CrossSiteRequest(Forbidden):
    """A browser sent this from a page that is not of this service, so its login does not count."""

    code = "cross_site_request"


def token_of(head: RequestHead, public_url: str | None = None) -> str:
    """The token that came with a request: a Bearer token, ``x-api-key``, the password of HTTP Basic, or the session of
    a browser. ``public_url``: where browsers find this service.

    Raises Unauthenticated, and CrossSiteRequest for a session that comes unasked.
    """
    authorization = head.get(b"authorization")
    if authorization is None:
        return head.get(b"x-api-key") or _session_of(head, public_url)
    scheme, _, value = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() == "basic":
        return _basic_password(value)
    raise Unauthenticated


def cookie_name(name: str, public_url: str | None) -> str:
    """What a cookie of ours is called. By https no other host can set one of such a name, and nobody without TLS."""
    return f"{_HOST_ONLY}{name}" if public_url is not None and public_url.startswith("https:") else name


def cookie_of(head: RequestHead, name: str) -> str | None:
    """The value of a cookie; None where there is none, or two that differ: then one is somebody else's."""
    found = set()
    for line in head.values(b"cookie"):
        for pair in line.decode("latin-1").split(";"):
            key, is_pair, value = pair.strip(" \t").partition("=")
            if is_pair and key == name:
                found.add(value)
    return found.pop() if len(found) == 1 else None


def check_origin(head: RequestHead, public_url: str | None) -> None:
    """Raise CrossSiteRequest for a request that changes something unless the browser says that a page of ours sent it:
    browsers add cookies to whatever a page of anybody sends."""
    if head.method in _SAFE:
        return
    site = head.get(b"sec-fetch-site")
    if site is not None:
        is_ours = site == "same-origin"
    else:
        is_ours = _is_ours(head.get(b"origin") or "", head.get(b"host") or "", public_url)
    if not is_ours:
        raise CrossSiteRequest


def _session_of(head: RequestHead, public_url: str | None) -> str:
    token = cookie_of(head, cookie_name(COOKIE, public_url)) if head.values(b"cookie") else None
    if not token:
        raise Unauthenticated
    check_origin(head, public_url)
    return token


def _is_ours(origin: str, host: str, public_url: str | None) -> bool:
    public = _origin_of(public_url)
    schemes = ("https",) if public.startswith("https:") else ("http", "https")
    return bool(origin) and origin.lower() in (public, *(f"{scheme}://{host.lower()}" for scheme in schemes))


def _origin_of(public_url: str | None) -> str:
    """Of an address: scheme, host and port."""
    return "" if public_url is None else "/".join(public_url.lower().split("/", 3)[:3])


def _basic_password(value: str) -> str:
    try:
        return base64.b64decode(value.strip(), validate=True).decode().partition(":")[2]
    except (binascii.Error, ValueError):
        raise Unauthenticated from None


def project_of(head: RequestHead) -> str | None:
    """The project that a request names; raises InvalidRequest where it does so twice."""
    return head.get(b"x-first-project")


async def holder_of(head: RequestHead, authenticator: Authenticator, public_url: str | None = None) -> Identity:
    """Who asks, charged as is usual for them; raises Unauthenticated, LoginRefused, CrossSiteRequest, or
    StoreUnavailable and ProviderUnavailable when nobody can say."""
    token = token_of(head, public_url)
    return authenticator.cached(token) or await authenticator.identify(token)


async def identify(head: RequestHead, authenticator: Authenticator, public_url: str | None = None) -> Identity:
    """The same, charged to the project that they name; raises also ProjectNotFound."""
    identity = await holder_of(head, authenticator, public_url)
    project = project_of(head)
    return identity if project is None else identity.charged_to(project)
