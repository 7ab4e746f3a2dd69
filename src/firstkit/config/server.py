"""Section ``server``."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, model_validator

from firstkit.config.kinds import Folder, HostPort, Network, Seconds, Section, Web


class Server(Section):
    """Where the gateway listens and keeps its state, and how long requests may wait."""

    listen: HostPort = "127.0.0.1:8000"
    pilot_listen: HostPort | None = None
    pilot_urls: tuple[HostPort, ...] = ()
    public_url: Web | None = None
    trusted_proxies: tuple[Network, ...] = ()
    state_dir: Folder = Path()
    database: str | None = None
    hold: Seconds = 2.0
    max_wait: Seconds = 300.0
    max_waiting: int = Field(default=256, ge=1)
    max_waiting_per_user: int = Field(default=64, ge=1)
    idle_timeout: Seconds = Field(default=300.0, gt=0)
    total_timeout: Seconds = Field(default=3600.0, gt=0)
    keep_responses: Seconds = 0.0
    orphan_timeout: Seconds = Field(default=1800.0, gt=0)

    @model_validator(mode="after")
    def _pilots_find_it(self) -> Server:
        host = (self.pilot_listen or "").rpartition(":")[0].strip("[]")
        if self.pilot_urls and self.pilot_listen is None:
            raise ValueError("pilot_urls: pilot_listen is needed with it")
        if host in ("0.0.0.0", "::", "*") and not self.pilot_urls:  # noqa: S104 - a comparison
            raise ValueError("pilot_urls: needed where pilot_listen is a wildcard: HOST:PORT as pilots reach it")
        return self

    @property
    def pilot_addresses(self) -> tuple[str, ...]:
        """What pilots dial, in this order."""
        return self.pilot_urls or ((self.pilot_listen,) if self.pilot_listen else ())

    @property
    def host(self) -> str:
        return self.listen.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        return int(self.listen.rpartition(":")[2])

    @property
    def database_url(self) -> str:
        return self.database or f"sqlite:///{self.state_dir / 'first.db'}"

    def path(self, name: str) -> Path:
        return self.state_dir / name
