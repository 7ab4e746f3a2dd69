"""The few pages of a login: plain HTML without scripts, and nothing from anywhere else."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping
from html import escape
from urllib.parse import urlencode

from starlette.responses import HTMLResponse, RedirectResponse

from firstkit.auth.permissions import Identity, Membership, Role
from firstkit.errors import ApiError

_STYLE = (
    "body{font:1rem/1.5 system-ui,sans-serif;max-width:36rem;margin:4rem auto;padding:0 1rem;color:#222}"
    "h1{font-size:1.5rem}a,button{font:inherit;color:#0b5394}li{margin:.3rem 0}"
    "button{padding:.4rem 1rem;border:1px solid;border-radius:.3rem;background:#fff;cursor:pointer}"
)
_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
HEADERS: Mapping[str, str] = {
    "cache-control": "no-store",
    "content-security-policy": f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'",
    "referrer-policy": "same-origin",  # with none at all a browser would not say that a form is from here
    "x-content-type-options": "nosniff",
}
"""Of all pages and redirects. They are never kept, and nothing of another origin gets into them."""
_TITLES = {"oidc": "your organisation", "globus": "Globus"}


def redirect(to: str) -> RedirectResponse:
    """To a page that is fetched by GET."""
    return RedirectResponse(to, status_code=303, headers=dict(HEADERS))


def choice(providers: Iterable[str], return_to: str) -> HTMLResponse:
    """Where one may log in. All links are relative: nobody knows what a proxy puts before our paths."""
    links = [
        f"<li><a href='login?{escape(urlencode({'provider': name, 'return_to': return_to}))}'>"
        f"Log in with {escape(_TITLES.get(name, name))}</a></li>"
        for name in providers
    ]
    return _page("Log in", f"<ul>{''.join(links)}</ul>")


def account(identity: Identity) -> HTMLResponse:
    """Who is logged in."""
    roles = ", ".join(sorted(role.value for role in identity.roles - {Role.USER}))
    projects = "".join(f"<li>{escape(_described(each, identity))}</li>" for each in identity.memberships)
    return _page(
        identity.user_name,
        f"<p>You are logged in{f' ({escape(roles)})' if roles else ''}.</p><h2>Projects</h2>"
        + (f"<ul>{projects}</ul>" if projects else "<p>You belong to no project.</p>")
        + "<form method='post' action='logout'><button>Log out</button></form>",
    )


def refused(error: ApiError) -> HTMLResponse:
    """Why something was not done. A 401 would have the browser ask for a password."""
    status = 403 if error.status == 401 else error.status
    again = "<p><a href='login'>Log in</a></p>" if status != 404 else ""
    return _page("This did not work", f"<p>{escape(error.message)}</p>{again}", status)


def _described(membership: Membership, identity: Identity) -> str:
    notes = ["charged unless another is named"] if membership.project_id == identity.project_id else []
    notes += ["yours to manage"] if membership.is_manager else []
    return f"{membership.project} ({', '.join(notes)})" if notes else membership.project


def _page(title: str, body: str, status: int = 200) -> HTMLResponse:
    return HTMLResponse(
        f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>{escape(title)} - FIRST</title>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<style>{_STYLE}</style></head><body><h1>{escape(title)}</h1>{body}</body></html>",
        status_code=status,
        headers=dict(HEADERS),
    )
