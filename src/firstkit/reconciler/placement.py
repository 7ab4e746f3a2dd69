"""On which clusters replicas go: by demand, and by where they would serve soonest. For jobs there see ``packing``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import inf

from firstkit.reconciler.autoscale import Need, Policy
from firstkit.soonest import soonest, start_s, usual_load_s

OVERTAKEN_FACTOR = 2.0
OVERTAKEN_S = 60.0
"""A replica that waits in a queue is overtaken by another cluster where one would serve so much sooner."""


@dataclass(frozen=True, slots=True)
class Queued:
    """A replica whose job waits. ``left_s``: until it will serve; ``is_late``: it waits longer than was forecast."""

    left_s: float
    waited_s: float = 0.0
    is_late: bool = False


@dataclass(frozen=True, slots=True)
class Place:
    """One deployment of a model, as it stands."""

    name: str
    cluster: str
    policy: Policy
    ready: int = 0
    loading: int = 0
    queued: tuple[Queued, ...] = ()
    """Replicas that live on: in this order they are counted."""
    leaving: int = 0
    """Replicas that serve but will be gone soon: with their job, or because their cluster is left."""
    kept: int = 0
    """So many stay although nobody knows for whom."""
    new: int = 1_000_000
    """So many more may be started within the limits, and no more because of ``limit``."""
    limit: str = ""
    obstacle: str = ""
    """Why nothing new is started for the sake of demand."""
    is_closing: bool = False
    """Its cluster is being left: hot replicas that end there are started elsewhere."""
    wait_s: float = 0.0
    """How long until a replica that is started now would begin to load, as far as anybody can say."""
    load_s: float | None = None
    """How long it would load then; None: none ever did, and it is taken to be as elsewhere."""
    served: int = 0
    """Requests at a time that a service of others takes."""
    warm_s: float = 0.0
    """How long a replica that is started now may take until it serves, nine times of ten."""
    successor_s: float = 0.0
    """The same for a successor of one here, wherever it is started."""
    availability: float = 1.0
    """The share of the last day in which its scheduler answered."""

    @property
    def running(self) -> int:
        return self.ready + self.loading

    @property
    def alive(self) -> int:
        return self.running + len(self.queued)


@dataclass(frozen=True, slots=True)
class Share:
    """What one deployment should have. ``stand_in``: so many of those that are leaving serve on until others do."""

    wanted: int = 0
    stand_in: int = 0
    why: tuple[str, ...] = ()
    waits_for: tuple[str, ...] = ()
    is_considered: bool = False
    """Whether a start was weighed here: then it is worth asking the scheduler when it would be."""


def allocate(places: Sequence[Place], needs: Iterable[Need]) -> dict[str, Share]:
    """By name, the share of each deployment of one model; ``places`` in the order of the file, which breaks ties.

    Hot replicas stand where they are configured. Needs that may go to few clusters come first, within those; what may
    go anywhere uses the room that is left. Each is given to what runs, then to what waits in a queue unless another
    cluster is much sooner, then to new replicas where they would serve soonest.
    """
    usual_s = usual_load_s(place.load_s for place in places)
    tallies = [
        _Tally(place, start_s(place.wait_s, usual_s if place.load_s is None else place.load_s, place.availability))
        for place in places
    ]
    for tally in tallies:
        tally.count_own()
    _move_hot(tallies)
    for need in sorted(needs, key=_narrowest_first):
        _allot(need, [tally for tally in tallies if need.admits(tally.place.cluster)])
    _keep_stand_ins(tallies)
    return {tally.place.name: tally.share() for tally in tallies}


def warm_elsewhere(cluster: str, places: Iterable[Place | None]) -> float | None:
    """How long a start may take on the cluster where it would take least, of those but ``cluster`` on which demand may
    start one; None where there is none. ``places``: of one model; None: nobody has looked."""
    others = (place for place in places if place is not None and place.cluster != cluster)
    return min((place.warm_s for place in others if not place.obstacle), default=None)


def _narrowest_first(need: Need) -> tuple[bool, int, list[str]]:
    return (need.clusters is None, len(need.clusters or ()), sorted(need.clusters or ()))


@dataclass(slots=True)
class _Tally:
    """What a place was given so far."""

    place: Place
    start_s: float
    """How long until a replica that is started now would serve."""
    count: int = 0
    aside: int = 0
    """Queued replicas that are overtaken: kept until those that serve sooner run, but not counted on."""
    room: int = 0
    new: int = 0
    unmet: int = 0
    stand_in: int = 0
    spare: int = 0
    """Replicas that serve and are not counted on: kept while others that are do not serve yet."""
    why: list[str] = field(default_factory=list)
    is_considered: bool = False

    def count_own(self) -> None:
        """What it has without any demand."""
        place, policy = self.place, self.place.policy
        self.room = place.served
        self.new = place.new
        hot = min(policy.hot, place.alive) if place.is_closing else policy.hot
        self.add(hot)
        if hot:
            self.why.append(f"{hot} hot")
        if (kept := min(place.kept, place.alive)) > hot:
            self.add(kept - hot)
            self.why.append(f"{kept} ran when the controller started")

    def add(self, count: int) -> None:
        before = max(self.count, self.place.alive)
        self.count += count
        self.room += count * self.place.policy.max_in_flight
        self.new -= max(0, self.count - before)

    def serve(self, requests: int) -> int:
        """Take requests into room that is there already; how many."""
        taken = min(max(0, requests), self.room)
        self.room -= taken
        return taken

    def grow(self, requests: int, most: int) -> int:
        """Count on further replicas, to ``most`` in all, for so many requests; how many of those they take."""
        count = min(-(-requests // self.place.policy.max_in_flight), most - self.count)
        if requests <= 0 or count <= 0:
            return 0
        self.add(count)
        return self.serve(requests)

    @property
    def next_queued(self) -> Queued | None:
        at = max(0, self.count - self.place.running) + self.aside
        return self.place.queued[at] if self.count >= self.place.running and at < len(self.place.queued) else None

    @property
    def startable(self) -> int:
        """How many new replicas demand may still have here."""
        if self.place.obstacle or self.aside or self.next_queued is not None:
            return 0
        return max(0, min(self.new, self.place.policy.most - self.count - self.aside))

    def share(self) -> Share:
        if self.aside:
            self.why.append(f"{self.aside} keep their place in the queue until others serve")
        if going := self.stand_in + self.spare:
            self.why.append(f"{going} that will end go on until others serve")
        return Share(
            self.count + self.aside + self.spare, self.stand_in, tuple(self.why), self._waits_for(), self.is_considered
        )

    def _waits_for(self) -> tuple[str, ...]:
        place = self.place
        found = [place.obstacle] if place.obstacle else []
        if self.unmet and not place.obstacle:
            if self.count + self.aside >= place.policy.most:
                found.append(f"at most {place.policy.most} replicas may run here")
            elif place.limit and self.new <= 0:
                found.append(place.limit)
        return tuple(found)


def _move_hot(tallies: list[_Tally]) -> None:
    """Start elsewhere what is no longer kept hot on clusters that are being left, beyond what is hot there anyway."""
    lost = sum(max(0, tally.place.policy.hot - tally.count) for tally in tallies if tally.place.is_closing)
    there = sum(tally.place.policy.hot for tally in tallies if not tally.place.is_closing)
    for _ in range(lost - there):
        _, tally = min(
            ((_start_s(tally), tally) for tally in tallies if _start_s(tally) < inf),
            key=lambda pair: pair[0],
            default=(inf, None),
        )
        if tally is None:
            return
        tally.add(1)
        tally.why.append("1 hot, in place of one on a cluster that is being left")


def _start_s(tally: _Tally) -> float:
    """How soon one more replica would serve here; inf: never."""
    if tally.place.is_closing or tally.place.served:
        return inf
    if tally.count < tally.place.running:
        return -1.0
    queued = tally.next_queued
    if queued is not None:
        return queued.left_s
    return tally.start_s if tally.startable else inf


def _allot(need: Need, tallies: list[_Tally]) -> None:
    """Give what is needed to those places."""
    given = 0
    counts = [tally.count for tally in tallies]
    for tally in tallies:
        given += tally.serve(need.by(tally.place.policy) - given)
    for tally in tallies:
        given += tally.grow(need.by(tally.place.policy) - given, tally.place.ready)
    for tally in tallies:
        given += tally.grow(need.by(tally.place.policy) - given, tally.place.running)
    given = _count_on_queued(need, tallies, given)
    given = _start_new(need, tallies, given)
    for tally, before in zip(tallies, counts, strict=True):
        tally.unmet += max(0, need.by(tally.place.policy) - given)
        if tally.count > before:
            tally.why.append(_sentence(need))


def _count_on_queued(need: Need, tallies: list[_Tally], given: int) -> int:
    """Give to what waits in queues, the longest first; those that are overtaken are put aside."""
    while True:
        waiting = [
            (queued.waited_s, -i, tally, queued)
            for i, tally in enumerate(tallies)
            if need.by(tally.place.policy) > given and (queued := tally.next_queued) is not None
        ]
        if not waiting:
            return given
        _, _, tally, queued = max(waiting, key=lambda entry: entry[:2])
        if _is_overtaken(queued, tally, tallies):
            tally.aside += 1
        else:
            given += tally.grow(need.by(tally.place.policy) - given, tally.count + 1)


def _is_overtaken(queued: Queued, by_whom: _Tally, tallies: list[_Tally]) -> bool:
    """Whether one that waits longer than was forecast would be served much sooner on another cluster."""
    if not queued.is_late:
        return False
    others = [tally for tally in tallies if tally is not by_whom and not tally.place.is_closing]
    starts_s = [other.start_s for other in others if other.startable]
    queues_s = [other.left_s for tally in others for other in tally.place.queued]
    soonest_s = min([*starts_s, *queues_s], default=inf)
    return queued.left_s > OVERTAKEN_FACTOR * soonest_s + OVERTAKEN_S


def _start_new(need: Need, tallies: list[_Tally], given: int) -> int:
    """Give to new replicas, where they would serve soonest."""
    while True:
        open_for_it = [tally for tally in tallies if need.by(tally.place.policy) > given and tally.startable]
        if not open_for_it:
            return given
        for tally in open_for_it:
            tally.is_considered = True
        best = open_for_it[soonest([tally.start_s for tally in open_for_it])]
        given += best.grow(need.by(best.place.policy) - given, best.count + best.startable)


def _keep_stand_ins(tallies: list[_Tally]) -> None:
    """Let those that will end serve on while others that were counted on do not yet."""
    lacking = 0
    for tally in tallies:
        place, each = tally.place, tally.place.policy.max_in_flight
        not_ready = max(0, tally.count - place.ready)
        tally.stand_in = min(place.leaving, not_ready)
        lacking += (not_ready - tally.stand_in) * each
        if not place.is_closing:
            lacking += min(tally.unmet, place.leaving * each)
    for tally in tallies:
        each = tally.place.policy.max_in_flight
        more = min(tally.place.leaving - tally.stand_in, -(-lacking // each))
        if more > 0:
            tally.stand_in += more
            lacking -= more * each
    for tally in tallies:
        each = tally.place.policy.max_in_flight
        if (spare := min(tally.place.ready - tally.count, -(-lacking // each))) > 0:
            tally.spare = spare
            lacking -= spare * each


def _sentence(need: Need) -> str:
    requests = need.waiting + need.in_flight
    words = f"demand: {requests} requests, {need.waiting} wait" if requests else "demand a while ago"
    return words if need.clusters is None else f"{words} (for {', '.join(sorted(need.clusters))} only)"
