from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from starlette.types import ASGIApp

from firstkit.auth.authenticator import Authenticator
from firstkit.auth.people import People
from firstkit.gateway.app import build_app
from firstkit.gateway.guard import Guard
from firstkit.gateway.state import Gateway
from firstkit.store.database import Database
from unit.auth.loopback_issuer import LoopbackIssuer, loopback_issuer
from unit.gateway import login_site, residents, support
from unit.gateway.asking import Asking
from unit.gateway.login_site import Site
from unit.gateway.support import Served, made, serving


@pytest.fixture
async def gateway(
    request: pytest.FixtureRequest, folder: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Gateway]:
    """Of the usual configuration, or of the one that a module or test is marked with: ``configured(CONFIG)``."""
    if (marker := request.node.get_closest_marker("configured")) is not None:
        monkeypatch.setattr(support, "CONFIG", marker.args[0])
    shutil.copy(empty_database, folder / "first.db")
    async for gateway in made(folder):
        yield gateway


@pytest.fixture
def app(gateway: Gateway) -> ASGIApp:
    return Guard(build_app(gateway))


@pytest.fixture
async def served(folder: Path) -> Served:
    return serving(folder)


@pytest.fixture(scope="session")
def inhabited_database(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Path:
    """A database with all residents, to be copied."""
    path = tmp_path_factory.mktemp("inhabited") / "first.db"
    shutil.copy(empty_database, path)

    async def make() -> None:
        db = await Database.open(f"sqlite:///{path}")
        await residents.move_in(db)
        await db.close()

    asyncio.run(make())
    return path


@pytest.fixture
async def asking(folder: Path, inhabited_database: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Asking]:
    """A gateway where the residents are known, and whoever asks it."""
    monkeypatch.setattr(support, "CONFIG", residents.CONFIG)
    shutil.copy(inhabited_database, folder / "first.db")
    async for gateway in made(folder):
        gateway.people = People(gateway.db, gateway.config)
        gateway.authenticator = Authenticator(gateway.db, gateway.people)
        yield Asking(gateway)


@pytest.fixture
async def issuer() -> AsyncIterator[LoopbackIssuer]:
    async with loopback_issuer() as made:
        yield made


@pytest.fixture
async def site(gateway: Gateway, issuer: LoopbackIssuer, folder: Path) -> AsyncIterator[Site]:
    """A gateway where browsers log in by that issuer."""
    async for site in login_site.made(
        gateway, issuer, login_site.configured(folder, issuer.url, public_url=login_site.HTTP)
    ):
        yield site


@pytest.fixture
async def browser(site: Site) -> AsyncIterator[httpx.AsyncClient]:
    async with site.browser() as made:
        yield made
