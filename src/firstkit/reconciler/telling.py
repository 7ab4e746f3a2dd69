"""What the gateway is told of models and clusters: what is wanted and why, what it waits for, how long that takes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from firstkit.config import ResolvedDeployment
from firstkit.reconciler.forecast import Outlook, best
from firstkit.reconciler.loop import ClusterLoop
from firstkit.reconciler.placement import Share
from firstkit.reconciler.seasons import availability
from firstkit.reconciler.starts import start_of
from firstkit.states import ModelStatus
from firstkit.wire import to_dict

TELL_S = 0.1
"""What several clusters have to say within so short a time is told in one message."""
NEWS_S = 2.0
NEWS_SHARE = 0.1
"""A forecast that moved by less, beside the time that passed, is no news."""
NOBODY = "nobody asks for it"
_FALLING = ("eta_s", "start_in_s")
"""Seconds that pass by themselves, and those that count from when somebody asks."""
_STANDING = ("wait_s", "late_wait_s", "load_s", "late_load_s")


class Teller:
    """Tells what has changed since it was told last. ``send`` hands a message to the gateway."""

    def __init__(
        self,
        models: Mapping[str, Sequence[ResolvedDeployment]],
        loops: Mapping[str, ClusterLoop],
        send: Callable[[dict[str, Any]], None],
        clock: Callable[[], float],
    ) -> None:
        self._models = models
        self._loops = loops
        self._send = send
        self._clock = clock
        self._told: dict[str, tuple[float, dict[str, Any]]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def soon(self) -> None:
        """Tell what is new, in a moment."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(TELL_S, self._tell)

    def everything(self) -> None:
        """Tell a gateway that knows nothing."""
        self._told.clear()
        self.soon()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _tell(self) -> None:
        self._timer = None
        at, models = self._clock(), {}
        for model in self._models:
            said = self.model(model)
            told = self._told.get(model)
            if told is None or is_news(told[1], said, at - told[0]):
                models[model] = said
                self._told[model] = (at, said)
        clusters = {name: cluster(loop) for name, loop in self._loops.items()}
        self._send({"kind": "forecast", "models": models, "clusters": clusters})

    def model(self, model: str) -> dict[str, Any]:
        """What is to be expected of a model, on each cluster and in all."""
        outlooks, errors, clusters = [], list[float](), {}
        for deployment in self._models[model]:
            loop = self._loops.get(deployment.cluster)
            if loop is None:
                outlook, share, states, more = Outlook(ModelStatus.LIVE, 0.0), Share(), {}, ""
                new = None
            else:
                name = deployment.name
                outlook, share = loop.outlooks.get(name, Outlook()), loop.shares.get(name, Share())
                states = {state.value: count for state, count in loop.states.get(name, {}).items()}
                more, new = loop.waits_for.get(name, ""), start(loop, deployment)
                error_s = loop.books.known(name).error_s
                errors += [] if error_s is None else [error_s]
            outlooks.append(outlook)
            clusters[deployment.cluster] = {
                **_said(outlook),
                "position": outlook.position,
                "start_in_s": outlook.start_in_s,
                "wanted": share.wanted,
                "why": list(share.why),
                "waits_for": _waits_for(outlook, share, more),
                "replicas": states,
                "late_s": outlook.late_s,
                "new": new,
            }
        return {**_said(best(outlooks)), "clusters": clusters, "forecast_error_s": max(errors, default=None)}


def start(loop: ClusterLoop, deployment: ResolvedDeployment) -> dict[str, Any] | None:
    """What a replica would take that is started now; None before anybody looked. ``obstacle``: why none is."""
    name = deployment.name
    place, known, handicap_s = loop.places.get(name), loop.books.known(name), loop.section.handicap
    if place is None:
        return None
    found = start_of(
        known,
        loop.hands.start_s(deployment.resources),
        max(0.0, place.wait_s - handicap_s),
        deployment.resources.walltime_s,
        loop.section.maintenance,
        loop.now(),
    )
    return {
        "wait_s": found.wait_s,
        "late_wait_s": found.late_wait_s,
        "load_s": found.load_s,
        "late_load_s": found.late_load_s,
        "by": found.by.value,
        "after": None if found.after is None else _iso(found.after.end),
        "obstacle": place.obstacle or (place.limit if place.new <= 0 else ""),
        "handicap_s": handicap_s,
    }


def cluster(loop: ClusterLoop) -> dict[str, Any]:
    """What there is to say of a cluster."""
    hands, window, at = loop.hands, loop.site.window, loop.now()
    silent_s = hands.rhythm.silent_s
    drained = loop.books.drained.get(loop.name)
    waits = loop.books.waits
    if silent_s is None:
        state, reason = "unknown" if hands.capacity is None and hands.asked_at is None else "answering", ""
    else:
        state, reason = "silent", hands.trouble
    return {
        "scheduler": state,
        "reason": reason,
        "asked_at": None if hands.asked_at is None else hands.asked_at.isoformat(),
        "capacity": None if hands.capacity is None else to_dict(hands.capacity),
        "drained": drained is not None,
        "message": "" if drained is None else drained.message,
        "maintenance": None
        if window is None
        else {"start": _iso(window.start), "end": _iso(window.end), "message": window.message},
        "spent": {
            "nodes": loop.budget.cluster.nodes,
            "node_hours_today": round(loop.budget.cluster.used_h, 3),
        },
        "wait_s": waits.usual_wait_s if waits.waits else None,
        "late_wait_s": waits.late_wait_s,
        "wait_error_s": waits.wait_error_s,
        "wait_coverage": waits.wait_coverage,
        "waits": len(waits.waits),
        "availability": {
            "day": availability(loop.books.polls, at - timedelta(days=1)),
            "week": availability(loop.books.polls, at - timedelta(days=7)),
        },
    }


def is_news(before: dict[str, Any], after: dict[str, Any], passed_s: float) -> bool:
    """Whether a forecast says anything that the earlier one, ``passed_s`` ago, does not say by now."""
    parts = [(before, after)]
    if before["clusters"].keys() != after["clusters"].keys():
        return True
    parts += [(before["clusters"][name], part) for name, part in after["clusters"].items()]
    return any(_words(old) != _words(new) or _have_moved(old, new, passed_s) for old, new in parts)


def _words(said: dict[str, Any]) -> dict[str, Any]:
    words = {key: value for key, value in said.items() if key not in (*_FALLING, "late_s", "clusters", "new")}
    new = said.get("new") or {}
    return {**words, "new": {key: value for key, value in new.items() if key not in _STANDING}}


def _have_moved(old: dict[str, Any], new: dict[str, Any], passed_s: float) -> bool:
    if new["status"] == ModelStatus.OFFLINE.value:
        passed_s = 0.0  # counts from when somebody asks
    if any(_has_moved(old.get(key), new.get(key), passed_s) for key in _FALLING):
        return True
    was, is_now = old.get("new") or {}, new.get("new") or {}
    return any(_has_moved(was.get(key), is_now.get(key), 0.0) for key in _STANDING)


def _has_moved(was: float | None, is_now: float | None, passed_s: float) -> bool:
    if was is None or is_now is None:
        return was is not is_now
    return abs(max(0.0, was - passed_s) - is_now) > max(NEWS_S, NEWS_SHARE * is_now)


def _said(outlook: Outlook) -> dict[str, Any]:
    return {"status": outlook.status.value, "eta_s": outlook.eta_s, "reason": outlook.reason}


def _waits_for(outlook: Outlook, share: Share, more: str) -> list[str]:
    if outlook.status is ModelStatus.LIVE:
        return []
    found = [*([outlook.waits_for] if outlook.waits_for else []), *share.waits_for, *([more] if more else [])]
    if not found and not share.wanted:
        return [NOBODY]
    return list(dict.fromkeys(found))


def _iso(moment: datetime) -> str:
    return moment.isoformat()
