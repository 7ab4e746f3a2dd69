"""Somebody who follows a page to the letter: the variables that it sets, then its code, with the real libraries."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from docs.markdown import ROOT, Page
from lab import Lab, wait_for

FOLDER = ROOT / ".cache" / "clients"
LIMIT_S = 100
WORDS = "word0 word1 word2 word3 word4 word5 word6 word7 "
"""The usual answer of the engine whose words are known."""
NO_INTERNET = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "HTTPS_PROXY": "http://127.0.0.1:9", "NO_PROXY": "127.0.0.1"}
"""Nothing but the gateway may be asked: at many centres nothing else can be."""
RUNNERS = {"python": (".py", FOLDER / "bin" / "python"), "javascript": (".mjs", Path("node"))}


@dataclass
class Reader:
    """One user with a key of their own, at one FIRST. ``folder``: where they work, and their home."""

    lab: Lab
    folder: Path
    key: str = ""

    def __post_init__(self) -> None:
        self.key = self.lab.make_key(self.folder.name, ("inference",))

    def follows(self, name: str, language: str = "python") -> str:
        """What the code of a page prints, all of its blocks in a row."""
        page = Page(f"docs/howto/clients/{name}.md")
        suffix, program = RUNNERS[language]
        script = self.folder / f"page{suffix}"
        script.write_text("\n\n".join(block.text for block in page.blocks if block.language == language))
        lines = [line[2:] for block in page.blocks for line in block.text.splitlines() if line.startswith("$ eval ")]
        assert lines, f"{page.name} sets no variables"
        done = subprocess.run(
            ["bash", "-euc", "\n".join([*lines, 'exec "$0" "$@"']), str(program), str(script)],
            cwd=self.folder, env=self._environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=LIMIT_S, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{page.name}:\n{done.stdout}\n{done.stderr}\n{self.lab.logs()}"
        assert self.key not in done.stdout
        return done.stdout

    def used(self, count: int) -> list[str]:
        """Endpoints of the requests that the ledger has of this user, all of them complete."""
        rows: list[Any] = wait_for("the ledger has it", lambda: self._rows() if len(self._rows()) >= count else None)
        assert {row["outcome"] for row in rows} == {"complete"}
        return sorted(row["endpoint"] for row in rows)

    def _rows(self) -> list[Any]:
        return [row for row in self.lab.usage() if row["key_prefix"] == self.key.split("-")[1]]

    def _environment(self) -> dict[str, str]:
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        told = {"FIRST_CONFIG": str(self.lab.config_path), "FIRST_API_KEY": self.key}
        return {"PATH": path, "HOME": str(self.folder), "LANG": "C.UTF-8", **NO_INTERNET, **told}
