"""Pages in a headless Chromium: what they say, ask for and fail at, and what axe finds against them.

Needs playwright (pip install playwright axe-playwright-python) and a Chromium, found on the path or named by CHROMIUM.
"""

import os
import shutil

import pytest

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")
def browser():
    sync = pytest.importorskip("playwright.sync_api", reason="pip install playwright axe-playwright-python")
    if CHROMIUM is None:
        pytest.skip("no Chromium on the path; name one by CHROMIUM=/path/to/chromium")
    with sync.sync_playwright() as running:
        found = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def opened(browser, tmp_path):
    """Open a page of a plan; what it said, asked for or failed at is checked when the test ends."""
    contexts, complaints = [], []

    def open_(html, name="plan.html", width=1440, scheme="light"):
        file = tmp_path / name
        file.write_text(html, encoding="utf-8")
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        context.grant_permissions(["clipboard-read", "clipboard-write"])
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: request.url == file.as_uri() or complaints.append(request.url))
        page.goto(file.as_uri())
        contexts.append(context)
        return page

    yield open_
    for context in contexts:
        context.close()
    assert complaints == []


def refused(page):
    """What axe-core finds against a page: rule, weight, and the first place."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="pip install axe-playwright-python")
    found = axe.Axe().run(page).response["violations"]
    return [(one["id"], one["impact"], one["nodes"][0]["html"][:200]) for one in found]
