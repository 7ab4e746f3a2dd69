"""What the body of a request asks for, and what it will need: from bytes to a call that is paid for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from firstkit.accounting.estimate import Means, estimate
from firstkit.auth.permissions import Identity
from firstkit.gateway.apis import Api
from firstkit.gateway.call import Body, Call, Owner, check_body, parse_body
from firstkit.gateway.callers import Caller
from firstkit.gateway.dialects import Older
from firstkit.gateway.forms import read_form
from firstkit.gateway.holding import Holding
from firstkit.gateway.lengths import length_of, limit_answer
from firstkit.gateway.request import Account
from firstkit.routing.admission import Claim
from firstkit.routing.affinity import SHORTEST, Prefixes
from firstkit.routing.wish import ANYWHERE, Wish, Within, rounded

if TYPE_CHECKING:
    from firstkit.gateway.state import Gateway

_new = tuple.__new__
"""Makes a NamedTuple in half the time."""


class Acceptance:
    """Takes requests of known callers, for one gateway."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._idle_timeout_s = gateway.config.server.idle_timeout
        self._timeout_s = gateway.config.server.total_timeout
        self._prefixes = Prefixes()
        self._defaults = {model: entry.default_max_tokens for model, entry in gateway.config.models.items()}
        self.means = Means(self._defaults)

    def accept(self, owner: Owner, request_id: str, caller: Caller, identity: Identity, body: bytes) -> Call:
        """The call that a body asks for; raises InvalidRequest, ModelNotFound, ClusterNotFound."""
        gateway, api = self._gateway, caller.api
        form, fields = (None, parse_body(body)) if caller.form is None else read_form(caller.form, body)
        asked = check_body(fields, api, body if form is None else None)
        most_tokens, choices = length_of(fields, api)
        model = gateway.canonical(asked.model, identity)
        within = gateway.reach.within(identity, model, api, caller.pin)
        is_plain = within is None and gateway.table.pools[model].is_plain
        return Call(
            api=api,
            model=model,
            body=fields,
            stream=asked.stream,
            wants_usage=asked.wants_usage,
            patience=caller.patience,
            account=Account(identity, model, api.endpoint, len(body), request_id),
            idle_timeout_s=self._idle_timeout_s,
            timeout_s=self._timeout_s,
            owner=owner,
            wish=ANYWHERE if is_plain else self._wish(identity, model, api, fields, within, most_tokens),
            most_tokens=most_tokens,
            choices=choices,
            wants_origin=asked.wants_origin,
            form=form,
            is_older=isinstance(caller.dialect, Older),
        )

    def charge(self, call: Call, holding: Holding, is_batch: bool) -> None:
        """Have ``holding`` take what a call may need, see to it that it does not use more where that must not be, and
        say for how much it waits. Raises as ``Holding.charge``."""
        model, account = call.model, call.account
        routes = self._gateway.table.pools[model].routes
        size_bytes, uploads = (account.prompt_bytes, 0) if call.form is None else _fields(call.body)
        needed = estimate(
            account.endpoint,
            call.body,
            size_bytes,
            call.most_tokens,
            call.choices,
            default=self._defaults[model],
            context=routes[0].context_length if routes else None,  # as of any of them, nearly always
            uploads=uploads,
        )
        most = holding.charge(account, needed, self._gateway.budgets, self.means)
        if most is not None and call.form is None:
            limit_answer(call.body, call.api, most // needed.choices)
        identity, expected = account.identity, self.means.expected(model, needed)
        call.claim = _new(Claim, (identity.project_id, identity.user_id, expected, is_batch))

    def sends_on(self, call: Call) -> bool:
        """Whether an engine is asked, and then on a cluster where each that is live can answer; else we answer."""
        if not call.api.by_estimate:
            return True
        live = self._gateway.table.pools[call.model].live(call.wish.within)
        unable = {route.cluster for route in live if call.api.capability not in route.capabilities}
        able = frozenset(route.cluster for route in live) - unable
        if unable:
            call.wish = call.wish._replace(within=able)
        return bool(able)

    def choose_again(self, call: Call) -> None:
        """Choose by all of a body that has grown."""
        if not self._gateway.table.pools[call.model].is_plain:
            identity, within = call.account.identity, call.wish.within
            call.wish = self._wish(identity, call.model, call.api, call.body, within, call.most_tokens)

    def _wish(
        self, identity: Identity, model: str, api: Api, fields: Body, within: Within, most_tokens: int | None
    ) -> Wish:
        """What there is to choose by, and no more: for most models nothing has to be read of a body."""
        pool = self._gateway.table.pools[model]
        tokens = most_tokens if pool.ending else None
        prompt = memoryview(fields[api.required] if api.required else b"")
        has_use = len(pool.routes) > 1 and len(prompt) >= SHORTEST
        prefixes = self._prefixes.of(identity.project_id, prompt) if has_use else ()
        if within is None and tokens is None and not prefixes:
            return ANYWHERE
        return Wish(within, None if tokens is None else rounded(tokens), prefixes)


def _fields(body: Body) -> tuple[int, int]:
    """Bytes of the texts in a form, and how many files came with them, of which the size says nothing."""
    fields = [memoryview(raw) for raw in body.values()]
    return sum([field.nbytes for field in fields]), sum([bytes(field[:4]) == b"null" for field in fields])
