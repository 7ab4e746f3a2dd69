"""What an identity provider says of itself, kept for a while: its addresses and its keys."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from firstkit.auth.jwks import Keys, read_keys
from firstkit.auth.oauth import is_private
from firstkit.auth.provider_http import ProviderHttp
from firstkit.clock import monotonic
from firstkit.errors import ProviderUnavailable

logger = logging.getLogger("firstkit.auth")
PATH = "/.well-known/openid-configuration"
FRESH_S = 600.0
"""So long what a provider said is taken as still true: a key that it withdrew is believed no longer."""
GRACE_S = 3600.0
"""So much longer it is, while the provider is silent."""
PAUSE_S = 5.0
"""Between two times that a provider is asked, whatever tokens come."""
PATIENCE_S = 1.0
"""So long is waited for a provider that may not answer, where what it said before will do."""


@dataclass(frozen=True, slots=True)
class Provider:
    """A provider as it described itself at ``at``, in monotonic seconds."""

    url: str
    issuer: str
    metadata: Mapping[str, Any]
    keys: Keys
    at: float

    def endpoint(self, name: str) -> str:
        """The address of ``name`` (``token_endpoint``); raises ProviderUnavailable where there is none to trust."""
        return _address(self.metadata, name, self.url)

    def supports(self, name: str, value: str, unsaid: str) -> bool:
        """Whether a list of the description has a value; ``unsaid``: the only one where there is no list."""
        listed = self.metadata.get(name)
        return value in (listed if isinstance(listed, list) else [unsaid])


class Issuer:
    """The provider at one address. ``names``: how it may call itself instead of by that address.

    A slash at the end of its name is its own matter: configurations do not keep one.
    """

    def __init__(
        self,
        url: str,
        http: ProviderHttp,
        names: tuple[str, ...] = (),
        clock: Callable[[], float] = monotonic,
        pause_s: float = PAUSE_S,
    ) -> None:
        self.url = url
        self._names = frozenset({url, f"{url}/", *names})
        self._http = http
        self._clock = clock
        self._pause_s = pause_s
        self._said: Provider | None = None
        self._asked_at = -float("inf")
        self._asking: asyncio.Task[Provider] | None = None

    def is_called(self, name: object) -> bool:
        """Whether this can be the name of the provider; asks nobody."""
        return name == self._said.issuer if self._said is not None else name in self._names

    async def provider(self) -> Provider:
        """The provider as it lately described itself; raises ProviderUnavailable."""
        said = self._said
        if said is not None and self._clock() < said.at + FRESH_S:
            return said
        if self._asking is None and self._clock() < self._asked_at + self._pause_s:  # it was silent a moment ago
            return self._still_good(said)
        if said is None:
            return await asyncio.shield(self._ask())
        try:
            async with asyncio.timeout(PATIENCE_S):
                return await asyncio.shield(self._ask())
        except (ProviderUnavailable, TimeoutError):
            return self._still_good(said)

    async def newer(self, than: Provider) -> Provider:
        """The provider as it describes itself after ``than``, for all who want that together, and after a pause where
        it was asked just now. Raises ProviderUnavailable."""
        if self._said is not None and self._said is not than:
            return self._said
        return await asyncio.shield(self._ask())

    def _still_good(self, said: Provider | None) -> Provider:
        if said is None or self._clock() >= said.at + FRESH_S + GRACE_S:
            raise ProviderUnavailable
        return said

    def _ask(self) -> asyncio.Task[Provider]:
        if self._asking is None:
            self._asking = asyncio.create_task(self._ask_soon())
            self._asking.add_done_callback(self._heard)
        return self._asking

    def _heard(self, task: asyncio.Task[Provider]) -> None:
        self._asking = None
        if not task.cancelled() and (error := task.exception()):  # every waiter may have left
            why = error.__cause__ or error
            logger.warning("the identity provider %s is silent: %s", self.url, why, extra={"action": "discover"})

    async def _ask_soon(self) -> Provider:
        await asyncio.sleep(self._asked_at + self._pause_s - self._clock())
        self._asked_at = self._clock()
        self._said = await self._discover()
        return self._said

    async def _discover(self) -> Provider:
        asked = self._clock()
        metadata = await self._get(f"{self.url}{PATH}")
        issuer = metadata.get("issuer")
        if issuer not in self._names:
            raise ProviderUnavailable("The identity provider calls itself by another name than its address.")
        keys = read_keys(await self._get(_address(metadata, "jwks_uri", self.url)))
        if not len(keys):
            raise ProviderUnavailable("The identity provider has no key that this service takes.")
        return Provider(self.url, issuer, metadata, keys, asked)

    async def _get(self, url: str) -> dict[str, Any]:
        status, body = await self._http.get(url)
        if status != 200 or not isinstance(body, dict):
            raise ProviderUnavailable(f"The identity provider answered {status} where it describes itself.")
        return body


def _address(metadata: Mapping[str, Any], name: str, of: str) -> str:
    """An address that the provider at ``of`` gives; one without TLS only where it is without TLS itself."""
    url = metadata.get(name)
    if not isinstance(url, str) or not is_private(url) or (of.startswith("https:") and url.startswith("http:")):
        raise ProviderUnavailable(f"The identity provider gives no '{name}' that can be trusted.")
    return url
