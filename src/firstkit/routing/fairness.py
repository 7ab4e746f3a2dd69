"""Whose turn it is among those who share something: start-time fair queueing in tokens, by weight.

Everybody has a tag: the tokens of what has ended, and those that are expected of what is under way, divided by the
weight. Whoever has the lowest tag is next. Who comes anew begins where the others are, so that nobody saves up by being
away, and nobody is shut out by one who comes later. The weight is a share, times a factor that falls with what was used
of late.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable
from heapq import heapify, heappop, heappush, heapreplace
from math import exp2
from typing import Any

Kind = tuple[bool, Hashable]
"""Of what somebody waits for: whether it is for a batch, and what may serve it."""
LEAST_FACTOR = 1 / 8
"""However much somebody has used, their weight is not less than this part of their share."""
LEAD_STEPS = 64
"""Who is ahead of those who wait for the same, by what they got elsewhere, is let in again after so many of the largest
requests of each."""
FADE = 0.999
"""By which the largest request is forgotten with each one."""
FIRST_STEP = 1000.0
"""What counts as the largest request, in tokens by weight, before there was any."""
FEW = 64
"""So many are remembered in any case."""


class Party:
    """One of those who share. ``settled`` is in tokens by weight, since the ``period`` began; the others are in tokens.
    ``use`` fades; see ``Sharing.end``. ``members``: of a project, those who share what it gets; users have none."""

    __slots__ = ("id", "in_flight", "members", "outstanding", "period", "places", "settled", "share", "use", "weight")
    members: Sharing

    def __init__(self, id_: str, share: float) -> None:
        self.id = id_
        self.share = self.weight = share
        self.settled = 0.0
        self.period = 0
        self.outstanding = 0.0
        self.in_flight = 0
        self.use = 0.0
        self.places: dict[Kind, Place] = {}

    def __repr__(self) -> str:
        tag = self.settled + self.outstanding / self.weight
        return f"<Party {self.id} {tag:g}, {self.in_flight} in flight, waits for {len(self.places)}>"


class Place:
    """That somebody waits for something of one kind. ``tickets``: of those who have no members, the first first."""

    __slots__ = ("limit", "number", "party", "tag", "tickets")

    def __init__(self, party: Party) -> None:
        self.party = party
        self.tag = self.limit = 0.0
        self.number = 0
        """Of its living entry among the turns; 0: none."""
        self.tickets: dict[Any, int] = {}


class Turns:
    """Those who wait for one kind. ``virtual``: where the last who was served began, in tokens by weight; ``shift``: by
    how much this kind was brought up to the others."""

    __slots__ = ("entries", "shift", "size", "virtual")

    def __init__(self, virtual: float) -> None:
        self.entries: list[tuple[float, int, Place]] = []
        """A heap; of the entries with a place only that with its number lives."""
        self.size = 0
        self.virtual = virtual
        self.shift = 0.0

    def places(self) -> Iterable[Place]:
        """All, in no order."""
        return [place for _, number, place in self.entries if number == place.number]

    def first(self) -> Place:
        """The place with the lowest tag. What its party got meanwhile elsewhere is added now, up to its limit."""
        entries = self.entries
        while True:
            tag, number, place = entries[0]
            if place.number != number:
                heappop(entries)
                continue
            party = place.party
            due = party.settled + party.outstanding / party.weight
            if due <= tag or tag >= place.limit:
                return place
            place.tag = due = due if due < place.limit else place.limit
            heapreplace(entries, (due, number, place))

    def tidy(self) -> None:
        """Drop the dead entries."""
        self.entries = [entry for entry in self.entries if entry[1] == entry[2].number]
        heapify(self.entries)


class Sharing:
    """All who share one thing, those who wait for it and those who used it.

    A period begins when somebody waits and ends when nobody does. Who got how much counts within it, since before it
    nobody took anything from anybody.
    """

    def __init__(self, share_of: Callable[[str], float] = lambda _: 1.0) -> None:
        self.parties: dict[str, Party] = {}
        self.turns: dict[Kind, Turns] = {}
        self._share_of = share_of
        self._period = 0
        self._virtual = 0.0
        """Where the last of all who were served began."""
        self._step = FIRST_STEP
        """The largest request of late."""
        self._numbers = 0
        self._shares = 0.0
        self._use = 0.0
        self._nil = 1.0
        """The measure of one token; what is less is nothing."""
        self._looked_at: deque[Party] = deque()

    def party(self, id_: str) -> Party:
        """The one with this id; one who is not known, or was forgotten, has used nothing."""
        found = self.parties.get(id_)
        if found is None:
            if len(self.parties) >= FEW:
                self._forget_one()
                self._forget_one()
            found = self.parties[id_] = Party(id_, self._share_of(id_))
            self._shares += found.share
            self._looked_at.append(found)
        return found

    # -- requests ----------------------------------------------------------------------------------------------

    def begin(self, party: Party, tokens: float) -> None:
        """A request of ``party`` began that did not wait."""
        if self.turns:
            self._take_part(party)
            self._virtual = max(self._virtual, party.settled)
        party.outstanding += tokens
        party.in_flight += 1

    def serve(self, party: Party, kind: Kind, tokens: float, *, stays: bool) -> None:
        """A request of ``party`` began that waited for ``kind``. ``stays``: more of the party wait for it."""
        place, turns, weight = party.places[kind], self.turns[kind], party.weight
        tag = place.tag
        settled = tag - party.outstanding / weight
        if settled > party.settled:
            party.settled = settled
        else:
            settled = party.settled
        start = settled if settled < tag else tag
        if start > turns.virtual:
            turns.virtual = start
        start = turns.virtual + turns.shift
        if start > self._virtual:
            self._virtual = start
        party.outstanding += tokens
        party.in_flight += 1
        step = tokens / weight
        self._step = step if step > self._step else self._step * FADE
        if stays:
            self._stand(turns, place)
        else:
            self.exit(party, kind)

    def end(self, party: Party, expected: float, used: float, grown: float) -> None:
        """A request of ``party`` that began with ``expected`` tokens has ended and used so many.

        What was used is remembered times ``grown``, which doubles with every half life: so what is older counts for
        less, and nothing has to be made less as time goes by.
        """
        if party.in_flight > 1:
            party.in_flight -= 1
            outstanding = party.outstanding - expected
            party.outstanding = outstanding if outstanding > 0.0 else 0.0
        else:
            party.in_flight, party.outstanding = 0, 0.0
        use = used * grown
        party.use += use
        self._use += use
        self._nil = grown
        if self.turns:
            self._take_part(party)
            party.settled += used / party.weight
            self.weigh(party)
            if party.places:
                self._bring_forward(party)

    def recall(self, party: Party, use: float) -> None:
        """``party`` used so much, by the measure of ``end``, at some time."""
        party.use += use
        self._use += use

    def weigh(self, party: Party) -> None:
        """Have its weight be what it is by now. With each request that of all others changes a little, too, and is
        looked at when they have one."""
        share, total = party.share, self._use
        party.weight = share * factor(party.use / total, share / self._shares) if total else share

    def _take_part(self, party: Party) -> None:
        if party.period != self._period:
            party.period = self._period
            party.settled = 0.0

    # -- waiting -----------------------------------------------------------------------------------------------

    def enter(self, party: Party, kind: Kind) -> Place:
        """``party`` waits for ``kind`` from now on."""
        if not self.turns:
            self._period += 1
            self._virtual = 0.0
        self._take_part(party)
        self.weigh(party)
        turns = self.turns.get(kind)
        if turns is None:
            turns = self.turns[kind] = Turns(self._virtual)
        place = party.places[kind] = Place(party)
        turns.size += 1
        self._stand(turns, place)
        return place

    def exit(self, party: Party, kind: Kind) -> None:
        """``party`` does not wait for ``kind`` any more."""
        party.places.pop(kind).number = 0
        turns = self.turns[kind]
        turns.size -= 1
        if not turns.size:
            del self.turns[kind]

    def effective(self, kind: Kind) -> float:
        """The tag of the first who waits for ``kind``, to be compared with those of other kinds. A kind of which nobody
        could be served is brought up to the others, so that it is not the turn of nobody else when it can be."""
        turns = self.turns[kind]
        tag = turns.first().tag
        turns.shift = max(turns.shift, self._virtual - self._step - tag)
        return tag + turns.shift

    def _stand(self, turns: Turns, place: Place) -> None:
        party = place.party
        tag, least = party.settled + party.outstanding / party.weight, turns.virtual
        place.limit = most = least + LEAD_STEPS * self._step
        self._push(turns, place, least if tag < least else tag if tag < most else most)

    def _bring_forward(self, party: Party) -> None:
        """Less was used than had been expected: its turn comes sooner than it seemed."""
        tag = party.settled + party.outstanding / party.weight
        for kind, place in party.places.items():
            turns = self.turns[kind]
            if tag < place.tag > turns.virtual:
                self._push(turns, place, tag if tag > turns.virtual else turns.virtual)

    def _push(self, turns: Turns, place: Place, tag: float) -> None:
        self._numbers = number = self._numbers + 1
        place.number, place.tag = number, tag
        heappush(turns.entries, (tag, number, place))
        if len(turns.entries) > 2 * turns.size + FEW:
            turns.tidy()

    # -- memory ------------------------------------------------------------------------------------------------

    def shrink(self, by: float) -> None:
        """Remember all use times ``by``: ``grown`` begins anew with that."""
        self._use *= by
        for party in self.parties.values():
            party.use *= by

    def reshare(self) -> None:
        """The shares are not what they were."""
        for party in self.parties.values():
            party.share = self._share_of(party.id)
        self._shares = sum(party.share for party in self.parties.values())
        for party in self.parties.values():
            self.weigh(party)

    def _forget_one(self) -> None:
        """Forget the one that was looked at longest ago, if it has nothing here and nothing is left of its use. Two are
        looked at for each that comes, so that such do not pile up."""
        party = self._looked_at.popleft()
        if party.use < self._nil and not party.places and not party.in_flight:
            del self.parties[party.id]
            self._shares -= party.share
            self._use = max(0.0, self._use - party.use)
        else:
            self._looked_at.append(party)


def factor(use: float, share: float) -> float:
    """By which somebody's weight is less than their share: 1 for who used nothing, a half for who used what they have a
    right to. Both arguments are parts of the whole, ``share`` more than 0."""
    found = exp2(-use / share)
    return found if found > LEAST_FACTOR else LEAST_FACTOR
