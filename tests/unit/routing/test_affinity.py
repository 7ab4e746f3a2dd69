"""Beginnings: the same name for the same, another for everything else; who saw them, for so many of them."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from firstkit.routing.affinity import BLOCKS, BONUS, MOST_HOLDERS, Holders, Prefixes

SHORT, LONG = BLOCKS
PREFIXES = Prefixes(b"s" * 32)
projects = st.sampled_from(["p", "q", "project-1", ""])
sizes = st.sampled_from([0, 1, SHORT - 1, SHORT, SHORT + 1, LONG - 1, LONG, LONG + 1, 3 * LONG])


@given(projects, sizes)
def test_so_many_names_as_there_are_whole_blocks(project: str, size: int) -> None:
    names = PREFIXES.of(project, b"x" * size)
    assert len(names) == sum(size >= block for block in BLOCKS)
    assert not names or len(names) in BONUS


@given(projects, sizes, sizes, st.binary(max_size=8), st.binary(max_size=8))
def test_what_begins_alike_shares_names_and_nothing_else_does(
    project: str, size: int, other: int, end: bytes, other_end: bytes
) -> None:
    one, two = b"x" * size + end, b"x" * other + other_end
    shared = set(PREFIXES.of(project, one)) & set(PREFIXES.of(project, memoryview(two)))
    expected = [block for block in BLOCKS if min(len(one), len(two)) >= block and one[:block] == two[:block]]
    assert len(shared) == len(expected)


@given(projects, projects, sizes)
def test_projects_share_nothing(project: str, other: str, size: int) -> None:
    """Also not one whose name begins like another's, with a prompt that goes on like it."""
    if project != other:
        assert not set(PREFIXES.of(project, b"x" * size)) & set(PREFIXES.of(other, b"x" * size))
    assert not set(PREFIXES.of("p", b"qx" + b"x" * size)) & set(PREFIXES.of("pq", b"x" + b"x" * size))


def test_every_process_has_names_of_its_own() -> None:
    text = b"x" * LONG
    assert not set(Prefixes().of("p", text)) & set(Prefixes().of("p", text))
    assert Prefixes(b"a" * 32).of("p", text) == Prefixes(b"a" * 32).of("p", text)


def test_many_projects_need_little() -> None:
    prefixes = Prefixes()
    name = prefixes.of("p", b"x" * SHORT)
    for number in range(10_001):
        prefixes.of(f"project-{number}", b"x" * SHORT)
    assert len(prefixes._projects) <= 10_000
    assert prefixes.of("p", b"x" * SHORT) == name


class Held(RuleBasedStateMachine):
    """``model``: the beginnings, the last used at the end, each with its holders, the last one first."""

    def __init__(self) -> None:
        super().__init__()
        self.holders: Holders[str] = Holders(4)
        self.model: dict[bytes, list[str]] = {}

    @rule(prefix=st.sampled_from([b"1", b"2", b"3", b"4", b"5", b"6"]), holder=st.sampled_from("abcdef"))
    def note(self, prefix: bytes, holder: str) -> None:
        self.holders.note(prefix, holder)
        before = self.model.pop(prefix, [])
        self.model[prefix] = [holder, *(each for each in before if each != holder)][:MOST_HOLDERS]
        if len(self.model) > 4:
            del self.model[next(iter(self.model))]

    @rule(holder=st.sampled_from("abcdef"))
    def forget(self, holder: str) -> None:
        self.holders.forget(holder)
        left = {prefix: [each for each in found if each != holder] for prefix, found in self.model.items()}
        self.model = {prefix: found for prefix, found in left.items() if found}

    @invariant()
    def is_as_expected(self) -> None:
        assert len(self.holders) == len(self.model) <= 4
        for number in range(1, 7):
            prefix = str(number).encode()
            assert list(self.holders.of(prefix)) == self.model.get(prefix, [])


TestHeld = Held.TestCase
TestHeld.settings = settings(max_examples=60, stateful_step_count=30)
