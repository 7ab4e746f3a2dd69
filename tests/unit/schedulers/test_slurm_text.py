"""The texts in ``slurm/`` were printed by Slurm 22.05."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstkit.errors import SchedulerSilent
from firstkit.schedulers.calls import last_words
from firstkit.schedulers.scheduler import Capacity, JobNews
from firstkit.schedulers.slurm_commands import MIB, NODE_COLUMNS
from firstkit.schedulers.slurm_text import (
    STATES,
    capacity_of,
    parse_accounting,
    parse_exit_code,
    parse_held_again,
    parse_jobs,
    parse_nodes,
    parse_start,
    parse_submitted,
    parse_time,
)
from firstkit.states import JobState

RECORDED = Path(__file__).with_name("slurm")
JOB, OTHER = "job-" + "a" * 16, "job-" + "b" * 16


def recorded(name: str) -> str:
    return (RECORDED / name).read_text()


def job(word: str) -> str:
    return f"job-{word:a<16}"


def line(name: str = JOB, number: int = 7, word: str = "RUNNING", **more: str) -> str:
    fields = {"node": "n1", "start": "100", "end": "200", "priority": "5", "partition": "gpu", "reason": "None", **more}
    return "|".join([name, str(number), word, *fields.values()]) + "\n"


def news(text: str) -> JobNews:
    return parse_jobs(text)[JOB]


# -- squeue ------------------------------------------------------------------------------------------------------------


def test_a_recorded_queue() -> None:
    found = parse_jobs(recorded("squeue-all.txt"))
    assert set(map(type, found.values())) == {JobNews}
    assert {name[4:].rstrip("a"): (news.state.value, news.reason) for name, news in found.items()} == {
        "cancelled": ("CANCELLED", ""),
        "completing": ("CANCELLED", "Priority"),
        "completed": ("COMPLETED", ""),
        "failed": ("FAILED", "NonZeroExitCode"),
        "killed": ("FAILED", "JobLaunchFailure"),
        "special": ("FAILED", "NonZeroExitCode"),
        "nodefail": ("NODE_FAIL", "NodeDown"),
        "nolimit": ("PENDING", "PartitionTimeLimit"),
        "big": ("PENDING", "Resources"),
        "begin": ("PENDING", "BeginTime"),
        "depends": ("PENDING", "Dependency"),
        "toomany": ("PENDING", "PartitionNodeLimit"),
        "deadline": ("PENDING", "Priority"),
        "later": ("PENDING", "Priority"),
        "onnode": ("PENDING", "ReqNodeNotAvail, UnavailableNodes:sophia-n3"),
        "toolong": ("PENDING", "PartitionTimeLimit"),
        "held": ("PENDING", "JobHeldUser"),
        "running": ("RUNNING", ""),
        "suspended": ("RUNNING", "SUSPENDED"),
    }


def test_times_node_and_place_of_recorded_jobs() -> None:
    found = parse_jobs(recorded("squeue-all.txt"))
    assert found[job("running")] == JobNews(
        job("running"), "700", JobState.RUNNING, node="sophia-n1", started_at=1795697503.0, ends_at=1795701103.0
    )
    assert found[job("big")] == JobNews(
        job("big"), "711", JobState.PENDING, "Resources", starts_at=1795783903.0, position=2
    )
    assert found[job("depends")].starts_at is None
    assert found[job("completed")].exit_code == 0
    assert found[job("nodefail")].ends_at == 1795697505.0
    never_started = found[job("completing")]
    assert (never_started.started_at, never_started.ends_at) == (None, 1795697511.0)


@pytest.mark.parametrize(("word", "state"), STATES.items())
def test_every_word_of_slurm_has_its_state(word: str, state: JobState) -> None:
    assert news(line(word=word)).state is state


def test_a_word_that_nobody_knows_is_alive() -> None:
    found = news(line(word="TELEPORTING"))
    assert (found.state, found.reason, found.position) == (JobState.PENDING, "TELEPORTING", None)


def test_slurms_own_words_are_told() -> None:
    assert news(line(word="BOOT_FAIL", reason="NodeDown")).reason == "BOOT_FAIL, NodeDown"
    assert news(line(word="PENDING", reason="a reason | with a bar")).reason == "a reason | with a bar"
    assert news(line(reason="für später")).reason == "für später"


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("n1", "n1"), ("n[3-7,9]", "n3"), ("rack2-n[01,04],x1", "rack2-n01"), ("(null)", None), ("None assigned", None)],
)
def test_the_pilot_is_on_the_first_node(nodes: str, first: str) -> None:
    assert news(line(node=nodes)).node == first


def test_of_two_jobs_of_one_name_the_one_that_lives() -> None:
    both = line(number=9, word="FAILED") + line(number=8) + line(number=10, word="CANCELLED")
    assert news(both).scheduler_id == "8"
    assert news(line(number=8, word="FAILED") + line(number=10, word="TIMEOUT")).scheduler_id == "10"
    assert news(line(number=8) + line(number=9)).scheduler_id == "9"


def test_jobs_of_others_are_ignored() -> None:
    others = [line("interactive"), line("a|b c|d"), line("job-x"), "CLUSTER: polaris\n", "\n", "two\n", line("lines")]
    assert parse_jobs("".join(others)) == {}


@pytest.mark.parametrize("text", [line()[:-1], line() + OTHER, f"{JOB}|7|RUNN\n", f"{JOB}\n", line(number=-7)])
def test_an_answer_that_may_have_lost_a_job_is_none(text: str) -> None:
    with pytest.raises(SchedulerSilent):
        parse_jobs(text)


def test_no_jobs_is_a_good_answer() -> None:
    assert parse_jobs("") == {}


def test_places_are_by_priority_then_by_number_within_a_partition() -> None:
    text = (
        line("somebody", 1, "PENDING", priority="9", reason="Resources")
        + line(JOB, 3, "PENDING", priority="5", reason="Priority")
        + line("else", 2, "PENDING", priority="5", reason="Priority")
        + line(OTHER, 4, "PENDING", priority="1", partition="debug", reason="Resources")
    )
    assert {name: news.position for name, news in parse_jobs(text).items()} == {JOB: 3, OTHER: 1}


def test_no_place_is_known_where_others_are_before_all_that_we_see() -> None:
    text = line(JOB, 3, "PENDING", reason="Priority") + line(OTHER, 4, "PENDING", reason="Resources")
    assert [news.position for news in parse_jobs(text).values()] == [None, None]


def test_jobs_that_slurm_would_start_again() -> None:
    text = line(word="SPECIAL_EXIT") + line(OTHER) + line("job-x", word="REQUEUED")
    assert parse_held_again(text) == {JOB}


# -- the other commands ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("42\n", "42"),
        ("42;sophia\n", "42"),
        ("Welcome!\n12 jobs run now\n42\n", "42"),
        ("", None),
        ("Submitted\n", None),
    ],
)
def test_the_number_of_a_new_job(text: str, number: str | None) -> None:
    assert parse_submitted(text) == number


def test_exit_codes() -> None:
    assert parse_exit_code(recorded("scontrol-failed.txt")) == 3
    assert parse_exit_code(recorded("scontrol-killed.txt")) == 137
    assert parse_exit_code("slurm_load_jobs error: Invalid job id specified") is None


def test_when_a_job_would_start() -> None:
    assert parse_start(recorded("test-only-starts.txt")) == 7165010031.0
    assert parse_start(recorded("test-only-never.txt")) is None


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("1795697503", 1795697503.0),
        ("2026-11-26T12:51:43", 1795697503.0),
        ("N/A", None),
        ("Unknown", None),
        ("0", None),
    ],
)
def test_times(text: str, time: float | None) -> None:
    assert parse_time(text) == time


def test_recorded_accounting() -> None:
    found = parse_accounting(recorded("sacct.txt"))
    assert {name[4:].rstrip("a"): (news.state.value, news.exit_code) for name, news in found.items()} == {
        "completed": ("COMPLETED", 0),
        "failed": ("FAILED", 3),
        "cancelled": ("CANCELLED", None),
        "killed": ("FAILED", 137),
    }
    assert found[job("cancelled")].ends_at == 1795698481.0


def test_accounting() -> None:
    text = (
        f"{JOB}|7|CANCELLED by 1000|0:15|100|200|n[3-4]\n"
        f"{OTHER}|8|RUNNING|0:0|100|Unknown|n1\n"
        f"{job('failed')}|9|FAILED|3:0|100|200|n1\n"
        f"{job('done')}|10|COMPLETED|0:0|2026-11-26T12:51:43|200|n1\n"
        "batch|11|COMPLETED|0:0|1|2|n1\nrubbish\n"
    )
    assert list(parse_accounting(text).values()) == [
        JobNews(JOB, "7", JobState.CANCELLED, "CANCELLED by 1000", None, "n3", 100.0, 200.0),
        JobNews(job("failed"), "9", JobState.FAILED, "", 3, "n1", 100.0, 200.0),
        JobNews(job("done"), "10", JobState.COMPLETED, "", 0, "n1", 1795697503.0, 200.0),
    ]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("sbatch-invalid-partition", "sbatch: error: Batch job submission failed: Invalid partition name specified"),
        ("sbatch-unknown-option", 'Try "sbatch --help" for more information'),
        ("dead-squeue", "slurm_load_jobs error: Unable to contact slurm controller (connect failure)"),
        (
            "dead-sbatch",
            "sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)",
        ),
        ("sacct-disabled", "Slurm accounting storage is disabled"),
    ],
)
def test_recorded_last_words(name: str, words: str) -> None:
    assert last_words(recorded(f"{name}.txt")) == words


# -- sinfo -------------------------------------------------------------------------------------------------------------


def row(name: str = "n1", state: str = "idle", partition: str = "gpu*", **more: str) -> str:
    fields = {"cpus": "4/12/0/16", "memory": "64000", "used": "1000", "gres": "gpu:a100:8(S:0-1)", **more}
    fields = {"name": name, "partition": partition, "state": state, **fields}
    fields.setdefault("used_gres", "gpu:a100:2(IDX:0,3)")
    return "".join(value.ljust(width) for value, (_, width) in zip(fields.values(), NODE_COLUMNS, strict=True)) + "\n"


def test_recorded_nodes() -> None:
    nodes = parse_nodes(recorded("sinfo-nodes.txt"))
    assert [(node.name, node.is_in_service, node.is_default) for node in nodes] == [
        ("sophia-n1", True, True),
        ("sophia-n2", False, True),
        ("sophia-n3", False, True),
    ]
    assert capacity_of(nodes) == Capacity(
        1, 16, 8, 64000 * MIB, 0, 13, 6, 63600 * MIB, least_cpus=16, least_gpus=8, least_memory_bytes=64000 * MIB
    )


@pytest.mark.parametrize(
    ("state", "is_in_service", "free_gpus"),
    [
        ("idle", True, 6),
        ("mixed-", True, 6),
        ("idle~", True, 6),
        ("idle+cloud+powered_down", False, 0),
        ("completing", True, 6),
        ("reserved", True, 0),
        ("draining", False, 0),
        ("drained*", False, 0),
        ("mixed+drain", False, 0),
        ("idle*", False, 0),
        ("idle$", False, 0),
        ("maint", False, 0),
        ("down", False, 0),
        ("inval", False, 0),
        ("something new", False, 0),
        ("", False, 0),
    ],
)
def test_what_is_not_in_service_is_no_capacity(state: str, is_in_service: bool, free_gpus: int) -> None:
    (node,) = parse_nodes(row(state=state))
    assert (node.is_in_service, node.free_gpus) == (is_in_service, free_gpus)


@pytest.mark.parametrize(
    ("gres", "kind", "count"),
    [
        ("gpu:a100:4(S:0),gpu:h100:2", None, 6),
        ("gpu:a100:4(S:0),gpu:h100:2", "h100", 2),
        ("gpu:8", None, 8),
        ("gpu:8", "a100", 0),
        ("shard:gpu0:4,nvme:1", None, 0),
        ("(null)", None, 0),
    ],
)
def test_gpus_of_one_type(gres: str, kind: str | None, count: int) -> None:
    (node,) = parse_nodes(row(gres=gres), kind)
    assert node.gpus == count


def test_a_node_of_two_partitions_is_one_node() -> None:
    assert [node.is_default for node in parse_nodes(row(partition="debug") + row() + row(partition="x"))] == [True]


@pytest.mark.parametrize("text", [row()[:-1], row()[:-9] + "\n", row(cpus="?"), row(memory="much"), row(name="")])
def test_half_an_answer_about_nodes_is_none(text: str) -> None:
    with pytest.raises(SchedulerSilent):
        parse_nodes(text)


# -- any text ----------------------------------------------------------------------------------------------------------

LINES = st.lists(
    st.one_of(
        st.text(max_size=40),
        st.builds(
            lambda *fields: "|".join(fields),
            st.sampled_from([JOB, OTHER, "x"]),
            *[st.one_of(st.text(max_size=12), st.integers().map(str), st.sampled_from([*STATES])) for _ in range(8)],
        ),
    )
).map(lambda lines: "\n".join([*lines, ""]))


@given(st.one_of(st.text(), LINES))
def test_any_text_is_an_answer_or_silence(text: str) -> None:
    for parse in (parse_jobs, parse_nodes, parse_held_again):
        try:
            parse(text)
        except SchedulerSilent:
            continue
    parse_accounting(text)
    parse_submitted(text)
    parse_exit_code(text)
    parse_start(f"x to start at {text}")


@given(st.integers(0, 100))
def test_a_recorded_queue_that_is_cut_off_is_silence_or_ends_at_a_line(percent: int) -> None:
    text = recorded("squeue-all.txt")
    cut = text[: len(text) * percent // 100]
    if cut and not cut.endswith("\n"):
        with pytest.raises(SchedulerSilent):
            parse_jobs(cut)
