"""``make webui``: Open WebUI, and what drives a browser, in an environment of its own, .cache/webui.

Goes on where it was stopped, and does nothing where all is there. The browser itself, Chromium, is the machine's.
"""

from __future__ import annotations

from environment import TORCH, Environment, main

PYTHONS = ("3.11", "3.12")
PACKAGES = ("open-webui==0.12.4", "playwright==1.65.2")
"""The first names the exact version of nearly all that it needs."""


def install() -> None:
    """Make what is missing; raises Unusable where this machine cannot have it."""
    webui = Environment("webui")
    with webui.making(f"{TORCH} {PACKAGES}") as is_needed:
        if is_needed:
            webui.make(*PYTHONS)
            webui.install_torch()
            webui.tell("packages")
            webui.pip(*PACKAGES)


if __name__ == "__main__":
    main(install)
