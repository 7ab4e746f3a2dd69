"""The carrier to this very machine: scheduler commands are subprocesses of the controller."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from firstkit.clusters.carrier import LOCAL_LIMIT_S, WORDS_LIMIT, result_of
from firstkit.clusters.zipapp import install
from firstkit.errors import SchedulerSilent
from firstkit.schedulers.local import job_environment

DEVICES = "CUDA_VISIBLE_DEVICES"


class LocalCarrier:
    """Runs the zipapp, which it installs at first use below ``state_dir``, with ``env`` added to a clean environment.

    A command that does not answer in time is killed: that ends the command, not the job that it may have submitted.
    """

    def __init__(
        self, state_dir: str, env: Mapping[str, str] | None = None, time_limit_s: float = LOCAL_LIMIT_S
    ) -> None:
        self._state_dir = state_dir
        self._env = dict(env or {})
        self._time_limit_s = time_limit_s
        self._zipapp: Path | None = None

    async def run(self, verb: str, request: dict[str, Any]) -> Any:
        try:
            output, errors, status = await self._answer(verb, json.dumps(request).encode())
        except TimeoutError:
            raise SchedulerSilent(f"'{verb}' did not answer within {self._time_limit_s:g} s") from None
        except OSError as exc:
            raise SchedulerSilent(f"'{verb}' could not be run: {exc.strerror}: {exc.filename}") from exc
        try:
            answer = json.loads(output)
        except ValueError:
            words = errors.decode(errors="replace").strip().rpartition("\n")[2][:WORDS_LIMIT]
            raise SchedulerSilent(f"'{verb}' gave no answer (exit status {status}): {words}") from None
        return result_of(answer)

    async def close(self) -> None:
        """Nothing is kept."""

    async def _answer(self, verb: str, request: bytes) -> tuple[bytes, bytes, int | None]:
        if self._zipapp is None or not self._zipapp.exists():
            self._zipapp = await asyncio.to_thread(install, self._state_dir)
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-I", str(self._zipapp), "cluster", verb,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            env=self._environment(), start_new_session=True,
        )  # fmt: skip
        try:
            async with asyncio.timeout(self._time_limit_s):
                output, errors = await process.communicate(request)
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        return output, errors, process.returncode

    def _environment(self) -> dict[str, str]:
        devices = {DEVICES: os.environ[DEVICES]} if DEVICES in os.environ else {}
        return {**job_environment(os.environ, self._env), **devices}
