from firstkit.clusters.ssh import LONGEST_WAIT_S, BackOff, _line


def test_waits_grow_and_are_forgotten() -> None:
    back_off = BackOff(draw=lambda low, high: high)
    assert back_off.wait_s(100.0) == 0.0
    waits = []
    for _ in range(40):
        back_off.failed(100.0)
        waits.append(back_off.wait_s(100.0))
    assert waits[:5] == [1.0, 2.0, 4.0, 8.0, 16.0]
    assert max(waits) == waits[-1] == LONGEST_WAIT_S
    assert back_off.wait_s(100.0 + LONGEST_WAIT_S) == 0.0
    back_off.succeeded()
    assert back_off.wait_s(100.0) == 0.0


def test_no_two_wait_equally_long() -> None:
    waits = set()
    for _ in range(50):
        back_off = BackOff()
        back_off.failed(0.0)
        waits.add(back_off.wait_s(0.0))
    assert len(waits) == 50
    assert all(0.5 <= wait <= 1.0 for wait in waits)


def test_foreign_words_are_one_line_of_print() -> None:
    assert _line(b"a\n\x1b[31mb\xff\t c") == "a  [31mb\ufffd c"
    assert len(_line("x" * 1000)) == 300
