"""What the body of a request asks for, and what it will need: from bytes to a call that is paid for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from firstkit.accounting.estimate import Estimate, Estimator, estimate, writes
from firstkit.auth.permissions import Identity
from firstkit.gateway.apis import RESPONSES_API, Api
from firstkit.gateway.call import LENGTHS, Body, Call, Owner, check_body, parse_body, read
from firstkit.gateway.callers import Caller
from firstkit.gateway.dialects import Older
from firstkit.gateway.forms import read_form
from firstkit.gateway.holding import Holding
from firstkit.gateway.request import Account
from firstkit.routing.admission import Claim
from firstkit.routing.affinity import SHORTEST, Prefixes
from firstkit.routing.wish import ANYWHERE, Wish, Within, rounded

if TYPE_CHECKING:
    from firstkit.gateway.state import Gateway


class Acceptance:
    """Takes requests of known callers, for one gateway."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._idle_timeout_s = gateway.config.server.idle_timeout
        self._timeout_s = gateway.config.server.total_timeout
        self._prefixes = Prefixes()
        self._estimator = Estimator({model: entry.default_max_tokens for model, entry in gateway.config.models.items()})

    def accept(self, owner: Owner, request_id: str, caller: Caller, identity: Identity, body: bytes) -> Call:
        """The call that a body asks for; raises InvalidRequest, ModelNotFound, ClusterNotFound."""
        gateway, api = self._gateway, caller.api
        form, fields = (None, parse_body(body)) if caller.form is None else read_form(caller.form, body)
        asked = check_body(fields, api, body if form is None else None)
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
            wish=ANYWHERE if is_plain else self._wish(identity, model, api, fields, within, asked.length.most),
            length=asked.length,
            wants_origin=asked.wants_origin,
            form=form,
            is_older=isinstance(caller.dialect, Older),
        )

    def charge(self, call: Call, holding: Holding, is_batch: bool) -> None:
        """Have ``holding`` take what a call may need, see to it that it does not use more where that must not be, and
        say for how much it waits. Raises as ``Holding.charge``."""
        needed, identity = self._needed(call), call.account.identity
        most = holding.charge(call.account, needed, self._estimator, self._gateway.budgets)
        if most is not None and call.form is None:
            limit_answer(call.body, call.api, most // needed.choices)
        expected = self._estimator.expected(call.model, needed)
        call.claim = Claim(identity.project_id, identity.user_id, expected, is_batch)

    def _needed(self, call: Call) -> Estimate:
        model, account = call.model, call.account
        routes, default = self._gateway.table.pools[model].routes, self._estimator.defaults[model]
        context = routes[0].context_length if routes else None  # as of any of them, nearly always
        if call.form is None:
            return estimate(account.endpoint, call.body, account.prompt_bytes, call.length, default, context)
        fields = [memoryview(raw) for raw in call.body.values()]  # of an upload the size says nothing
        uploads = sum([bytes(field[:4]) == b"null" for field in fields])
        size_bytes = sum([field.nbytes for field in fields])
        return estimate(account.endpoint, call.body, size_bytes, call.length, default, context, uploads)

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
            wish, identity, most = call.wish, call.account.identity, call.length.most
            call.wish = self._wish(identity, call.model, call.api, call.body, wish.within, most)

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


def limit_answer(body: Body, api: Api, most: int) -> None:
    """See to it that each choice of an answer is of ``most`` tokens at most: by a field that every engine knows, where
    the body has none of its own."""
    named = [field for field in LENGTHS if read(body, field, int, 0)]
    if not named and writes(api.endpoint):
        body["max_output_tokens" if api is RESPONSES_API else "max_tokens"] = msgspec.Raw(b"%d" % most)
    for field in named:
        if read(body, field, int, 0) > most:
            body[field] = msgspec.Raw(b"%d" % most)
