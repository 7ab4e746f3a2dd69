from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstkit.errors import SchedulerRefused
from firstkit.schedulers.pbs_commands import (
    Defaults,
    cancel_command,
    clock,
    fault_of,
    find_command,
    jobs_command,
    nodes_command,
    read_defaults,
    shape_options,
    submit_command,
    with_defaults,
)
from firstkit.schedulers.pbs_layouts import SEPARATOR
from firstkit.schedulers.scheduler import Resources

JOB = "job-" + "a" * 16
FOLDER = f"/eagle/first/jobs/{JOB}"
NONE = Defaults()


def options(needs: Resources, defaults: Defaults = NONE) -> dict[str, str]:
    """What follows each option; of ``-l`` by the name of the resource."""
    given = shape_options(needs, defaults)
    pairs = list(zip(given[::2], given[1::2], strict=True))
    lists = dict(value.split("=", 1) for name, value in pairs if name == "-l")
    return {**{name: value for name, value in pairs if name != "-l"}, **lists}


def test_a_whole_submission() -> None:
    needs = Resources(2, 32, 4, 256 * 1024**3, True, 21600, "proj", partition="prod", constraint="system=polaris")
    defaults = Defaults(project="science", filesystems=("home", "eagle"), devices=("3", "2", "1", "0"))
    argv = ["/usr/bin/python3", "-I", "/eagle/first/bin/first.pyz", "pilot", FOLDER]
    assert submit_command(JOB, needs, defaults, FOLDER, argv) == [
        "qsub", "-f", "-N", JOB, "-r", "n", "-j", "oe", "-k", "doe", "-o", f"{FOLDER}/pilot.log", "-W", "umask=0077",
        "-l", "select=2:ncpus=32:ngpus=4:mem=262144mb:system=polaris", "-l", "place=scatter:exclhost",
        "-l", "walltime=06:00:00", "-l", "filesystems=home:eagle", "-q", "prod", "-A", "proj", "-P", "science",
        "-v", f"FIRST_JOB_ID={JOB},FIRST_JOB_CPUS=32,FIRST_JOB_WALLTIME=21600,FIRST_JOB_MEMORY=274877906944,"
        "FIRST_JOB_EXCLUSIVE=1,FIRST_JOB_GPUS=4,FIRST_JOB_DEVICES=3+2+1+0",
        "--", *argv,
    ]  # fmt: skip


def test_the_least() -> None:
    assert shape_options(Resources(), NONE) == ["-l", "select=1:ncpus=1", "-l", "place=free"]


def test_what_holds_for_all_jobs_and_what_one_says_itself() -> None:
    defaults = Defaults("debug", "proj", constraint="a=1")
    assert options(Resources(), defaults)["-q"] == "debug"
    own = options(Resources(partition="prod", account="mine", constraint="b=2"), defaults)
    assert (own["-q"], own["-A"], own["select"]) == ("prod", "mine", "1:ncpus=1:b=2")
    assert with_defaults(Resources(), defaults).partition == "debug"


@pytest.mark.parametrize(
    ("needs", "place"),
    [
        (Resources(), "free"),
        (Resources(nodes=2), "scatter"),
        (Resources(exclusive=True), "scatter:exclhost"),
        (Resources(nodes=2, exclusive=True), "scatter:exclhost"),
    ],
)
def test_places(needs: Resources, place: str) -> None:
    assert options(needs)["place"] == place


def test_gpus_by_the_name_that_they_have() -> None:
    defaults = Defaults(gpu_resource="naccelerators", assigns_gpus=True)
    assert options(Resources(gpus_per_node=2), defaults)["select"] == "1:ncpus=1:naccelerators=2"


@pytest.mark.parametrize(
    ("needs", "defaults", "field", "words"),
    [
        (Resources(qos="high"), NONE, "qos", "PBS has no QOS"),
        (Resources(directives=("--x",)), NONE, "directives", "PBS takes none"),
        (Resources(constraint="a100"), NONE, "constraint", "resources of a chunk"),
        (Resources(constraint="a=1:b=2 -W x"), NONE, "constraint", "resources of a chunk"),
        (Resources(gpus_per_node=1), NONE, "gpus_per_node", "exclusive: true"),
        (Resources(gpus_per_node=1), NONE, "gpus_per_node", "assigns_gpus: true"),
        (Resources(gpus_per_node=1), NONE, "gpus_per_node", r"devices: \[...\]"),
        (Resources(gpus_per_node=3), Defaults(devices=("0", "1")), "gpus_per_node", "more than the 2"),
    ],
)
def test_what_pbs_cannot_give(needs: Resources, defaults: Defaults, field: str, words: str) -> None:
    found = fault_of(needs, defaults)
    assert found is not None
    assert found[0] == field
    with pytest.raises(SchedulerRefused, match=words):
        shape_options(needs, defaults)


@pytest.mark.parametrize(
    ("needs", "defaults"),
    [
        (Resources(gpus_per_node=1, exclusive=True), NONE),
        (Resources(gpus_per_node=1), Defaults(assigns_gpus=True)),
        (Resources(gpus_per_node=2), Defaults(devices=("0", "1"))),
    ],
)
def test_each_of_the_ways_to_gpus_is_one(needs: Resources, defaults: Defaults) -> None:
    assert fault_of(needs, defaults) is None


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "00:00:01"), (59, "00:00:59"), (3661, "01:01:01"), (360000, "100:00:00")]
)
def test_times(seconds: int, text: str) -> None:
    assert clock(seconds) == text


@pytest.mark.parametrize("folder", ["/a b", "/a:b", "/a,b", '/a"b', "/ä", "relative", "/a\n"])
def test_a_folder_that_qsub_would_not_take(folder: str) -> None:
    with pytest.raises(SchedulerRefused, match="state_dir"):
        submit_command(JOB, Resources(), NONE, folder, [])


def test_questions() -> None:
    assert find_command(JOB, "me", with_ended=True) == ["qselect", "-x", "-N", JOB, "-u", "me"]
    assert find_command(JOB, "me", with_ended=False) == ["qselect", "-N", JOB, "-u", "me"]
    assert jobs_command(["7.s", "8.s"], with_ended=True) == [
        "qstat", "-x", "-f", "-F", "dsv", "-D", SEPARATOR, "7.s", "8.s",
    ]  # fmt: skip
    assert cancel_command(["7.s"]) == ["qdel", "7.s"]
    assert cancel_command(["7.s", "8.s"], force=True) == ["qdel", "-W", "force", "7.s", "8.s"]
    assert nodes_command() == ["pbsnodes", "-av", "-F", "json"]


def test_settings_out_of_the_configuration() -> None:
    settings = {"kind": "pbs", "queue": "prod", "filesystems": ["home"], "devices": ["0"], "gpu_resource": "gpus"}
    assert read_defaults(settings) == Defaults("prod", filesystems=("home",), gpu_resource="gpus", devices=("0",))
    assert read_defaults({}) == NONE


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"queue": 1}, "scheduler.queue: 1 is not allowed"),
        ({"project": ""}, "scheduler.project"),
        ({"gpu_resource": "n gpus"}, "scheduler.gpu_resource: the name"),
        ({"assigns_gpus": "yes"}, "scheduler.assigns_gpus: true or false"),
        ({"devices": "0"}, "scheduler.devices: a list"),
        ({"devices": ["0,1"]}, "scheduler.devices: a list"),
        ({"filesystems": [1]}, "scheduler.filesystems: a list"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(SchedulerRefused, match=words):
        read_defaults(settings)


@given(st.text(max_size=30), st.text(max_size=30), st.text(max_size=30))
def test_no_text_becomes_an_option_of_its_own(queue: str, account: str, constraint: str) -> None:
    with suppress(SchedulerRefused):
        given_options = shape_options(Resources(partition=queue, account=account, constraint=constraint), NONE)
        names = given_options[::2]
        assert set(names) <= {"-l", "-q", "-A"}
        assert names.count("-l") == 2
