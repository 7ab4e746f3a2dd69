import os
import time
from pathlib import Path

import pytest

from firstkit.errors import SchedulerRefused
from firstkit.schedulers.notes import ASKED, CANCELLED, KEEP_ENDED_S, KEEP_UNKNOWN_S, NEVER_SUBMITTED, Notes
from firstkit.schedulers.scheduler import JobNews
from firstkit.states import JobState

JOB = "job-" + "a" * 16


@pytest.fixture
def notes(tmp_path: Path) -> Notes:
    return Notes(str(tmp_path))


def folder_of(notes: Notes, *files: str) -> Path:
    folder = Path(notes.folder(JOB))
    folder.mkdir(exist_ok=True)
    for name in files:
        (folder / name).touch()
    return folder


def test_folders_with_other_names_are_of_no_job(notes: Notes) -> None:
    folder = folder_of(notes)
    (folder.parent / "job-1").mkdir()
    assert notes.job_ids() == {JOB}


def test_a_cancel_before_the_claim_is_the_end(notes: Notes) -> None:
    notes.mark_cancelled(JOB)
    assert notes.noted(JOB) == JobNews(JOB, "", JobState.CANCELLED, NEVER_SUBMITTED)
    with pytest.raises(SchedulerRefused, match=NEVER_SUBMITTED):
        notes.check_wanted(JOB)


def test_a_cancel_after_the_claim_is_a_mark(notes: Notes) -> None:
    folder_of(notes, "claim")
    notes.check_wanted(JOB)
    notes.mark_cancelled(JOB)
    assert notes.is_marked(JOB)
    assert notes.noted(JOB) is None


def test_the_first_mark_counts(notes: Notes) -> None:
    folder = folder_of(notes, "claim", CANCELLED)
    os.utime(folder / CANCELLED, (time.time() - 100,) * 2)
    notes.mark_cancelled(JOB)
    assert (notes.age_s(JOB, CANCELLED) or 0) > 90


def test_files_come_and_go(notes: Notes) -> None:
    folder_of(notes)
    assert notes.age_s(JOB, ASKED) is None
    assert notes.read(JOB, ASKED) == b""
    notes.write(JOB, ASKED, b"x")
    assert notes.read(JOB, ASKED) == b"x"
    notes.remove(JOB, ASKED)
    notes.remove(JOB, ASKED)
    assert notes.age_s(JOB, ASKED) is None


def test_nothing_is_noted_where_there_is_no_folder(notes: Notes) -> None:
    notes.note(JobNews(JOB, "7", JobState.COMPLETED))
    assert notes.noted(JOB) is None


@pytest.mark.parametrize(("file", "keep_s"), [("ended.json", KEEP_ENDED_S), (".", KEEP_UNKNOWN_S)])
def test_folders_go_when_they_are_old(notes: Notes, file: str, keep_s: float) -> None:
    folder = folder_of(notes, *([file] if file != "." else []))
    for age_s, is_there in ((keep_s - 60, True), (keep_s + 60, False)):
        os.utime(folder / file, (time.time() - age_s,) * 2)
        notes.remove_if_old(JOB)
        assert folder.exists() == is_there
