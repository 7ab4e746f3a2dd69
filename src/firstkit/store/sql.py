"""The few statements that SQLite and PostgreSQL both know but SQLAlchemy spells apart."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import ColumnElement, Insert, Table, func


def insert_new(table: Table, dialect: str) -> Insert:
    """INSERT that leaves a row alone whose unique key is there already. A dialect takes 30 ms to import."""
    if dialect == "postgresql":
        from sqlalchemy.dialects import postgresql

        return postgresql.insert(table).on_conflict_do_nothing()
    from sqlalchemy.dialects import sqlite

    return sqlite.insert(table).on_conflict_do_nothing()


def stored_time(at: datetime, dialect: str) -> datetime | str:
    """An aware time as the driver of ``dialect`` takes it for a UtcTime column."""
    if dialect == "postgresql":
        return at
    if at.tzinfo is not UTC:
        at = at.astimezone(UTC)
    return at.isoformat(" ", "microseconds")[:-6]  # without the zone


def utc_day(at: ColumnElement[object], dialect: str) -> ColumnElement[str]:
    """The day of a UtcTime column in UTC, as ``YYYY-MM-DD``."""
    if dialect == "postgresql":
        return func.to_char(func.timezone("UTC", at), "YYYY-MM-DD")
    return func.strftime("%Y-%m-%d", at)


def utc_hour(at: ColumnElement[object], dialect: str) -> ColumnElement[str]:
    """The hour of a UtcTime column in UTC, as ``YYYY-MM-DD HH``."""
    if dialect == "postgresql":
        return func.to_char(func.timezone("UTC", at), "YYYY-MM-DD HH24")
    return func.substr(at, 1, 13)  # as it is stored; strftime takes three times as long
