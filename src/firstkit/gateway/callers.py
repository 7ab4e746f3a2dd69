"""What the head of a hot request says, read once: clients send the same head again and again, with another length."""

from __future__ import annotations

from dataclasses import dataclass, field

from firstkit.auth.permissions import Identity
from firstkit.engines.familiar import FamiliarHead, learn
from firstkit.errors import ApiError, InvalidRequest
from firstkit.gateway.apis import Api
from firstkit.gateway.call import Patience, patience
from firstkit.gateway.dialects import Dialect
from firstkit.gateway.doors import project_of, token_of
from firstkit.gateway.paths import pin, place_of
from firstkit.gateway.request import RequestHead, expects_json, form_type
from firstkit.ids import digest


@dataclass(slots=True)
class Caller:
    """A head that passed the guard, taken apart.

    ``refusal``: what is wrong with it, for those who may come in.
    """

    api: Api
    dialect: Dialect
    key_digest: str
    patience: Patience
    keeps_alive: bool
    knows_chunks: bool
    awaits_go_on: bool
    refusal: ApiError | None = None
    pin: str | None = None
    """The cluster that is asked for."""
    project: str | None = None
    """The project that it shall be charged to, where it names one."""
    form: str | None = None
    """The content-type of a body that is a form."""
    is_batch: bool = False
    """Nobody sits and waits for the answer."""
    path: str = ""
    forwarded: tuple[bytes, ...] = ()
    """What proxies say of where it comes from."""
    _charged: tuple[Identity, Identity] | None = field(default=None, compare=False, repr=False)

    def charged(self, identity: Identity) -> Identity:
        """``identity``, charged to the project that the head names, if it does; raises ProjectNotFound."""
        if self.project is None:
            return identity
        if self._charged is None or self._charged[0] is not identity:
            self._charged = identity, identity.charged_to(self.project)
        return self._charged[1]


def read_caller(
    head: RequestHead, api: Api, keeps_alive: bool, usual: Patience, public_url: str | None = None
) -> Caller:
    """``public_url``: where browsers find this service.

    Never raises: a head without a key has an empty digest, and no key has that."""
    place = place_of(head.path)
    caller = Caller(
        api=api,
        dialect=place.dialect or api.dialect,
        key_digest="",
        patience=usual,
        keeps_alive=keeps_alive,
        knows_chunks=head.version != "1.0",
        awaits_go_on=bool(head.values(b"expect")),
        path=head.path,
        forwarded=tuple(head.values(b"x-forwarded-for")),
    )
    try:
        caller.key_digest = digest(token_of(head, public_url))
        caller.form = form_type(head) if api.takes_forms else None
        if caller.form is None:
            expects_json(head)
        caller.patience = patience(head, usual)
        caller.project = project_of(head)
        caller.is_batch = _is_batch(head)
        caller.pin = pin(head, place)
    except ApiError as refusal:
        caller.refusal = refusal
    return caller


def _is_batch(head: RequestHead) -> bool:
    priority = head.get(b"x-first-priority")
    if priority not in (None, "interactive", "batch"):
        raise InvalidRequest(
            "The header 'x-first-priority' must be 'interactive' or 'batch'.", param="x-first-priority"
        )
    return priority == "batch"


def familiar(data: bytes, caller: Caller) -> FamiliarHead[Caller] | None:
    """What is to be remembered of ``data``, which was parsed as one whole request; None: nothing of this one."""
    if caller.refusal is not None or caller.awaits_go_on or not caller.key_digest:
        return None
    return learn(data, caller)
