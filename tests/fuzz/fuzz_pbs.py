"""Fuzz target for what the commands of PBS print: any bytes raise nothing but ParseError, and what is read of them
keeps its promises. Inputs are recordings of a real PBS, damaged, and pieces of its layouts in any order."""

from __future__ import annotations

import random
from contextlib import suppress
from pathlib import Path

from firstkit.errors import ParseError
from firstkit.schedulers.pbs_layouts import ID, SEPARATOR, parse_ids, parse_records, parse_submitted
from firstkit.schedulers.pbs_nodes import capacity_of, for_jobs, hosts_of, parse_vnodes
from firstkit.schedulers.pbs_text import parse_jobs, telling
from firstkit.states import JobState
from fuzz.driver import Target, damaged, some

RECORDED = Path(__file__).parents[1] / "unit" / "schedulers" / "pbs"
LONGEST_BYTES = 20_000


def run_one(data: bytes) -> None:
    text = data.decode(errors="replace")
    for look in (look_at_ids, look_at_jobs, look_at_nodes):
        with suppress(ParseError):
            look(text)
    submitted = parse_submitted(text)
    assert submitted is None or ID.match(submitted)


def look_at_ids(text: str) -> None:
    """Each word is an id, and no other text becomes an argument of qstat or qdel."""
    assert all(ID.match(pbs_id) and not pbs_id.startswith("-") for pbs_id in parse_ids(text))


def look_at_jobs(text: str) -> None:
    """Each job has a name and a state; only final ones have exit codes, only waiting ones a start to come."""
    known = None
    for one in parse_jobs(text):
        news = one.news
        assert news.job_id
        assert news.exit_code is None or news.state in (JobState.COMPLETED, JobState.FAILED)
        assert news.starts_at is None or news.state is JobState.PENDING
        assert not one.is_again or news.state is JobState.ENDING
        assert len(news.reason) <= 300
        known = telling(known, news)
    if not text.lstrip().startswith("{"):
        again = "".join(
            SEPARATOR.join([f"Job Id: {pbs_id}", *(f"{name}={value}" for name, value in job.items())]) + "\n"
            for pbs_id, job in parse_records(text).items()
        )
        assert again.strip() == text.strip()


def look_at_nodes(text: str) -> None:
    """What is free is never more than what is there."""
    vnodes = parse_vnodes(text)
    all_of_it = capacity_of(vnodes)
    some_of_it = capacity_of(for_jobs(vnodes, "gpu", "ncpus=2"))
    assert 0 <= some_of_it.nodes <= all_of_it.nodes <= len(vnodes)
    assert 0 <= all_of_it.free_nodes <= all_of_it.nodes
    assert 0 <= all_of_it.free_gpus <= all_of_it.gpus
    assert 0 <= all_of_it.free_cpus <= all_of_it.cpus
    assert 0 <= all_of_it.free_memory_bytes <= all_of_it.memory_bytes
    assert sum(host.cpus for host in hosts_of(vnodes)) == sum(max(0, vnode.cpus) for vnode in vnodes)


PIECES = [
    b"Job Id: 25.hpc-head", b"Job Id: 38[].hpc-head", SEPARATOR.encode(), SEPARATOR.encode(), SEPARATOR.encode(),
    b"Job_Name=job-aaaaaaaaaaaaaaaa", b"Job_Name=", b"job_state=R", b"job_state=F", b"job_state=Q", b"job_state=E",
    b"substate=91", b"substate=60", b"Exit_status=-29", b"Exit_status=271", b"Exit_status=99999999999999999999",
    b"stime=Mon Nov 23 21:53:48 2026", b"stime=1795470828", b"estimated.start_time=Mon Nov 23 22:26:16 2026",
    b"Resource_List.walltime=00:10:00", b"exec_host=hpc-n1/0*2+hpc-n2/1", b"comment=a\nJob Id: 7\n", b"run_count=2",
    b"\n", b"\n", b"25.hpc-head\n", b"{", b"}", b'"Jobs":{"7.s":{"Job_Name":1e5,"job_state":"R"}}', b",", b"\xf6",
    b'{"nodes":{"n":{"state":"free","resources_available":{"ncpus":2,"ngpus":"4","mem":"9pb","host":"h"}}}}',
    b'"nodes":{"n":{"state":"offline,down"}}', b"nan", b"\\d",
]  # fmt: skip


def recordings() -> list[bytes]:
    """What qstat, qselect, qsub and pbsnodes printed, where it is short enough to be read often."""
    found = [path.read_bytes() for path in sorted(RECORDED.rglob("*.out"))]
    return [data for data in found if 0 < len(data) < LONGEST_BYTES]


KNOWN = recordings()


def random_input(chance: random.Random) -> bytes:
    if chance.random() < 0.5:
        return damaged(chance.choice(KNOWN), chance).replace(b"|", SEPARATOR.encode())
    return some(chance, PIECES, 12)


TARGET = Target(run_one, random_input)

if __name__ == "__main__":
    TARGET.main(__doc__)
