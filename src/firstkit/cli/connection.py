"""``first connection``: URL and key of the running demonstration, for people and scripts."""

from __future__ import annotations

from firstkit.cli.common import JsonOption, Server, default_config_path, fail, open_server
from firstkit.cli.showing import show_json


def connection(as_json: JsonOption = False) -> None:
    """Print URL and key of the running demonstration."""
    server, key = running_demonstration()
    if as_json:
        show_json({"base_url": server.base_url, "api_key": key})
        return
    print(f"URL      {server.base_url}\nAPI key  {key}")


def running_demonstration() -> tuple[Server, str]:
    """The demonstration and its key; ends the command when it does not run."""
    from firstkit.cli.demonstration_key import read_key
    from firstkit.cli.serving import serving

    path = default_config_path()
    found = serving(path.parent)
    if found is None or found.config_path != path:
        fail("the demonstration is not running.", "'first up' starts it.")
    key = read_key(path.parent)
    if key is None:
        fail(f"the demonstration's key is not in {path.parent}.", "'first down' and 'first up' again make a new one.")
    return open_server(path), key
