"""The page of a plan in a browser: the slider moves the numbers, what is copied is the file, nothing leaves the page.

What it needs is in tests/browser.py.
"""

import pytest
from tests.browser import browser, opened, refused  # noqa: F401
from tests.export.test_plan_page import ADAMW, data_of
from tests.formats.shelf import FILES
from tests.recipes import TEXT, recipe

from isobatch import cli, formats
from isobatch.export import plan_page, plan_toml
from isobatch.recipe import toml_text

pytestmark = pytest.mark.slow
WIDTHS = (390, 800, 1440, 1600)
MADE = recipe(optimizer=ADAMW)


def row(page, key):
    return page.locator("#rows tbody tr", has=page.locator(f"th:text-is('{key}')")).locator("td").all_inner_texts()


def test_the_slider_moves_every_number_by_keyboard_and_button(opened):  # noqa: F811
    page = opened(plan_page(MADE, 8, source="r.toml"))
    sizes = data_of(plan_page(MADE, 8))["sizes"]
    place = sizes.index(8)
    assert row(page, "optimizer.lr")[:2] == ["0.001", "kept"]
    page.locator("#batch").focus()
    for key, step in (("ArrowRight", 1), ("ArrowRight", 2), ("Home", -place), ("End", len(sizes) - 1 - place)):
        page.keyboard.press(key)
        size = sizes[place + step]
        plan = MADE.at(size)
        assert page.locator("#size").inner_text() == f"{size:,}"
        assert page.locator("#batch").get_attribute("aria-valuetext") == f"batch {size:,}"
        for key_ in ("optimizer.lr", "optimizer.betas[1]", "ema.decay", "optimizer.weight_decay"):
            assert row(page, key_)[:2] == list(plan.row(key_).text)
        assert page.locator("#cautions li").count() == len(plan.warnings)
        assert page.locator("#shown pre").first.inner_text().strip() == plan_toml(plan, "r.toml").strip()
    assert page.locator("#more").is_disabled()
    page.locator("#less").click()
    assert page.locator("#size").inner_text() == f"{sizes[-2]:,}"
    page.wait_for_timeout(500)
    assert f"batch {sizes[-2]:,}: batch.size" in page.locator("#said").inner_text()


def test_the_curves_turn_from_samples_to_steps_and_have_words(opened):  # noqa: F811
    page = opened(plan_page(MADE, 64))
    figures = page.locator("#figures svg")
    assert figures.count() == 3
    assert "learning rate against samples" in figures.first.get_attribute("aria-label")
    before = figures.first.locator("path.new").get_attribute("d")
    page.locator("input[name=against]").first.focus()
    page.keyboard.press("ArrowRight")
    assert "against steps" in figures.first.get_attribute("aria-label")
    assert figures.first.locator("path.new").get_attribute("d") != before
    assert page.locator("#figures path.old").count() == 3


def test_the_noise_scale_is_a_second_slider(opened):  # noqa: F811
    page = opened(plan_page(MADE, 64, noise_scale=48.0))
    for key, value in (("Home", 6.0), ("End", 384.0)):
        page.locator("#noise").focus()
        page.keyboard.press(key)
        assert row(page, "optimizer.lr")[1] == MADE.at(64, noise_scale=value).row("optimizer.lr").text[1]
    assert opened(plan_page(MADE, 64), "without.html").locator("#second").is_hidden()


def copied(page, name):
    page.get_by_role("button", name=f"copy {name}", exact=True).click()
    page.locator("#copied", has_text="copied").wait_for(state="attached")  # not by eval, which the page forbids
    text = page.evaluate("navigator.clipboard.readText()")
    page.evaluate("document.getElementById('copied').textContent = ''")
    return text


def test_what_is_copied_is_what_write_writes(opened, tmp_path):  # noqa: F811
    file = tmp_path / "r.toml"
    file.write_text(TEXT)
    assert cli.run(["plan", str(file), "--batch-size", "64", "--html", str(tmp_path / "p.html"), "--json"]) == 0
    page = opened((tmp_path / "p.html").read_text())
    assert cli.run(["plan", str(file), "--batch-size", "64", "--write", str(tmp_path / "new.toml")]) == 0
    assert copied(page, "TOML") == (tmp_path / "new.toml").read_text()
    assert copied(page, "command line") == f"isobatch plan {file} --batch-size 64 --write r-64.toml\n"
    pytest.importorskip("ruamel.yaml")
    from ruamel.yaml import YAML

    assert YAML(typ="safe").load(copied(page, "YAML"))["optimizer"]["lr"] == 0.16


@pytest.mark.parametrize("name", ["hf/qwen_full_sft.yaml", "nanogpt/train_gpt2.py"])
def test_what_is_copied_of_a_foreign_file_is_what_patch_writes(name, opened, tmp_path):  # noqa: F811
    given = {"data_size": 1000, "devices": 8} if name.startswith("hf") else {}
    loaded = formats.load(FILES / name, **given)
    page = opened(plan_page(loaded, source=str(FILES / name)))
    page.locator("#more").click()
    size = int(page.locator("#size").inner_text().replace(",", ""))
    label = "YAML file" if name.endswith("yaml") else "Python file"
    assert copied(page, label) == loaded.at(size).patch(tmp_path / "out").read_text()
    assert page.locator("#changes tbody tr").count() == len(loaded.at(size).rows)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_it_fits_and_can_be_read_by_everybody(width, scheme, opened):  # noqa: F811
    page = opened(plan_page(MADE, 64, noise_scale=48.0), width=width, scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert refused(page) == []


def test_texts_stay_text(opened):  # noqa: F811
    made = recipe(task="</script><script>document.title='owned'</script><img src=x onerror=alert(1)>")
    page = opened(plan_page(made, source="<img src=y>.toml"))
    assert page.title() == "<img src=y>.toml at any batch size"
    assert page.locator("img").count() == 0
    assert "owned" in toml_text({"task": page.locator("#shown pre").first.inner_text()})
