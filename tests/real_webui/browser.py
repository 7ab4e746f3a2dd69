"""One visit to Open WebUI by a real browser: log in, ask a model, see its answer. Run by the Python of .cache/webui:

    python browser.py URL MODEL QUESTION SCREENSHOT < credentials

``credentials``: e-mail and password, each on a line. Prints the answer as the page shows it.
"""

from __future__ import annotations

import sys

from playwright.sync_api import Page, expect, sync_playwright

CHROMIUM = "/usr/bin/chromium"
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
LIMIT_MS = 60_000


def visit(page: Page, url: str, model: str, question: str) -> str:
    email, password = sys.stdin.read().splitlines()
    # It greets newcomers with its news.
    page.add_locator_handler(page.locator("div[role=dialog]"), lambda _: page.keyboard.press("Escape"))
    page.goto(f"{url}/auth")
    page.locator("input[type=email]").fill(email)
    page.locator("input[type=password]").fill(password)
    page.locator("button[type=submit]").click()
    box = page.locator("#chat-input")
    box.wait_for()
    page.goto(f"{url}/?models={model}")
    box.wait_for()
    box.click()
    box.press_sequentially(question)
    box.press("Enter")
    answer = page.locator(".chat-assistant #response-content-container").last
    expect(answer).not_to_be_empty(timeout=LIMIT_MS)
    page.locator("button[aria-label='Good Response']").wait_for()  # comes when the answer is whole
    return answer.inner_text()


def main(url: str, model: str, question: str, screenshot: str) -> None:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1200, "height": 800})
        page.set_default_timeout(LIMIT_MS)
        try:
            print(visit(page, url, model, question))
        finally:
            page.screenshot(path=screenshot)
            browser.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
