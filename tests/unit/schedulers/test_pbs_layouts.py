"""Every recording of ``pbs/`` that prints jobs, ids or nodes, held against what stands in it line by line."""

import json
import re
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstkit.errors import ParseError
from firstkit.schedulers.pbs_layouts import SEPARATOR, parse_ids, parse_records, parse_submitted
from unit.schedulers.pbs_recorded import Case, case, cases, said_in_json, said_plainly

COMPARED = (
    "Job_Name", "job_state", "substate", "queue", "Account_Name", "exec_host", "exec_vnode", "stime", "obittime",
    "mtime", "ctime", "run_count", "Exit_status", "comment", "project", "history_timestamp", "Rerunable", "Keep_Files",
)  # fmt: skip
JOBS = [one for one in cases("qstat") if one.is_json and "-B" not in one.argv and "-Q" not in one.argv]
NODES = [one for one in cases("pbsnodes") if one.is_json]
DAMAGED = {
    "json/acct_bs.v23_06_06", "json/acct_uni.v23_06_06", "json/all_with_odd.v23_06_06", "json/backslash.v23_06_06",
    "json/comment_odd.v23_06_06", "json/hexid.v23_06_06", "json/name_nan.v23", "json/number.v23_06_06",
    "json/project_uni.v23_06_06", "json/unicode.v23_06_06", "qstat/all_x_t_v23",
}  # fmt: skip
"""Printed as JSON by the release of 2023, and none."""


def named(one: Case) -> str:
    return one.name


def chosen(attributes: dict[str, str]) -> dict[str, str]:
    return {name: attributes[name] for name in COMPARED if name in attributes}


@pytest.mark.parametrize("one", [one for one in JOBS if one.name not in DAMAGED], ids=named)
def test_each_recorded_list_of_jobs_is_read_as_written(one: Case) -> None:
    read = parse_records(one.output)
    assert {pbs_id: chosen(job) for pbs_id, job in read.items()} == {
        pbs_id: chosen(job) for pbs_id, job in said_in_json(one.output).items()
    }
    assert len(read) == len(re.findall('"Job_Name"', one.output))


@pytest.mark.parametrize("name", sorted(DAMAGED))
def test_each_damaged_recording_is_no_answer(name: str) -> None:
    one = case(name)
    with pytest.raises(json.JSONDecodeError):
        json.loads(one.output)
    with pytest.raises(ParseError):
        parse_records(one.output)


def test_the_recordings_are_all_there() -> None:
    assert len(JOBS) > 150
    assert len(NODES) > 15
    assert {one.name for one in JOBS} > DAMAGED


@pytest.mark.parametrize(
    "one", [one for one in cases("qstat") if one.name.endswith(".plain") and "dsv" not in one.argv], ids=named
)
def test_json_says_what_the_plain_list_of_the_same_job_says(one: Case) -> None:
    [(pbs_id, plain)] = said_plainly(one.output).items()
    for clients in ("master", "v23_06_06"):
        name = one.name.replace(".plain", f".{clients}")
        if name in DAMAGED or not any(other.name == name for other in JOBS):
            continue
        job = parse_records(case(name).output)[pbs_id]
        same = set(COMPARED) - {"comment", "project", "Account_Name"}
        assert {key: value for key, value in chosen(job).items() if key in same} == {
            key: value for key, value in chosen(plain).items() if key in same
        }
        assert job["Resource_List.select"] == plain["Resource_List.select"]


@pytest.mark.parametrize("dsv", ["several_all_known_x_dsv", "one_dsv_delim", "one_running_dsv"])
def test_the_layout_that_we_ask_for_says_what_the_plain_one_says(dsv: str) -> None:
    """They were recorded with other separators; nothing else in them is another."""
    plain = "one_running_plain" if dsv == "one_running_dsv" else "several_all_known_x_plain"
    written = said_plainly(case(f"qstat/{plain}").output)
    text = case(f"qstat/{dsv}").output.replace("@@" if dsv == "one_dsv_delim" else "|", SEPARATOR)
    for pbs_id, job in parse_records(text).items():
        assert job.keys() == written[pbs_id].keys()
        for name, value in job.items():
            if name not in ("Variable_List", "Submit_arguments", "resources_used.walltime"):
                assert value == written[pbs_id][name]
        assert job["Variable_List"] == written[pbs_id]["Variable_List"]


def test_a_version_that_prints_only_the_first_of_several_does_so_in_json_alone() -> None:
    master, v23 = case("qstat/several_all_known_x"), case("qstat/several_all_known_x_v23")
    dsv = case("qstat/several_all_known_x_dsv").output.replace("|", SEPARATOR)
    assert list(parse_records(master.output)) == ["29.hpc-head"]
    assert list(parse_records(v23.output)) == ["29.hpc-head", "26.hpc-head", "30.hpc-head"]
    assert list(parse_records(dsv)) == ["29.hpc-head", "26.hpc-head", "30.hpc-head"]


@pytest.mark.parametrize(
    ("name", "text"), [("1e5", "1e5"), ("007", "007"), ("12345", "12345"), ("7e3000", "7e3000"), ("true", "true")]
)
def test_names_that_look_like_numbers_stay_what_they_are(name: str, text: str) -> None:
    for clients in ("master", "v23"):
        [job] = parse_records(case(f"json/name_{name}.{clients}").output).values()
        assert job["Job_Name"] == text


@pytest.mark.parametrize("one", NODES, ids=named)
def test_each_recorded_list_of_nodes_is_read_as_written(one: Case) -> None:
    document = json.loads(one.output)
    read = parse_records(one.output, "nodes")
    assert read.keys() == document.get("nodes", {}).keys()
    for name, node in document.get("nodes", {}).items():
        for key in ("state", "Mom", "comment", "queue"):
            assert read[name].get(key) == node.get(key)
        for key, value in node.get("resources_available", {}).items():
            assert read[name][f"resources_available.{key}"] == str(value)


def test_json_says_what_the_plain_list_of_nodes_says() -> None:
    nodes = parse_records(case("nodes/pbsnodes_av_json_free").output, "nodes")
    said = case("nodes/pbsnodes_av_plain_free").output
    blocks = [block.split("\n") for block in said.split("\n\n") if block.strip()]
    plain = {lines[0].strip(): dict(line.strip().split(" = ", 1) for line in lines[1:]) for lines in blocks}
    assert nodes.keys() == plain.keys()
    for name, values in nodes.items():
        for key, value in values.items():
            if key.startswith("resources_available.") or key in ("state", "Mom", "sharing", "ntype"):
                assert value == plain[name][key]


@pytest.mark.parametrize(
    ("json_name", "table"), [("qstat/all", "qstat/all_plain"), ("qstat/all_x", "qstat/all_x_plain_w")]
)
def test_json_says_what_the_table_of_all_jobs_says(json_name: str, table: str) -> None:
    """Ids and states; the server is named as far as the column reaches."""
    jobs = parse_records(case(json_name).output)
    rows = [line.split() for line in case(table).output.split("\n") if re.match(r"[0-9]+(\[\])?\.", line)]
    column = -2 if table.endswith("plain") else 9
    assert [(row[0].split(".")[0], row[column]) for row in rows] == [
        (pbs_id.split(".")[0], job["job_state"]) for pbs_id, job in jobs.items()
    ]


@pytest.mark.parametrize("one", [one for one in cases("qselect") if one.exit_code == 0], ids=named)
def test_each_recorded_selection_is_read_as_written(one: Case) -> None:
    assert parse_ids(one.output) == one.output.split()


@pytest.mark.parametrize("one", [one for one in cases("qsub") if "--version" not in one.argv], ids=named)
def test_each_recorded_submission_has_an_id_where_it_made_a_job(one: Case) -> None:
    assert parse_submitted(one.output) == (one.output.strip() or None)
    assert parse_submitted(one.errors) is None
    if one.exit_code != 0:
        assert parse_submitted(one.output) is None


def test_a_greeting_before_the_id_is_no_id() -> None:
    assert parse_submitted("Welcome to 25 nodes\n\n31.pbs-01.example.org\n") == "31.pbs-01.example.org"
    assert parse_submitted("") is None


def test_values_may_hold_all_but_the_separator() -> None:
    text = f"Job Id: 7.s{SEPARATOR}Job_Name=a{SEPARATOR}comment=line 1\nJob Id: 8.s\n|b=c{SEPARATOR}job_state=R\n"
    text += f"Job Id: 9.s{SEPARATOR}Job_Name=b\n"
    assert parse_records(text) == {
        "7.s": {"Job_Name": "a", "comment": "line 1\nJob Id: 8.s\n|b=c", "job_state": "R"},
        "9.s": {"Job_Name": "b"},
    }


def dsv(*fields: str) -> str:
    return SEPARATOR.join(["Job Id: 7.s", *fields]) + "\n"


@pytest.mark.parametrize(
    "text",
    [
        dsv("Job_Name=a")[:-1],
        "Hello\n",
        dsv("Job_Name=a") * 2,
        dsv("Job_Name=a", "Job_Name=b"),
        dsv("Job_Name=a", "job_state"),
        dsv("Job_Name=a", "two words=x"),
        "{",
        "{}]",
        '{"Jobs": []}',
        '{"Jobs": {"7.s": 1}}',
        '{"Jobs": null}',
        '{"a":' * 100_000,
    ],
)
def test_what_is_damaged_is_no_answer(text: str) -> None:
    with pytest.raises(ParseError):
        parse_records(text)


@pytest.mark.parametrize("text", ["7", "7.s\nWelcome\n", "7.s\n8.", "-x\n"])
def test_what_is_no_list_of_ids_is_no_answer(text: str) -> None:
    with pytest.raises(ParseError):
        parse_ids(text)


PIECES = st.sampled_from(
    ["Job Id: 7.s", SEPARATOR, "=", "\n", "{", "}", '"Jobs":', '"a":', ",", "Job_Name", "é", "1e9"]
)


@given(st.text() | st.lists(PIECES).map("".join) | st.binary().map(lambda data: data.decode(errors="replace")))
def test_any_text_raises_nothing_else(text: str) -> None:
    for parse in (parse_records, parse_ids, parse_submitted):
        with suppress(ParseError):
            parse(text)  # type: ignore[operator]
