import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstkit.errors import SchedulerRefused
from firstkit.schedulers.scheduler import Resources
from firstkit.schedulers.slurm_commands import (
    JOB_SCRIPT,
    Defaults,
    accounting_command,
    cancel_command,
    estimate_command,
    jobs_command,
    nodes_command,
    read_defaults,
    shape_options,
    submit_command,
)

GIB = 1024**3
JOB = "job-" + "a" * 16
NO_DEFAULTS = Defaults()


def test_the_whole_command_of_a_submission() -> None:
    needs = Resources(2, 32, 4, 256 * GIB, True, 21600, "proj", "normal", "gpu", "a100&nvme", ("--reservation=x y",))
    assert submit_command(JOB, needs, Defaults(gpu_type="a100"), "/state/jobs/j", ["python3", "app.pyz"]) == [
        "sbatch",
        "--parsable",
        "--no-requeue",
        f"--job-name={JOB}",
        f"--comment={JOB}",
        "--chdir=/state/jobs/j",
        "--output=pilot.log",
        "--error=pilot.log",
        "--open-mode=append",
        "--export=ALL",
        "--propagate=NONE",
        "--nodes=2",
        "--ntasks-per-node=1",
        "--cpus-per-task=32",
        "--gpus-per-node=a100:4",
        "--mem=262144M",
        "--exclusive",
        "--time=360",
        "--partition=gpu",
        "--account=proj",
        "--qos=normal",
        "--constraint=a100&nvme",
        "--reservation=x y",
        "/state/jobs/j/job.sh",
        "python3",
        "app.pyz",
    ]


def test_what_is_not_asked_for_is_not_said() -> None:
    assert shape_options(Resources(cpus_per_node=0), NO_DEFAULTS) == [
        "--nodes=1",
        "--ntasks-per-node=1",
        "--cpus-per-task=1",
    ]


@pytest.mark.parametrize(
    ("needs", "option"),
    [
        (Resources(walltime_s=1), "--time=1"),
        (Resources(walltime_s=60), "--time=1"),
        (Resources(walltime_s=61), "--time=2"),
        (Resources(memory_bytes=1), "--mem=1M"),
        (Resources(memory_bytes=GIB + 1), "--mem=1025M"),
        (Resources(exclusive=True), "--mem=0M"),
        (Resources(gpus_per_node=3), "--gpus-per-node=3"),
    ],
)
def test_sizes_are_rounded_up(needs: Resources, option: str) -> None:
    assert option in shape_options(needs, NO_DEFAULTS)


def test_defaults_hold_where_the_job_says_nothing() -> None:
    defaults = Defaults("gpu", "proj", "low", "a100", ("--reservation=r",))
    options = shape_options(Resources(qos="high", directives=("--switches=1",)), defaults)
    assert options[3:] == [
        "--partition=gpu",
        "--account=proj",
        "--qos=high",
        "--constraint=a100",
        "--reservation=r",
        "--switches=1",
    ]


@pytest.mark.parametrize("directive", ["x", "-x", "--", "--A", "--x\n--y", "--x=", "--x y", "job.sh", "--x=a\0"])
def test_a_directive_is_one_long_option(directive: str) -> None:
    with pytest.raises(SchedulerRefused, match="is not allowed"):
        shape_options(Resources(directives=(directive,)), NO_DEFAULTS)


@given(st.builds(Resources, partition=st.text(min_size=1), account=st.text(min_size=1)))
def test_a_value_is_one_argument_whatever_is_in_it(needs: Resources) -> None:
    options = shape_options(needs, NO_DEFAULTS)
    assert options[3:] == [f"--partition={needs.partition}", f"--account={needs.account}"]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"partition": 3}, "scheduler.partition: 3 is not allowed"),
        ({"gpu_type": ""}, "scheduler.gpu_type: '' is not allowed"),
        ({"directives": "--x"}, "scheduler.directives: a list is needed"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SchedulerRefused, match=sentence):
        read_defaults(settings)


def test_settings_become_defaults() -> None:
    settings = {"kind": "slurm", "partition": "gpu", "gpu_type": "a100", "directives": ["--x=1"], "qos": None}
    assert read_defaults(settings) == Defaults("gpu", directives=("--x=1",), gpu_type="a100")


def test_the_other_commands() -> None:
    assert estimate_command(Resources(gpus_per_node=1), NO_DEFAULTS)[:3] == ["sbatch", "--test-only", "--no-requeue"]
    assert jobs_command()[:4] == ["squeue", "--me", "--noheader", "--states=all"]
    assert jobs_command(JOB)[-1] == f"--name={JOB}"
    assert cancel_command(JOB) == ["scancel", f"--name={JOB}"]
    assert nodes_command("gpu")[-1] == "--partition=gpu"
    assert len(nodes_command(None)) == 4
    assert "--name=job-a,job-b" in accounting_command(["job-b", "job-a"])


def run_script(tmp_path: Path, *argv: str, **env: str) -> subprocess.CompletedProcess[str]:
    script = tmp_path / "job.sh"
    script.write_text(JOB_SCRIPT)
    variables = {"PATH": "/usr/bin:/bin", "SLURM_JOB_NAME": JOB, **env}
    return subprocess.run(["/bin/sh", script, *argv], env=variables, capture_output=True, text=True, check=False)


def test_the_script_becomes_its_arguments_whatever_is_in_them(tmp_path: Path) -> None:
    strange = ["a b", "'", '"', "$HOME", "`id`", "new\nline", "", "*", "%j", "\\"]
    done = run_script(tmp_path, "printf", "%s\\0", *strange)
    assert done.stdout.split("\0")[:-1] == strange
    assert shlex.split(run_script(tmp_path, "env").stdout.replace("\n", " ")).count(f"FIRST_JOB_ID={JOB}") == 1


def test_a_job_that_slurm_starts_again_ends_at_once(tmp_path: Path) -> None:
    done = run_script(tmp_path, "echo", "served", SLURM_RESTART_COUNT="1")
    assert (done.returncode, done.stdout) == (75, "")
    assert "it was submitted to run once" in done.stderr
