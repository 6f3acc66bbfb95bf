"""Reports in a browser: nobody is kept out, nothing overflows, in light and dark (playwright, axe and a Chromium)."""

import pytest
from tests.export.test_plan_page_browser import browser, opened  # noqa: F401
from tests.fabricated import comparison

from isobatch.verify import to_dict
from isobatch.verify.page import html

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 800, 1440])
def test_a_report_fits_and_can_be_read_by_everybody(width, scheme, opened):  # noqa: F811
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="pip install axe-playwright-python")
    page = opened(html(to_dict(comparison())), width=width, scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert [(one["id"], one["impact"]) for one in axe.Axe().run(page).response["violations"]] == []
