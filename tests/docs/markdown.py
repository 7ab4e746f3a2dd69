"""Just enough of Markdown to hold our documents to the code: headings, tables, fenced blocks, links."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_HEADING = re.compile(r"^#{1,6} (.+?)\s*$", re.MULTILINE)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_CODE = re.compile(r"`([^`]+)`")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language and its text without the indentation of the list that it stands in."""

    language: str
    text: str


class Page:
    """One Markdown file of the project, by its path below the root."""

    def __init__(self, path: str | Path) -> None:
        self.path = ROOT / path
        self.name = str(self.path.relative_to(ROOT))
        self.text = self.path.read_text(encoding="utf-8")
        self.prose = _FENCE.sub("", self.text)
        self.blocks = [Block(found[2], textwrap.dedent(found[3])) for found in _FENCE.finditer(self.text)]

    @property
    def headings(self) -> list[str]:
        return _HEADING.findall(self.prose)

    @property
    def anchors(self) -> set[str]:
        """The targets that links may name after ``#``, as forges make them of headings."""
        return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in self.headings}

    @property
    def links(self) -> list[str]:
        return _LINK.findall(self.prose)

    def section(self, heading: str) -> str:
        """The text from ``heading`` to the next one; fails when there is no such heading."""
        parts = re.split(r"^#{1,6} (.+?)\s*$", self.prose, flags=re.MULTILINE)
        found = dict(zip(parts[1::2], parts[2::2], strict=True))
        assert heading in found, f"{self.name} has no heading '{heading}'"
        return found[heading]

    def rows(self, heading: str | None = None) -> dict[str, list[str]]:
        """Rows of all tables (below ``heading``) by each word in code of their first cell."""
        text = self.prose if heading is None else self.section(heading)
        found: dict[str, list[str]] = {}
        for line in re.findall(r"^\|(.*)\|\s*$", text, re.MULTILINE):
            cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)]
            for word in codes(cells[0]):
                assert word not in found, f"{self.name} has two rows for {word} below '{heading}'"
                found[word] = cells
        return found


def codes(text: str) -> list[str]:
    """All that stands in code in ``text``."""
    return _CODE.findall(text)


def pages() -> list[Page]:
    """Every document of the project."""
    paths = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("bench/*.md")]
    return [Page(path) for path in sorted(paths)]
