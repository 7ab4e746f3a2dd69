from __future__ import annotations

from pathlib import Path

import pytest
import typer
import yaml

from firstkit.cli import common
from firstkit.config import parse_config

MODELS = {"m": {"deployments": [{"cluster": "here", "engine": {"kind": "command", "argv": ["x"]}}]}}


@pytest.fixture(autouse=True)
def state_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("FIRST_CONFIG", raising=False)
    monkeypatch.setenv("FIRST_STATE_DIR", str(tmp_path / "state"))
    (tmp_path / "state").mkdir()
    return tmp_path / "state"


def write(path: Path, **server: object) -> Path:
    path.write_text(yaml.safe_dump({"server": server, "clusters": {"here": {}}, "models": MODELS}))
    return path


def test_the_order_in_which_a_configuration_is_looked_for(
    tmp_path: Path, state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_up = write(state_dir / "first.yaml")
    assert common.find_config(None) == of_up
    assert common.open_server(None).is_demonstration
    monkeypatch.setenv("FIRST_CONFIG", str(tmp_path / "b.yaml"))
    assert common.find_config(None) == tmp_path / "b.yaml"
    assert common.find_config(Path("c.yaml")) == Path.cwd() / "c.yaml"


def test_without_any_the_error_says_the_next_step(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as caught:
        common.open_server(None)
    assert caught.value.exit_code == 1
    assert "'first up'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "server",
    [
        {},
        {"listen": "0.0.0.0:9"},
        {"listen": "[::1]:9", "database": "postgresql://u@h/d"},
        {"state_dir": "relative", "hold": "3s"},
        {"state_dir": " /tmp/x "},
    ],
)
def test_the_short_look_sees_what_the_long_one_sees(tmp_path: Path, server: dict[str, str]) -> None:
    path = write(tmp_path / "a.yaml", **server)
    short, long = common.open_server(path), parse_config(path.read_text()).server
    assert (short.state_dir, short.listen, short.database_url) == (long.state_dir, long.listen, long.database_url)


@pytest.mark.parametrize(
    "server", [{"listen": "8000"}, {"listen": 8000}, {"state_dir": "/" + "x" * 200}, {"state_dir": ""}, []]
)
def test_what_is_wrong_in_it_is_said(tmp_path: Path, server: object, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(yaml.safe_dump({"server": server, "clusters": {"here": {}}, "models": MODELS}))
    if server == {"state_dir": ""}:
        assert common.open_server(path).state_dir.is_absolute()
        return
    with pytest.raises(typer.Exit):
        common.open_server(path)
    assert "server" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("listen", "url"),
    [
        ("127.0.0.1:8000", "http://127.0.0.1:8000/v1"),
        ("0.0.0.0:80", "http://127.0.0.1:80/v1"),
        ("[::]:80", "http://[::1]:80/v1"),
    ],
)
def test_clients_on_this_machine_dial_an_address_of_it(listen: str, url: str) -> None:
    assert common.Server(Path("/c"), Path("/s"), listen).base_url == url
