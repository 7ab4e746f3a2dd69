"""HTTP to an identity provider: JSON in answers of bounded size and time, and one word for all trouble."""

from __future__ import annotations

import asyncio
import json
import logging
import ssl
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import httpx

from firstkit.errors import ProviderUnavailable

logging.getLogger("httpx").setLevel(logging.WARNING)  # it would write a line about each question
MOST_BYTES = 1024 * 1024
LIMIT_S = 10.0
_TIMEOUTS = httpx.Timeout(5.0, connect=3.0)


class Reply(NamedTuple):
    """Status and JSON body of an answer; the body is None where it is no JSON."""

    status: int
    body: Any


class ProviderHttp:
    """Connections to one provider. No redirect is followed, no answer is longer than ``MOST_BYTES`` or takes longer
    than ``LIMIT_S``. The environment says which proxy is used and, by SSL_CERT_FILE, which certificates are believed.
    """

    def __init__(self) -> None:
        self._client: httpx.AsyncClient | None = None
        self._opening = asyncio.Lock()

    async def get(self, url: str) -> Reply:
        """Raises ProviderUnavailable."""
        return await self._ask(httpx.Request("GET", url, headers={"accept": "application/json"}))

    async def post(self, url: str, form: Mapping[str, str], headers: Mapping[str, str] = MappingProxyType({})) -> Reply:
        """Send a form. Raises ProviderUnavailable."""
        return await self._ask(httpx.Request("POST", url, data=form, headers={"accept": "application/json", **headers}))

    async def close(self) -> None:
        """Close all connections."""
        if self._client is not None:
            await self._client.aclose()

    async def _ask(self, request: httpx.Request) -> Reply:
        client = await self._opened()
        try:
            async with asyncio.timeout(LIMIT_S):
                answer = await client.send(request, stream=True)
                try:
                    return Reply(answer.status_code, _parsed(await _bounded(answer)))
                finally:
                    await answer.aclose()
        except (httpx.HTTPError, httpx.InvalidURL, ssl.SSLError, OSError, TimeoutError) as exc:
            raise ProviderUnavailable from exc

    async def _opened(self) -> httpx.AsyncClient:
        async with self._opening:
            if self._client is None:  # reading all certificates takes 50 ms
                trust = await asyncio.to_thread(ssl.create_default_context)
                self._client = httpx.AsyncClient(verify=trust, timeout=_TIMEOUTS)
            return self._client


async def _bounded(answer: httpx.Response) -> bytes:
    body = b""
    async for piece in answer.aiter_bytes():
        body += piece
        if len(body) > MOST_BYTES:
            raise ProviderUnavailable("The identity provider's answer is too long.")
    return body


def _parsed(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None
