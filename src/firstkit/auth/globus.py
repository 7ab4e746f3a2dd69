"""Globus Auth as an Authority: a token is good when Globus says so now, and its holder meets our rules."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime

from firstkit.auth import globus_rules as rules
from firstkit.auth.authority import Vouched
from firstkit.auth.secret_file import read_secret
from firstkit.auth.threads import Threads
from firstkit.auth.tokens import OURS
from firstkit.clock import now
from firstkit.config import Globus as Settings
from firstkit.errors import ConfigError, ProviderUnavailable, Unauthenticated

THREADS = 8
MOST_UNDER_WAY = 256
"""Tokens that are looked up or wait for it. Whoever comes with one more is told at once that Globus is unavailable."""
LIMIT_S = 10.0
"""How long somebody waits for Globus in all."""

_OPAQUE = re.compile(r"[\x21-\x7e]{20,2048}")


class Globus:
    """See ``Authority``. Remembers nothing: that is for the Authenticator.

    ``wants_groups``: whether a rule elsewhere is about groups; where no rule is, Globus is not asked for them. Raises
    ConfigError where the secret cannot be used or the SDK is not installed.
    """

    name = "globus"

    def __init__(self, settings: Settings, *, wants_groups: bool = False, clock: Callable[[], datetime] = now) -> None:
        secret = read_secret(settings.client_secret_file, "auth.globus.client_secret_file")
        try:
            from firstkit.auth.globus_calls import GlobusCalls
        except ModuleNotFoundError:
            raise ConfigError('auth.globus: its SDK is not installed: pip install "firstkit[globus]"') from None
        self._settings = settings
        self._asks_for_groups = wants_groups or rules.needs_groups(settings)
        self._clock = clock
        self._calls = GlobusCalls(settings.client_id, secret, connections=THREADS)
        self._threads = Threads("globus", THREADS, MOST_UNDER_WAY)

    def may_know(self, token: str) -> bool:
        """Whether a token has the form of those of Globus, which are opaque: not one of ours, and no JWT."""
        return _OPAQUE.fullmatch(token) is not None and not token.startswith(OURS) and token.count(".") not in (2, 4)

    async def look_up(self, token: str) -> Vouched:
        return await self._threads.run(lambda: self._look_up(token), LIMIT_S)

    async def close(self) -> None:
        self._threads.close()
        self._calls.close()

    def _look_up(self, token: str) -> Vouched:
        """The same in a thread: one to three calls after another, and the rules between them."""
        try:
            said = rules.read_introspection(self._calls.introspect(token, self._settings.policies))
            if said is None:
                raise Unauthenticated("Globus does not know this token, or not any more: log in again.")
            at = self._clock().timestamp()
            rules.check_token(said, self._settings, at)
            fit = rules.admit(said, self._settings)
            groups = self._calls.groups(token) if self._asks_for_groups else frozenset[str]()
            return rules.vouch(said, fit, groups, self._settings, at)
        except rules.NotUnderstood:
            raise ProviderUnavailable from None
