"""What the head of a hot request says, read once: clients send the same head again and again, with another length."""

from __future__ import annotations

from dataclasses import dataclass

from firstkit.engines.familiar import FamiliarHead, learn
from firstkit.errors import ApiError
from firstkit.gateway.apis import Api
from firstkit.gateway.call import Patience, patience
from firstkit.gateway.dialects import Dialect
from firstkit.gateway.paths import pin, place_of
from firstkit.gateway.request import RequestHead, api_key, expects_json, form_type
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
    form: str | None = None
    """The content-type of a body that is a form."""


def read_caller(head: RequestHead, api: Api, keeps_alive: bool, usual: Patience) -> Caller:
    """Never raises: a head without a key has an empty digest, and no key has that."""
    place = place_of(head.path)
    caller = Caller(
        api=api,
        dialect=place.dialect or api.dialect,
        key_digest="",
        patience=usual,
        keeps_alive=keeps_alive,
        knows_chunks=head.version != "1.0",
        awaits_go_on=bool(head.values(b"expect")),
    )
    try:
        caller.key_digest = digest(api_key(head))
        caller.form = form_type(head) if api.takes_forms else None
        if caller.form is None:
            expects_json(head)
        caller.patience = patience(head, usual)
        caller.pin = pin(head, place)
    except ApiError as refusal:
        caller.refusal = refusal
    return caller


def familiar(data: bytes, caller: Caller) -> FamiliarHead[Caller] | None:
    """What is to be remembered of ``data``, which was parsed as one whole request; None: nothing of this one."""
    if caller.refusal is not None or caller.awaits_go_on or not caller.key_digest:
        return None
    return learn(data, caller)
