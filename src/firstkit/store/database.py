"""The store's one door: transactions on SQLite or PostgreSQL, opened by URL, with trouble told in one word."""

from __future__ import annotations

import asyncio
import fcntl
import os
import sqlite3
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Insert, event
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, ProgrammingError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from firstkit.errors import ConfigError, StoreUnavailable
from firstkit.store import schema
from firstkit.store.urls import database_url, refuse_network_files

WAIT_S = 5.0
"""Longest wait for a connection, or for another writer of an SQLite file."""
OPEN_S = 60.0
"""Longest wait for another process that makes or migrates the database."""
_READS = "first_reads"
_SERVER_SETTINGS = {
    "application_name": "first",
    "statement_timeout": "15s",
    "lock_timeout": "5s",
    "idle_in_transaction_session_timeout": "60s",
}
_CONFIG_STATES = ("28", "3D")
"""SQLSTATE classes of a wrong user or password, and of a database that does not exist."""


class Database:
    """Transactions on one database. Open it with ``await Database.open(url)``, end with ``close()``.

    Whatever is committed is on disk: SQLite runs with a write-ahead log and ``synchronous=FULL``, because accepted
    means stored. Writers of one SQLite file wait for each other at most ``WAIT_S``.
    """

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._writers = asyncio.Lock() if engine.dialect.name == "sqlite" else None
        self._transactions = 0
        self._unused = asyncio.Event()
        self._unused.set()

    @classmethod
    async def open(cls, url: str, migrate: bool = True) -> Database:
        """Open the database at ``url``, making or migrating its tables where needed.

        Raises ConfigError when the URL is wrong, the schema is newer than this code (or older, without ``migrate``),
        or SQLite would lie on a network file system; StoreUnavailable when the database does not answer.
        """
        parsed = database_url(url)
        if parsed.get_backend_name() == "postgresql":
            return await cls._open_at_head(_postgresql_engine(parsed), migrate)
        path = Path(str(parsed.database))
        refuse_network_files(path)
        _make_file(path, migrate)
        async with _alone(path.with_name(path.name + ".lock")):
            return await cls._open_at_head(_sqlite_engine(parsed), migrate)

    @classmethod
    async def _open_at_head(cls, engine: AsyncEngine, migrate: bool) -> Database:
        db = cls(engine)
        try:
            await db._ensure_schema(migrate)
        except BaseException as exc:
            await db.close()
            if refusal := _refusal(exc):
                raise ConfigError(f"server.database: the server refuses us: {refusal}") from exc
            raise
        return db

    async def _ensure_schema(self, migrate: bool) -> None:
        async with self.read() as conn:
            version = await schema.stored_version(conn)
        if version == schema.HEAD:
            return
        if not migrate:
            raise ConfigError(
                f"server.database: its schema has version {version or 'none'}, this FIRST needs {schema.HEAD}; "
                "start 'first serve' once, which migrates it"
            )
        async with self.begin() as conn:
            await schema.migrate(conn)

    @property
    def dialect(self) -> str:
        """``sqlite`` or ``postgresql``."""
        return self._engine.dialect.name

    def text_of(self, statement: Insert) -> str:
        """An INSERT of all columns, in the table's order, as text for ``exec_driver_sql`` with many rows at once.

        Values go to the driver as they are: SQLAlchemy's conversion of a row costs more than its insertion.
        """
        return str(statement.compile(dialect=self._engine.dialect))

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that may write: committed at the end of the block, rolled back when it raises.

        Raises StoreUnavailable when the database does not answer, is full, or is locked for too long; breaches of the
        schema's rules pass through as IntegrityError. No other I/O belongs in the block, and no second ``begin``.
        """
        with _trouble_translated():
            async with self._sole_writer(), self._transaction(reads_only=False) as conn:
                yield conn

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that only reads, and on SQLite never waits for a writer. Raises like ``begin``."""
        with _trouble_translated():
            async with self._transaction(reads_only=True) as conn:
                yield conn

    async def close(self) -> None:
        """Close all connections, after the transactions that are under way: nobody would close those of them."""
        with suppress(TimeoutError):
            async with asyncio.timeout(WAIT_S):
                await self._unused.wait()
        await self._engine.dispose()

    @contextmanager
    def _in_use(self) -> Iterator[None]:
        self._transactions += 1
        self._unused.clear()
        try:
            yield
        finally:
            self._transactions -= 1
            if self._transactions == 0:
                self._unused.set()

    @asynccontextmanager
    async def _transaction(self, reads_only: bool) -> AsyncIterator[AsyncConnection]:
        with self._in_use():
            async with self._connected() as conn:
                await conn.execution_options(**{_READS: reads_only})
                async with conn.begin():
                    yield conn

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[AsyncConnection]:
        conn = self._engine.connect()
        try:
            await self._start(conn)
        except OSError as exc:  # asyncpg's own errors come as DBAPIError, those of the socket as they are
            raise StoreUnavailable("The database cannot be reached.") from exc
        try:
            yield conn
        finally:
            await _to_its_end(conn.close())

    async def _start(self, conn: AsyncConnection) -> None:
        """Take a connection. One of SQLite is opened to its end also for a caller that is cancelled meanwhile, because
        the driver would leave the thread of the connection behind."""
        if self._writers is None:
            await conn.start()
            return
        try:
            await _to_its_end(conn.start())
        except asyncio.CancelledError:
            if conn.sync_connection is not None:
                await conn.close()
            raise

    @asynccontextmanager
    async def _sole_writer(self) -> AsyncIterator[None]:
        """Let writers of this process queue in order here, not poll for SQLite's lock."""
        if self._writers is None:
            yield
            return
        async with asyncio.timeout(WAIT_S):
            await self._writers.acquire()
        try:
            yield
        finally:
            self._writers.release()


class _SQLiteConnection(sqlite3.Connection):
    """Rolls back before it closes. Otherwise the transaction of a caller who was cancelled would keep its lock for as
    long as anybody held one of its statements, be it in a traceback."""

    def close(self) -> None:
        with suppress(sqlite3.Error):
            self.rollback()
        super().close()


async def _to_its_end(work: Coroutine[Any, Any, Any]) -> None:
    """Do all of it also for a caller who is cancelled meanwhile, and who hears of that afterwards."""
    doing = asyncio.ensure_future(work)
    try:
        await asyncio.shield(doing)
    except asyncio.CancelledError:
        await asyncio.wait([doing])
        if not doing.cancelled():
            doing.exception()  # is nobody's any more
        raise


@contextmanager
def _trouble_translated() -> Iterator[None]:
    """Tell trouble of the database as StoreUnavailable; what the statement itself did wrong passes through."""
    try:
        yield
    except (IntegrityError, DataError, ProgrammingError):
        raise
    except DBAPIError as exc:
        state = getattr(exc.orig, "sqlstate", None) or ""
        if state.startswith("22"):  # data exceptions, which the driver does not tell apart
            raise DataError(exc.statement, None, exc.orig or exc, hide_parameters=True) from exc
        raise StoreUnavailable from exc
    except (PoolTimeout, TimeoutError) as exc:
        raise StoreUnavailable("The database did not answer in time.") from exc


def _refusal(error: BaseException) -> BaseException | None:
    """What a PostgreSQL server said when it knows our user, password or database not; None for other trouble."""
    said = getattr(error.__cause__, "orig", None)
    state = getattr(said, "sqlstate", None) or ""
    return said if state[:2] in _CONFIG_STATES else None


def _postgresql_engine(url: URL) -> AsyncEngine:
    return create_async_engine(
        url,
        hide_parameters=True,
        pool_size=5,
        max_overflow=5,
        pool_timeout=WAIT_S,
        pool_pre_ping=True,
        connect_args={"timeout": WAIT_S, "command_timeout": 20.0, "server_settings": _SERVER_SETTINGS},
    )


def _sqlite_engine(url: URL) -> AsyncEngine:
    engine = create_async_engine(
        url,
        hide_parameters=True,
        pool_size=4,
        max_overflow=4,
        pool_timeout=WAIT_S,
        # No BEGIN by the driver: we say which.
        connect_args={"timeout": WAIT_S, "isolation_level": None, "factory": _SQLiteConnection},
    )
    event.listen(engine.sync_engine, "connect", _set_up_sqlite)
    event.listen(engine.sync_engine, "begin", _begin_sqlite)
    return engine


def _set_up_sqlite(connection: Any, _record: object) -> None:
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(conn: Connection) -> None:
    """Take the write lock first: a reader that turns writer later would fail at once when another one wrote."""
    conn.exec_driver_sql("BEGIN" if conn.get_execution_options().get(_READS) else "BEGIN IMMEDIATE")


def _make_file(path: Path, may_create: bool) -> None:
    """Create the file of an SQLite database readable by its owner only; its log files take over the mode."""
    if not may_create and not path.exists():
        raise ConfigError(f"server.database: {path} does not exist; start 'first serve' once, which makes it")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except (PermissionError, NotADirectoryError, IsADirectoryError, FileExistsError) as exc:
        raise ConfigError(f"server.database: {path} cannot be opened: {exc.strerror}") from exc
    except OSError as exc:
        raise StoreUnavailable(f"The database file cannot be opened: {exc.strerror}.") from exc


@asynccontextmanager
async def _alone(path: Path) -> AsyncIterator[None]:
    """Hold the lock on the file ``path``: one process at a time makes or migrates a database."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        async with asyncio.timeout(OPEN_S):
            while not _try_lock(descriptor):  # noqa: ASYNC110 - flock wakes nobody
                await asyncio.sleep(0.02)
        yield
    except TimeoutError as exc:
        raise StoreUnavailable("Another process is migrating the database and does not finish.") from exc
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
