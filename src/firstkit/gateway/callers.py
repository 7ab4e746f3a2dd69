"""What the head of a hot request says, read once: clients send the same head again and again, with another length."""

from __future__ import annotations

from dataclasses import dataclass

from firstkit.engines.familiar import FamiliarHead, learn
from firstkit.errors import ApiError
from firstkit.gateway.call import Api, Patience, patience, pin
from firstkit.gateway.request import RequestHead, api_key, expects_json
from firstkit.ids import digest


@dataclass(slots=True)
class Caller:
    """A head that passed the guard, taken apart.

    ``refusal``: what is wrong with it, for those who may come in.
    """

    api: Api
    key_digest: str
    patience: Patience
    keeps_alive: bool
    knows_chunks: bool
    awaits_go_on: bool
    refusal: ApiError | None = None
    pin: str | None = None
    """The cluster that is asked for."""


def read_caller(head: RequestHead, api: Api, keeps_alive: bool, usual: Patience) -> Caller:
    """Never raises: a head without a key has an empty digest, and no key has that."""
    caller = Caller(
        api=api,
        key_digest="",
        patience=usual,
        keeps_alive=keeps_alive,
        knows_chunks=head.version != "1.0",
        awaits_go_on=bool(head.values(b"expect")),
    )
    try:
        caller.key_digest = digest(api_key(head))
        expects_json(head)
        caller.patience = patience(head, usual)
        caller.pin = pin(head)
    except ApiError as refusal:
        caller.refusal = refusal
    return caller


def familiar(data: bytes, caller: Caller) -> FamiliarHead[Caller] | None:
    """What is to be remembered of ``data``, which was parsed as one whole request; None: nothing of this one."""
    if caller.refusal is not None or caller.awaits_go_on or not caller.key_digest:
        return None
    return learn(data, caller)
