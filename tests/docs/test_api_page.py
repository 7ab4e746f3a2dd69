"""The page about parameters is that of the present code, and its words are those of the tables of the translation."""

from __future__ import annotations

import pytest

from docs import api_page
from docs.api_page import PAGE, fate, parameters, render, rows
from firstkit.gateway.apis import APIS, CHAT, MESSAGES_API, RESPONSES_API, Api
from firstkit.gateway.call import REFUSED_FIELDS
from firstkit.translation import messages, responses


def test_the_page_is_that_of_the_code() -> None:
    """If it is not: make api-page"""
    assert PAGE.read_text(encoding="utf-8") == render()


@pytest.mark.parametrize("api", APIS.values(), ids=lambda api: api.endpoint)
def test_every_parameter_has_its_word(api: Api) -> None:
    found = rows(api)
    assert [row.name for row in found] == parameters(api)
    words = {"passed", "translated", "read by FIRST", "dropped", "refused"}
    assert {row.passed for row in found} <= words
    assert {row.translated for row in found} <= (words if api.by_chat else {None})


@pytest.mark.parametrize(("api", "tables"), [(RESPONSES_API, responses), (MESSAGES_API, messages)])
def test_the_words_are_those_of_the_tables(api: Api, tables: object) -> None:
    """Which say what a translation shall do; the page says what it does."""
    said = {
        name: word.lower() for word in ("PASSED", "TRANSLATED", "DROPPED", "REFUSED") for name in vars(tables)[word]
    }
    by_us = {"store", "previous_response_id", "x_first"}
    for row in rows(api):
        if row.name in by_us:
            assert row.translated == "read by FIRST"
        else:
            assert row.translated == said.get(row.name, "passed"), row
        if row.translated == "refused":
            assert row.passed == "refused", "also by an engine that would do it"


def test_what_the_page_says_of_all_routes() -> None:
    for api in APIS.values():
        assert {fate(api, name, api.capability) for name in REFUSED_FIELDS} == {"refused"}
        assert fate(api, "x_first", api.capability) == "read by FIRST"
        assert fate(api, "some_option_of_an_engine", api.capability) == "passed"
        if api.by_chat:
            assert fate(api, "some_option_of_an_engine", CHAT.capability) == "passed"
    assert set(api_page.TYPES) | set(api_page.BY_ENGINES) == set(APIS.values())
