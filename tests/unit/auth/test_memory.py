from __future__ import annotations

from firstkit.auth.memory import Recent


def test_what_was_least_recently_used_is_forgotten() -> None:
    recent: Recent[int] = Recent(2)
    recent.put("a", 1)
    recent.put("b", 2)
    assert recent.get("a") == 1
    recent.put("c", 3)
    assert [recent.get(key) for key in "abc"] == [1, None, 3]
    assert len(recent) == 2


def test_what_is_dropped_is_gone_and_may_be_dropped_again() -> None:
    recent: Recent[int] = Recent(2)
    recent.put("a", 1)
    recent.drop("a")
    recent.drop("a")
    assert (recent.get("a"), len(recent)) == (None, 0)
