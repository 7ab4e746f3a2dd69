"""What the code has stands in the reference, and nothing else does."""

from __future__ import annotations

import re
from typing import Annotated, Any

import pytest
import yaml
from prometheus_client.core import Metric
from pydantic import BaseModel, TypeAdapter
from pydantic.fields import FieldInfo

from docs import source
from docs.markdown import Page, codes
from firstkit.accounting import spool
from firstkit.links.frames import FrameType
from firstkit.links.messages import Outcome
from firstkit.metrics import REGISTRY, REQUESTS
from firstkit.onsite import command as onsite_command
from firstkit.onsite import place
from firstkit.schedulers import records, scheduler
from firstkit.states import JobState, ModelStatus, ReplicaState

SECTIONS = source.config_sections()


# -- configuration -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("heading", SECTIONS)
def test_configuration_keys(heading: str) -> None:
    documented = Page("docs/reference/configuration.md").rows(heading)
    assert list(documented) == list(SECTIONS[heading].model_fields)


@pytest.mark.parametrize("heading", SECTIONS)
def test_configuration_defaults(heading: str) -> None:
    documented = Page("docs/reference/configuration.md").rows(heading)
    for name, field in SECTIONS[heading].model_fields.items():
        _check_default(f"{heading}.{name}", field, documented[name][2])


def _check_default(where: str, field: FieldInfo, cell: str) -> None:
    if field.is_required():
        assert cell == "required", where
    elif isinstance(field.default, BaseModel):
        assert cell == "all defaults", where
    elif field.default is None or where == "server.state_dir":
        assert cell not in ("required", "all defaults"), where  # a sentence says what happens without it
    else:
        assert len(codes(cell)) == 1, f"{where}: the default in code is needed"
        annotation: Any = Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation
        assert TypeAdapter(annotation).validate_python(yaml.safe_load(codes(cell)[0])) == field.default, where


def test_environment_variables() -> None:
    documented = set(Page("docs/reference/configuration.md").rows("Environment variables"))
    used = {text for text in source.literals() if re.fullmatch(r"FIRST_[A-Z_]+", text)}
    assert documented == used


# -- errors --------------------------------------------------------------------------------------------------------


def test_error_codes() -> None:
    documented = Page("docs/reference/errors.md").rows()
    codes_of_code = source.error_codes()
    assert set(documented) == {error.code for error in codes_of_code}


def test_error_statuses() -> None:
    documented = Page("docs/reference/errors.md").rows()
    for code, cells in documented.items():
        kinds = [error for error in source.error_codes() if error.code == code and error.status is not None]
        assert all(str(error.status) in cells[1] for error in kinds), code
        assert not kinds or set(codes(cells[2])) == {error.type for error in kinds}, code


# -- metrics -------------------------------------------------------------------------------------------------------


def metrics() -> dict[str, tuple[str, list[str]]]:
    """Name as exposed -> type and labels. Those of our own collector need a request to be there."""
    series = REQUESTS.of_model("documented")
    series.count("chat/completions", Outcome.COMPLETE.value)
    for tally in (series.queue, series.ttft, series.gap):
        tally.observe(1.0)
    found: dict[str, tuple[str, list[str]]] = {}
    for collector in REGISTRY._collector_to_names:
        for family in [collector] if hasattr(collector, "_labelnames") else collector.collect():
            found |= _metric(family)
    return found


def _metric(family: Any) -> dict[str, tuple[str, list[str]]]:
    kind = family.type if isinstance(family, Metric) else family._type
    name = family.name if isinstance(family, Metric) else family._name
    labels = list(getattr(family, "_labelnames", ()))
    return {f"{name}_total" if kind == "counter" else name: (kind, labels)}


def test_metrics() -> None:
    documented = Page("docs/reference/metrics.md").rows()
    assert {name: (cells[1], codes(cells[2])) for name, cells in documented.items()} == metrics()


# -- commands ------------------------------------------------------------------------------------------------------


def test_commands() -> None:
    page = Page("docs/reference/cli.md")
    documented = {heading for heading in page.headings if heading.startswith("first ")}
    assert documented == set(source.commands())


def test_options() -> None:
    page = Page("docs/reference/cli.md")
    common = set(page.rows("Options of most commands"))
    for name, command in source.commands().items():
        own = set(page.rows(name))
        actual = source.options_of(command)
        assert own - common <= actual, name
        assert actual <= own | common, name


# -- HTTP ----------------------------------------------------------------------------------------------------------


def test_routes_and_their_scopes() -> None:
    documented = Page("docs/reference/http-api.md").rows("Keys and scopes")
    assert {route: cells[1].strip("`") for route, cells in documented.items()} == source.routes()


def test_headers() -> None:
    page = Page("docs/reference/http-api.md")
    documented = {name.lower() for name in {*page.rows("Request headers"), *page.rows("Answer headers")}}
    ours = r"x-(first-[a-z-]+|request-id|should-retry|ratelimit-[a-z-]+)"
    lines = [line for text in source.literals() for line in re.findall(rf"(?:^|(?<=\n)){ours}: (?:%|true)", text)]
    used = {text for text in source.literals() if re.fullmatch(ours, text)} | {f"x-{line}" for line in lines}
    assert len(used) >= 8
    assert used <= documented
    assert {name for name in documented if name.startswith("x-")} <= used


# -- frames --------------------------------------------------------------------------------------------------------


def test_frame_types() -> None:
    text = Page("docs/reference/frames.md").section("Types")
    documented = re.findall(r"^\| (\d+) \| ([A-Z]+) \|", text, re.MULTILINE)
    assert {(int(number), name) for number, name in documented} == {(kind.value, kind.name) for kind in FrameType}


# -- words ---------------------------------------------------------------------------------------------------------

WORDS = """gateway controller cluster scheduler carrier job pilot link engine model deployment replica endpoint batch
line usage ledger project drain"""


@pytest.mark.parametrize("word", WORDS.split())
def test_glossary(word: str) -> None:
    assert re.search(rf"^\| {word} \|", Page("docs/glossary.md").text, re.MULTILINE)


@pytest.mark.parametrize(
    ("heading", "states"),
    [
        ("States of a job", JobState),
        ("States of a replica", ReplicaState),
        ("What users see of a model", ModelStatus),
        ("How a request ends", Outcome),
    ],
)
def test_states(heading: str, states: Any) -> None:
    assert list(Page("docs/glossary.md").rows(heading)) == [state.value for state in states]


# -- files ---------------------------------------------------------------------------------------------------------

FILES = (
    *(records.JOB, records.GRANT, records.KEEPER, records.FINAL, records.SEEN, scheduler.LOG),
    *(onsite_command.PILOT_FILE, onsite_command.CLAIM),
    *(place.SOCKET, place.LOG, place.KEY_FILE, spool.BAD_LINES),
)


@pytest.mark.parametrize("name", FILES)
def test_files(name: str) -> None:
    documented = " ".join(Page("docs/reference/files.md").rows())
    assert name in documented


def test_sockets_and_locks() -> None:
    documented = " ".join(Page("docs/reference/files.md").rows())
    used = {text.strip("/") for text in source.literals() if re.fullmatch(r"/?[a-z]+\.(sock|lock|db)", text)}
    assert len(used) >= 7
    assert [name for name in sorted(used) if name not in documented] == []
