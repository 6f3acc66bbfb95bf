"""Every page of the site and of every command, in a browser: it fits at three widths, axe finds nothing against it."""

import subprocess
import sys

import pytest
from tests.browser import browser, opened, refused  # noqa: F401
from tests.docs.blocks import ROOT
from tests.docs.products import NAMES, products

pytestmark = pytest.mark.slow
WIDTHS = (390, 800, 1600)
SCHEMES = ("light", "dark")


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    return products(tmp_path_factory.mktemp("products"))


@pytest.mark.parametrize("name", NAMES)
def test_a_page_of_a_command_fits_and_can_be_read_by_everybody(name, pages, opened):  # noqa: F811
    for scheme in SCHEMES:
        for width in WIDTHS:
            page = opened(pages[name], width=width, scheme=scheme)
            assert page.evaluate("document.documentElement.scrollWidth") <= width, (scheme, width)
            if width != WIDTHS[1]:
                assert refused(page) == [], (scheme, width)


def test_every_product_is_looked_at(pages):
    assert list(pages) == NAMES


def test_every_page_of_the_site_fits_and_can_be_read_by_everybody(browser, tmp_path):  # noqa: F811
    for module in ("sphinx", "furo", "myst_parser"):
        pytest.importorskip(module, reason='pip install "isobatch[docs]"')
    words = [sys.executable, "-m", "sphinx", "--builder", "html", "--fail-on-warning", "--quiet", "docs", str(tmp_path)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    names = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.html"))
    asked, complaints = set(), []
    for scheme, width in (("light", 390), ("dark", 390), ("light", 800), ("light", 1600), ("dark", 1600)):
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: asked.add(request.url.partition(":")[0]))
        for name in names:
            page.goto((tmp_path / name).as_uri())
            if page.evaluate("document.documentElement.scrollWidth") > width:
                complaints.append((name, width, "wider than the window"))
            if (scheme, width) in (("dark", 390), ("light", 1600)):
                found = [one for one in refused(page) if one[1] in ("serious", "critical")]  # the theme has minor ones
                complaints.extend((name, scheme, width, *one) for one in found)
        page.close()
    assert complaints == []
    assert asked <= {"file", "data"}
