"""Minutes of load with a death every few seconds; afterwards the books are checked. The seed is printed."""

from __future__ import annotations

import os
import random
import time

import pytest

from faults.test_deaths import Crowd
from lab import Lab, fake_engine, one_model, running, wait_for

MINUTES = float(os.environ.get("FIRST_CHAOS_MINUTES", "5"))


def strike(lab: Lab, chance: random.Random) -> str:
    """One death, of whoever is there to die."""
    what = chance.choice(["gateway", "controller", "engine", "pilot"])
    if what == "gateway":
        lab.kill_gateway()
        lab.start_gateway()
    elif what == "controller":
        lab.kill_controller()
        lab.start_controller()
    else:
        victims = lab.engines() if what == "engine" else lab.pilots()
        for victim in victims[:1]:
            victim.kill()
    return what


@pytest.mark.long
@pytest.mark.timeout(MINUTES * 60 + 240)
def test_chaos(database_url: str) -> None:
    seed = int(os.environ.get("FIRST_CHAOS_SEED", str(random.randrange(10**6))))
    print(f"FIRST_CHAOS_SEED={seed}")
    chance = random.Random(seed)
    engine = fake_engine("QuickEngine", tokens=20, token_delay=0.01)
    models = one_model(engine, scale={"hot": 1, "max": 1, "max_in_flight": 8})
    with running(models, database_url) as lab:
        lab.wait_live()
        crowd = Crowd(lab, 6)
        deadline = time.monotonic() + MINUTES * 60
        try:
            while time.monotonic() < deadline:
                enough = len(crowd.finished) + 10
                wait_for(f"requests are answered again (seed {seed})", lambda e=enough: len(crowd.finished) >= e, 120)
                print(strike(lab, chance), len(crowd.finished))
            lab.wait_live(limit_s=120)
        finally:
            crowd.stop()
        check_books(lab, crowd)


def check_books(lab: Lab, crowd: Crowd) -> None:
    """Finished requests are complete in the ledger exactly once; one job and one replica live; nothing else runs."""
    finished = set(crowd.finished)
    wait_for("the ledger has them all", lambda: finished <= {row["request_id"] for row in lab.usage()})
    rows = lab.usage()
    assert len(finished) == len(crowd.finished)
    assert len({row["request_id"] for row in rows}) == len(rows)
    assert finished <= {row["request_id"] for row in rows if row["outcome"] == "complete"}
    assert sum(job["state"] in ("SUBMITTING", "PENDING", "RUNNING") for job in lab.jobs()) == 1
    assert len(lab.pilots()) == 1
    assert len(lab.engines()) == 1
