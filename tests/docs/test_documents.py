"""Documents as such: links lead somewhere, examples are right, commands exist, nothing of somebody's machine."""

from __future__ import annotations

import ast
import json
import re
import shlex
from collections.abc import Iterator

import pytest

from docs import source
from docs.markdown import ROOT, Block, Page, pages
from firstkit.config import parse_config

PAGES = {page.name: page for page in pages()}
EACH = pytest.mark.parametrize("name", PAGES)
README_LINES = 150


def test_the_documents_are_there() -> None:
    assert {"README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "docs/glossary.md"} <= set(PAGES)
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")


def test_readme_is_short() -> None:
    assert len(PAGES["README.md"].text.splitlines()) < README_LINES


@EACH
def test_links(name: str) -> None:
    page = PAGES[name]
    for link in page.links:
        if link.startswith(("https://", "http://")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.path.parent / path).resolve() if path else page.path
        assert target.exists(), f"{name} links to {link}"
        if anchor:
            assert anchor in Page(target).anchors, f"{name} links to {link}"


def test_every_page_can_be_found() -> None:
    """From the README, over any number of links."""
    seen: set[str] = set()
    waiting = ["README.md"]
    while waiting:
        page = PAGES[waiting.pop()]
        seen.add(page.name)
        targets = {(page.path.parent / link.partition("#")[0]).resolve() for link in page.links if "://" not in link}
        waiting += [name for name, other in PAGES.items() if other.path.resolve() in targets and name not in seen]
    assert set(PAGES) - seen == set()


def blocks(*languages: str) -> list[tuple[str, Block]]:
    return [(name, block) for name, page in PAGES.items() for block in page.blocks if block.language in languages]


def test_every_block_names_its_language() -> None:
    known = {"", "console", "yaml", "json", "python", "javascript", "text", "ini"}
    assert {block.language for page in PAGES.values() for block in page.blocks} <= known


@pytest.mark.parametrize(("name", "block"), blocks("yaml"))
def test_configuration_examples(name: str, block: Block) -> None:
    assert parse_config(block.text, name).models


@pytest.mark.parametrize(("name", "block"), blocks("json"))
def test_json_examples(name: str, block: Block) -> None:
    json.loads(block.text)


@pytest.mark.parametrize(("name", "block"), blocks("python"))
def test_python_examples(name: str, block: Block) -> None:
    ast.parse(block.text)


def make_targets() -> set[str]:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    return set(re.findall(r"^([a-z][a-z-]*)\s*:(?!=)", text, re.MULTILINE))


@EACH
def test_make_targets(name: str) -> None:
    page = PAGES[name]
    named = {target for block in page.blocks for target in re.findall(r"^\$ make ([a-z-]+)", block.text, re.MULTILINE)}
    named |= set(re.findall(r"`make ([a-z-]+)[^`]*`", page.prose))
    assert named <= make_targets()


def first_commands(page: Page) -> Iterator[list[str]]:
    """The words of every ``first ...`` in blocks of the console and in code in the prose."""
    for block in page.blocks:
        if block.language == "console":
            for line in re.findall(r"^\$ (.*)$", block.text.replace("\\\n", ""), re.MULTILINE):
                for part in re.split(r"&&|\|", line.partition(" #")[0]):
                    words = shlex.split(part)
                    if words and words[0].rpartition("/")[2] == "first":
                        yield words[1:]
    for text in re.findall(r"`(?:\.venv/bin/)?first ([^`]+)`", page.prose):
        yield shlex.split(text.replace("...", ""))


@EACH
def test_first_commands(name: str) -> None:
    known = source.commands()
    groups = {command.rpartition(" ")[0] for command in known}
    for words in first_commands(PAGES[name]):
        path = "first"
        while words and f"{path} {words[0]}" in known.keys() | groups:
            path += f" {words.pop(0)}"
        options = {word.partition("=")[0] for word in words if word.startswith("--")} - {"--help", "--version"}
        if path in known:
            assert options <= source.options_of(known[path]), f"{name}: {path} {words}"
        else:
            assert path in groups - {"first"}, f"{name}: {path} {words}"
            assert not words or "|" in words[0], f"{name}: {path} {words}"


FOREIGN = re.compile(
    r"(?<!\w)/(?:work|root|home|tmp|workspace)/|\bDESIGN\.md\b|\bSTYLE\.md\b|\bLLM\b|\bAI-generated\b|\bassistant\b"
    r"|\bTODO\b|\bFIXME\b|\bTBD\b"
)


@EACH
def test_nothing_of_a_machine_or_of_our_tools(name: str) -> None:
    assert FOREIGN.findall(PAGES[name].text) == []


def test_tests_that_promises_name() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGES["docs/promises.md"].text)
    assert len(named) >= 30
    for path, function in named:
        text = (ROOT / path).read_text(encoding="utf-8")
        assert re.search(rf"^(?:async )?def {function}\(", text, re.MULTILINE), f"{path}::{function}"


def test_every_promise_is_held_or_said_to_be_open() -> None:
    page = PAGES["docs/promises.md"]
    promises = [heading for heading in page.headings if re.match(r"\d+\. ", heading)]
    assert [int(heading.partition(".")[0]) for heading in promises] == list(range(1, 16))
    for heading in promises:
        assert "::test_" in page.section(heading) or "Not yet:" in page.section(heading)
