"""How far keys may go that people make for themselves: never further than they themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from sqlalchemy import func, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from firstkit.auth.permissions import Identity
from firstkit.errors import Forbidden, InvalidRequest, ModelNotFound
from firstkit.store.tables import api_keys, users

if TYPE_CHECKING:
    from firstkit.config.auth import PersonalKeys


class LoginNeeded(Forbidden):
    """Log in first: only people who have done so lately make keys of their own."""

    code = "login_needed"


class TooManyKeys(InvalidRequest):
    """You have as many keys as anybody may have: revoke one that is not needed any more."""

    code = "too_many_keys"


@dataclass(frozen=True, slots=True)
class Personal:
    """Whoever makes a key for themselves, as they are at this moment, and the bounds of the configuration."""

    maker: Identity
    bounds: PersonalKeys

    def check_lifetime(self, expires_in_s: float | None) -> None:
        """Raise InvalidRequest unless a key ends soon enough."""
        most_s = self.bounds.max_lifetime
        if expires_in_s is None or expires_in_s > most_s:
            days = f"{most_s / 86400:.1f}".removesuffix(".0")
            raise InvalidRequest(
                f"expires_in_s: a key of your own must expire, after {most_s:.0f} seconds ({days} days) at most.",
                param="expires_in_s",
            )

    def project_ids(self, names: Sequence[str]) -> list[str]:
        """The ids of one's projects of these names; raises ProjectNotFound."""
        return [self.maker.charged_to(name).project_id for name in names]

    def models(self, wanted: Sequence[str] | None) -> tuple[str, ...] | None:
        """The models of a new key, by canonical names; raises ModelNotFound where the key that makes it is not for
        one. Whether there is such a model, and its own rules, whoever calls has asked."""
        own = self.maker.models
        if own is None:
            return None if wanted is None else tuple(wanted)
        if excess := set(wanted or ()) - own:
            raise ModelNotFound(f"The model '{min(excess)[:200]}' does not exist or you do not have access to it.")
        return tuple(sorted(own) if wanted is None else wanted)

    async def admit(self, conn: AsyncConnection, at: datetime, expires_at: datetime | None) -> None:
        """Raise LoginNeeded, TooManyKeys or InvalidRequest unless the maker may have another key. Holds their row, so
        that nobody counts the same keys at the same time."""
        user = (await conn.execute(select(users).where(users.c.id == self.maker.user_id).with_for_update())).first()
        if user is None or user.disabled_at is not None or not self._is_seen(user.seen_at, at):
            raise LoginNeeded
        if (await conn.scalar(_living(self.maker.user_id, at)) or 0) >= self.bounds.most:
            raise TooManyKeys(f"You have {self.bounds.most} keys, as many as anybody may have: revoke one of them.")
        longest = await conn.scalar(select(api_keys.c.expires_at).where(api_keys.c.prefix == self.maker.key_prefix))
        if longest is not None and expires_at is not None and expires_at > longest:
            left_s = max(0.0, (longest - at).total_seconds())
            raise InvalidRequest(
                f"expires_in_s: a key makes none that outlives it: at most {left_s:.0f} seconds.", param="expires_in_s"
            )

    def _is_seen(self, seen_at: datetime | None, at: datetime) -> bool:
        return seen_at is not None and at - seen_at < timedelta(seconds=self.bounds.login_within)


def _living(user_id: str, at: datetime) -> Any:
    """How many personal keys of a user are good."""
    is_good = or_(api_keys.c.expires_at.is_(None), api_keys.c.expires_at > at)
    is_theirs = (api_keys.c.user_id == user_id) & api_keys.c.is_personal
    return select(func.count()).select_from(api_keys).where(is_theirs, api_keys.c.revoked_at.is_(None), is_good)
