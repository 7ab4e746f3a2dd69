"""``first login``, ``logout`` and ``whoami``: who one is at a gateway."""

from __future__ import annotations

import sys
from typing import Annotated, Any, NoReturn

import typer

from firstkit.cli.access import checked_url
from firstkit.cli.admin import GatewayAway, Refusal
from firstkit.cli.common import JsonOption, fail
from firstkit.cli.showing import show_json

KEPT = "The login is kept; 'first logout' forgets it."
NOT_LOGGED_IN = "'first login --server https://first.example.org' logs you in."


def login(
    server: Annotated[str | None, typer.Option(help="The gateway, such as https://first.example.org.")] = None,
    provider: Annotated[str | None, typer.Option(help="globus or oidc; needed where the gateway has both.")] = None,
    browser: Annotated[bool, typer.Option("--browser", help="Use a browser on this machine.")] = False,
    print_token: Annotated[bool, typer.Option("--print-token", help="Print a token that is good now.")] = False,
) -> None:
    """Log in at a gateway; the commands that show what is yours then ask there.

    With --print-token other programs can use the login: its token is the API key.
    """
    if print_token:
        _print_token(server)
        return
    if server is None:
        fail("which gateway?", NOT_LOGGED_IN, status=2)
    base_url = checked_url(server)
    from firstkit.cli import saved_login

    made = _log_in(base_url, _method(base_url, provider), browser)
    with saved_login.alone():
        saved_login.save(made)
    me = about_me()
    print(f"You are {me['name']} at {base_url}.", file=sys.stderr)


def logout() -> None:
    """Forget the login, and tell the identity provider so."""
    from firstkit.cli import saved_login

    kept = saved_login.load()
    if kept is None:
        print("You are not logged in.", file=sys.stderr)
        return
    saved_login.forget()
    _revoke(kept)
    print(f"You are logged out of {kept.server}.", file=sys.stderr)


def whoami(as_json: JsonOption = False) -> None:
    """Show who you are at the gateway where you are logged in."""
    me = about_me()
    if as_json:
        show_json(me)
        return
    projects = ", ".join(f"{each['name']} ({each['role']})" for each in me["projects"]) or "none"
    print(f"name      {me['name']}", f"projects  {projects}", sep="\n")
    print(f"charged   {me['project'] or 'what a request names by x-first-project'}")
    for name in ("roles", "scopes", "groups"):
        print(f"{name:8}  {', '.join(me[name]) or 'none'}")


def about_me(change: dict[str, Any] | None = None, hint: str = KEPT) -> dict[str, Any]:
    """What the gateway says of whoever is logged in, or what it answers to a ``change`` of that. Ends the command where
    nobody is, and when it fails, with ``hint``."""
    from firstkit.cli.remote import logged_in

    remote = logged_in()
    if remote is None:
        fail("you are not logged in.", NOT_LOGGED_IN)
    try:
        found: dict[str, Any] = remote.fetch("/v1/me", change)
    except (GatewayAway, Refusal) as exc:
        fail(exc.message, hint)
    return found


def _print_token(server: str | None) -> None:
    from firstkit.cli.remote import logged_in

    remote = logged_in()
    if remote is None or (server is not None and checked_url(server) != remote.base_url):
        fail("you are not logged in there.", NOT_LOGGED_IN)
    print(remote.token)


def _method(base_url: str, provider: str | None) -> dict[str, Any]:
    """How one logs in at a gateway, as it tells itself."""
    from firstkit.auth.oauth import is_private
    from firstkit.cli.remote import Remote

    if not is_private(base_url):
        fail(f"{base_url} is not an https:// address: others could read your login.", "Use https://.", status=2)
    try:
        offered = {each["kind"]: each for each in Remote(base_url, "none").fetch("/auth/methods")["data"]}
    except (GatewayAway, Refusal) as exc:
        fail(exc.message, "Is this the address of a gateway of FIRST?")
    if provider is not None and provider not in offered:
        _no_such(base_url, provider, list(offered))
    if not offered:
        fail(f"{base_url} has no logins for command lines.", "Ask its operators for an API key.")
    if provider is None and len(offered) > 1:
        fail("which login?", f"Say --provider with one of: {', '.join(offered)}.", status=2)
    found: dict[str, Any] = offered[provider or next(iter(offered))]
    return found


def _no_such(base_url: str, provider: str, offered: list[str]) -> NoReturn:
    fail(f"{base_url} has no login by '{provider}'.", f"It has: {', '.join(offered) or 'none'}.", status=2)


def _log_in(base_url: str, method: dict[str, Any], browser: bool) -> Any:
    from firstkit.cli import globus_login, oidc_login
    from firstkit.cli.saved_login import Login

    client_id = str(method["client_id"])
    try:
        if method["kind"] == "globus":
            issuer = "https://auth.globus.org"
            policies = ",".join(method.get("policies", []))
            tokens = globus_login.log_in(client_id, str(method["scope"]), policies, oidc_login.tell, _ask_code)
        else:
            issuer = str(method["issuer"])
            tokens = _by_oidc(method, browser)
    except oidc_login.LoginFailed as exc:
        fail(exc.message, "Try again: first login --server " + base_url)
    kind = str(method["kind"])
    return Login(base_url, kind, issuer, client_id, tokens.access_token, tokens.expires_at, tokens.refresh_token)


def _by_oidc(method: dict[str, Any], browser: bool) -> Any:
    import webbrowser

    from firstkit.cli import oidc_login

    scopes, audience = " ".join(method["scopes"]), str(method.get("audience", ""))
    provider = oidc_login.discover(str(method["issuer"]), str(method["client_id"]), scopes, audience)
    if browser or not provider.knows_devices:
        return oidc_login.by_browser(provider, oidc_login.tell, webbrowser.open)
    return oidc_login.by_device(provider, oidc_login.tell)


def _ask_code() -> str:
    print("Paste the code that you got there: ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline()


def _revoke(kept: Any) -> None:
    """Where the provider cannot be told the tokens end by themselves."""
    from firstkit.cli import globus_login, oidc_login

    tokens = [token for token in (kept.refresh_token, kept.access_token) if token]
    try:
        if kept.kind == "globus":
            for token in tokens:
                globus_login.revoke(kept.client_id, token)
            return
        provider = oidc_login.discover(kept.issuer, kept.client_id)
        for token in tokens:
            oidc_login.revoke(provider, token)
    except oidc_login.LoginFailed as exc:
        print(f"The provider could not be told: {exc.message}", file=sys.stderr)
