"""A request for every route, by whoever, for what is theirs or a stranger's: on a connection, with real bytes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from itertools import count
from typing import Any

from firstkit.gateway.app import build_app
from firstkit.gateway.identity import Identify, local_admin
from firstkit.gateway.state import Gateway
from firstkit.ids import new_secret
from firstkit.store.budgets import NewBudget, set_budget
from unit.gateway.residents import (
    CLUSTERS,
    MODELS,
    OURS,
    PASSER_BY,
    PROJECTS,
    STRANGER,
    Resident,
    add_key,
    add_member,
    keep_response,
    request_id,
    response_id,
)
from unit.gateway.support import Answer, Port
from waiting import until

Body = dict[str, Any]
SAID = {"messages": [{"role": "user", "content": "hi"}], "input": "hi", "prompt": "hi", "query": "hi"}
_NUMBERS = count()
BODIES: dict[str, Callable[[str, str], Body]] = {
    "POST /v1/me": lambda _, project: {"default_project": project},
    "POST /v1/keys": lambda _, project: {"name": _new("key"), "project": project, "scopes": ["account"]},
    "POST /v1/projects/{name}/members": lambda *_: {"user": PASSER_BY},
    "POST /admin/keys": lambda user, project: {"name": _new("key"), "user": user, "project": project},
    "POST /admin/users/grant": lambda user, _: {"user": user, "role": "auditor"},
    "POST /admin/users/ungrant": lambda user, _: {"user": user, "role": "operator"},
    "POST /admin/users/disable": lambda user, _: {"user": user},
    "POST /admin/users/enable": lambda user, _: {"user": user},
    "POST /admin/projects": lambda *_: {"name": _new("project")},
    "POST /admin/budgets": lambda _, project: {"project": project, "tokens": 5000},
    "POST /admin/clusters/{cluster}/drain": lambda *_: {"message": "works"},
}
"""What makes a request good, by the name of whose object it is and of their project."""

QUERIES = {"GET /v1/usage": "project={}"}


class Asking:
    """Asks one gateway, by its public port and its admin socket."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        app = build_app(gateway)
        self.public = Port(gateway, app=Identify(app, gateway.identify, denied=gateway.denied))
        self.socket = Port(gateway, app=Identify(app, local_admin, denied=gateway.denied), is_admin=True)

    async def ask(self, route: str, who: Resident, whose: str = OURS, *lines: str, **more: Any) -> Answer:
        """``lines``: headers beside the token; ``more`` as of ``come``."""
        return await self.come(route, who, whose, *_door(who), *lines, **more)

    async def come(
        self, route: str, who: Resident, whose: str, *lines: str, body: Body | None = None, query: str = ""
    ) -> Answer:
        """The same with the token in ``lines``, or nowhere. ``body``: fields beside those of a good one."""
        method, _, template = route.partition(" ")
        path = filled(template, who, whose)
        content: Body | None = None
        if method == "DELETE":
            async with self.gateway.db.begin() as conn:
                await keep_response(conn, _owner(who, whose))
        elif method != "GET":
            content = {**await self._body(route, path, who, whose), **(body or {})}
        path += _joined(query, QUERIES.get(route, "").format(PROJECTS[whose]))
        return await self.send(method, path, content, *lines, by_socket=who.is_local)

    async def get(self, path: str, who: Resident, *lines: str) -> Answer:
        return await self.send("GET", path, None, *_door(who), *lines, by_socket=who.is_local)

    async def post(self, path: str, who: Resident, body: Any, *lines: str) -> Answer:
        return await self.send("POST", path, body, *_door(who), *lines, by_socket=who.is_local)

    async def send(self, method: str, path: str, body: Any, *lines: str, by_socket: bool = False) -> Answer:
        """One request on a connection of its own, and its whole answer."""
        head, content = [f"{method} {path} HTTP/1.1", "host: localhost", *lines], b""
        if body is not None:
            content = json.dumps(body).encode()
            head += ["content-type: application/json", f"content-length: {len(content)}"]
        visit = (self.socket if by_socket else self.public).connect()
        visit.say("".join(f"{line}\r\n" for line in [*head, ""]).encode() + content)
        await until(lambda: any(answer.is_whole for answer in visit.answers) or not visit.is_open, path)
        [answer] = visit.answers
        return answer

    async def _body(self, route: str, path: str, who: Resident, whose: str) -> Body:
        """What makes the request a good one; where it ends something, that is made first."""
        api = self.public.hot.api("POST", path)
        if api is not None:
            return {"model": MODELS[whose], **({api.required: SAID[api.required]} if api.required else {})}
        if route.endswith("/keys/revoke"):
            return {"name_or_prefix": await self._new_key(_owner(who, whose))}
        if route.endswith("/members/remove"):
            async with self.gateway.db.begin() as conn:
                await add_member(conn, PASSER_BY, PROJECTS[whose])
            return {"user": PASSER_BY}
        if route.endswith("/budgets/remove"):
            budget = NewBudget(PROJECTS[whose], None, None, None, 5000, None, "month", "hard", 0.8)
            return {"id": (await set_budget(self.gateway.db, budget, actor="test")).id}
        return BODIES[route](_owner(who, whose), PROJECTS[whose]) if route in BODIES else {}

    async def _new_key(self, user: str) -> str:
        token = f"first-{new_secret()[:12]}-{new_secret()}"
        if user:
            async with self.gateway.db.begin() as conn:
                await add_key(conn, _new("key"), user, token=token, scopes=("inference",))
        return token[:18]


def filled(template: str, who: Resident, whose: str) -> str:
    """A path to what is somebody's."""
    user = _owner(who, whose)
    places = {
        "cluster": CLUSTERS[whose],
        "framework": "vllm",
        "model_id": MODELS[whose],
        "model": MODELS[whose],
        "request_id": request_id(user),
        "response_id": response_id(user),
        "name": PROJECTS[whose] if "/projects/" in template else "ocr" if "/tasks/" in template else "favicon.png",
    }
    return re.sub(r"{(\w+)}", lambda found: places.get(found[1], "some"), template)


def _door(who: Resident) -> tuple[str, ...]:
    return () if who.token is None else (f"authorization: Bearer {who.token}",)


def _owner(who: Resident, whose: str) -> str:
    return who.user if whose == OURS else STRANGER


def _joined(*queries: str) -> str:
    said = "&".join(query for query in queries if query)
    return f"?{said}" if said else ""


def _new(what: str) -> str:
    return f"{what} {next(_NUMBERS)}"
