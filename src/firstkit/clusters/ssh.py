"""The carrier to a login node: scheduler commands are sessions of one SSH connection, and the verb is all they say.

The key that is used may do nothing there but the verbs: ``authorized_keys`` names our gate as its forced command.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncssh

from firstkit.clock import monotonic
from firstkit.clusters.carrier import WORDS_LIMIT, result_of
from firstkit.errors import SchedulerSilent
from firstkit.onsite.command import REQUEST_LIMIT_BYTES

SESSIONS = 4
"""Calls at a time. Servers allow ten sessions a connection unless they are told otherwise (MaxSessions)."""
ANSWER_LIMIT_BYTES = 16 * 1024**2
KEEPALIVE_S = 5.0
MISSES = 3
"""A peer that says nothing to so many questions, KEEPALIVE_S apart, is gone."""
FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 30.0

logging.getLogger("asyncssh").setLevel(logging.WARNING)  # it would tell of every session


@dataclass(frozen=True)
class Login:
    """Where and as whom. The key file may not be readable by others; only keys in ``known_hosts`` are trusted."""

    host: str
    user: str
    key_file: Path
    known_hosts: Path
    port: int = 22
    connect_timeout_s: float = 10.0

    def __str__(self) -> str:
        return f"{self.user}@{self.host}:{self.port}"


class BackOff:
    """How long not to try after failures in a row: twice as long each time, and never quite as long as others wait."""

    def __init__(self, draw: Callable[[float, float], float] = random.uniform) -> None:
        self._draw = draw
        self._failures = 0
        self._until = 0.0

    def failed(self, now: float) -> None:
        longest = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** min(self._failures, 16))
        self._failures += 1
        self._until = now + self._draw(longest / 2, longest)

    def succeeded(self) -> None:
        self._failures, self._until = 0, 0.0

    def wait_s(self, now: float) -> float:
        return max(0.0, self._until - now)


class SshCarrier:
    """Runs verbs on a login node. One connection, opened when it is needed and kept; lost, it is opened again by the
    next call, and after attempts that failed not before a while has passed.

    A verb that gave no answer in time may have done its work all the same: the cluster's side ends by itself.
    """

    def __init__(self, login: Login, time_limit_s: float) -> None:
        self._login = login
        self._time_limit_s = time_limit_s
        self._sessions = asyncio.Semaphore(SESSIONS)
        self._connection: asyncssh.SSHClientConnection | None = None
        self._attempt: asyncio.Task[asyncssh.SSHClientConnection] | None = None
        self._back_off = BackOff()
        self._has_answered = False
        """The connection has carried an answer: its loss is no reason to wait."""
        self._reason = ""

    async def run(self, verb: str, request: dict[str, Any]) -> Any:
        data = json.dumps(request).encode()
        if len(data) > REQUEST_LIMIT_BYTES:
            raise SchedulerSilent(f"'{verb}' would be longer than {REQUEST_LIMIT_BYTES} bytes")
        try:
            async with asyncio.timeout(self._login.connect_timeout_s + self._time_limit_s), self._sessions:
                connection = await self._connected()
                return await self._ask(connection, verb, data)
        except TimeoutError:
            raise SchedulerSilent(
                f"'{verb}' on {self._login.host} did not answer within {self._time_limit_s:g} s"
            ) from None

    async def close(self) -> None:
        """Let go of the connection. A later call opens another."""
        if self._attempt is not None:
            self._attempt.cancel()
            await asyncio.wait([self._attempt])
            self._attempt = None
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
            await connection.wait_closed()

    # -- the connection ----------------------------------------------------------------------------------------------

    async def _connected(self) -> asyncssh.SSHClientConnection:
        """The connection; all that wait for one wait for the same attempt, which outlives each of them."""
        if self._connection is not None and not self._connection.is_closed():
            return self._connection
        if self._attempt is None or self._attempt.done():
            if (wait_s := self._back_off.wait_s(monotonic())) > 0:
                raise SchedulerSilent(f"{self._reason}; next attempt in {wait_s:.0f} s")
            self._attempt = asyncio.create_task(self._connect())
            self._attempt.add_done_callback(_look_at)
        return await asyncio.shield(self._attempt)

    async def _connect(self) -> asyncssh.SSHClientConnection:
        self._connection, self._has_answered = None, False
        try:
            self._connection = await open_connection(self._login)
        except SchedulerSilent as exc:
            self._reason = exc.message
            self._back_off.failed(monotonic())
            raise
        return self._connection

    # -- one call ----------------------------------------------------------------------------------------------------

    async def _ask(self, connection: asyncssh.SSHClientConnection, verb: str, data: bytes) -> Any:
        try:
            output, errors, status = await _session(connection, verb, data)
        except asyncssh.ChannelOpenError as exc:
            if connection.is_closed():
                raise self._lost(connection, verb, exc) from exc
            raise SchedulerSilent(
                f"{self._login.host} opens no session for '{verb}' ({_line(exc.reason)}): "
                f"its MaxSessions has to be {SESSIONS} or more"
            ) from exc
        except (OSError, asyncssh.Error) as exc:
            raise self._lost(connection, verb, exc) from exc
        if connection.is_closed() and not output:
            raise self._lost(connection, verb, None)
        try:
            answer = json.loads(output)
        except ValueError:
            said = f": {_line(errors)}" if errors.strip() else ""
            raise SchedulerSilent(
                f"'{verb}' on {self._login.host} gave no answer (exit status {status}){said}"
            ) from None
        self._has_answered = True
        self._back_off.succeeded()
        return result_of(answer)

    def _lost(self, connection: asyncssh.SSHClientConnection, verb: str, exc: Exception | None) -> SchedulerSilent:
        """The connection broke. One that never carried an answer counts as an attempt that failed."""
        words = f": {_line(str(exc))}" if exc is not None and str(exc) else ""
        self._reason = f"the connection to {self._login.host} was lost during '{verb}'{words}"
        if self._connection is connection:
            self._connection = None
            if not self._has_answered:
                self._back_off.failed(monotonic())
        connection.abort()
        return SchedulerSilent(self._reason)


async def open_connection(login: Login) -> asyncssh.SSHClientConnection:
    """A connection by this key to a host whose key is known; raises SchedulerSilent with what is in the way.

    Nothing else is tried: no agent, no password, no other key, no file in ~/.ssh.
    """
    _check_files(login)
    try:
        return await asyncssh.connect(
            login.host,
            login.port,
            username=login.user,
            config=None,
            known_hosts=str(login.known_hosts),
            client_keys=[str(login.key_file)],
            agent_path=None,
            password=None,
            preferred_auth="publickey",
            public_key_auth=True,
            password_auth=False,
            kbdint_auth=False,
            host_based_auth=False,
            gss_host=None,
            x509_trusted_certs=None,
            x509_trusted_cert_paths=[],
            agent_forwarding=False,
            x11_forwarding=False,
            connect_timeout=login.connect_timeout_s,
            login_timeout=login.connect_timeout_s,
            keepalive_interval=KEEPALIVE_S,
            keepalive_count_max=MISSES,
        )
    except asyncssh.HostKeyNotVerifiable as exc:
        raise SchedulerSilent(
            f"the host key of {login.host}:{login.port} is not in {login.known_hosts}, or is another than there: "
            "ask the cluster's operators for its fingerprint before you correct that file"
        ) from exc
    except asyncssh.PermissionDenied as exc:
        raise SchedulerSilent(
            f"{login} does not accept the key {login.key_file}: its line has to be in authorized_keys there, "
            "see 'first cluster install'"
        ) from exc
    except (asyncssh.KeyImportError, asyncssh.KeyEncryptionError) as exc:
        raise SchedulerSilent(f"{login.key_file} is no private key without a passphrase") from exc
    except asyncssh.ConnectionLost as exc:
        raise SchedulerSilent(
            f"{login.host}:{login.port} closed the connection before the login: {_line(exc.reason)}"
        ) from exc
    except asyncssh.Error as exc:
        raise SchedulerSilent(f"no SSH connection to {login}: {_line(exc.reason)}") from exc
    except TimeoutError as exc:
        raise SchedulerSilent(
            f"{login.host}:{login.port} did not let us in within {login.connect_timeout_s:g} s"
        ) from exc
    except (OSError, ValueError) as exc:
        raise SchedulerSilent(f"no connection to {login.host}:{login.port}: {_line(str(exc))}") from exc


def _check_files(login: Login) -> None:
    for path, what in ((login.key_file, "key_file"), (login.known_hosts, "known_hosts")):
        try:
            with path.open("rb") as file:
                mode = os.fstat(file.fileno()).st_mode
        except OSError as exc:
            raise SchedulerSilent(f"{what}: {path} cannot be read: {exc.strerror}") from exc
        if what == "key_file" and mode & 0o077:
            raise SchedulerSilent(f"key_file: others may read {path}: chmod 600 it")


async def _session(connection: asyncssh.SSHClientConnection, verb: str, data: bytes) -> tuple[bytes, bytes, int | None]:
    """What a verb said on its two outputs, and its exit status. Raises OSError and asyncssh's errors."""
    process: asyncssh.SSHClientProcess[bytes] = await connection.create_process(verb, encoding=None, term_type=None)
    try:
        _, output, errors = await asyncio.gather(
            _send(process.stdin, data), _all_of(process.stdout, ANSWER_LIMIT_BYTES), _all_of(process.stderr, None)
        )
        await process.wait_closed()
        return output, errors, process.exit_status
    finally:
        process.close()


async def _send(stdin: asyncssh.SSHWriter[bytes], data: bytes) -> None:
    try:
        stdin.write(data)
        await stdin.drain()
        stdin.write_eof()
    except (BrokenPipeError, ConnectionResetError):
        return  # it has said what it had to say without reading; the outputs tell


async def _all_of(stream: asyncssh.SSHReader[bytes], limit_bytes: int | None) -> bytes:
    """All that comes, which may be ``limit_bytes`` at most; None: what is over WORDS_LIMIT is thrown away."""
    found = bytearray()
    while data := await stream.read(65536):
        if limit_bytes is None:
            found += data[: WORDS_LIMIT - len(found)]
        elif len(found) + len(data) > limit_bytes:
            raise SchedulerSilent(f"an answer of more than {limit_bytes} bytes")
        else:
            found += data
    return bytes(found)


def _line(words: str | bytes) -> str:
    """Foreign words on one short line of what can be printed."""
    text = words.decode(errors="replace") if isinstance(words, bytes) else words
    return "".join(c if c.isprintable() else " " for c in " ".join(text.split()))[:WORDS_LIMIT]


def _look_at(attempt: asyncio.Task[asyncssh.SSHClientConnection]) -> None:
    """An attempt may fail when nobody waits for it any more; that has been noted."""
    if not attempt.cancelled():
        attempt.exception()
