"""The service as a client of an identity provider: its id and its secret."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import quote_plus

from firstkit.auth.discovery import Provider
from firstkit.auth.provider_http import ProviderHttp, Reply


@dataclass(frozen=True, slots=True)
class OAuthClient:
    """A confidential client."""

    id: str
    secret: str = field(repr=False)

    async def post(self, http: ProviderHttp, provider: Provider, endpoint: str, form: Mapping[str, str]) -> Reply:
        """Send a form to an endpoint of the provider, by its name, with the secret in the way that the provider takes
        it. Raises ProviderUnavailable."""
        url = provider.endpoint(endpoint)
        methods = f"{endpoint}_auth_methods_supported"
        methods = methods if methods in provider.metadata else "token_endpoint_auth_methods_supported"
        if provider.supports(methods, "client_secret_basic", unsaid="client_secret_basic"):
            return await http.post(url, form, {"authorization": self._basic()})
        return await http.post(url, {**form, "client_id": self.id, "client_secret": self.secret})

    def _basic(self) -> str:
        both = f"{quote_plus(self.id)}:{quote_plus(self.secret)}"
        return f"Basic {base64.b64encode(both.encode()).decode()}"
