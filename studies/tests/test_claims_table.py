"""docs/claims.md is what its command writes, and every page says first what was claimed, found, and at what size."""

import json
from pathlib import Path

import pytest

from isobatch.errors import InputError
from isobatch_studies import claims_table
from isobatch_studies.byol_24576 import devices, ends
from isobatch_studies.claims import claims, criteria, grids
from isobatch_studies.polyak import study as polyak
from isobatch_studies.teachers.grid import reference
from isobatch_studies.teachers.tables import gaps, markdown

DOCS = Path(__file__).resolve().parents[2] / "docs"
WRITE = "run: python -m isobatch_studies.claims_table"


def test_the_table_is_what_the_command_writes():
    assert (DOCS / "claims.md").read_text("utf-8") == claims_table.table(DOCS), WRITE


@pytest.mark.parametrize("study", claims_table.studies())
def test_a_page_says_what_was_claimed_found_and_at_what_size(study):
    page = (DOCS / "studies" / f"{study}.md").read_text("utf-8")
    said = claims_table.lines(page, study)
    assert said["Found"].startswith(claims_table.counted(claims_table.verdicts(study, DOCS)) + "."), WRITE
    assert claims_table.renewed(page, study, DOCS) == page, WRITE


def test_every_page_belongs_to_a_study():
    pages = {path.stem for path in (DOCS / "studies").glob("*.md")} - {"index"}
    assert sorted(pages) == sorted(claims_table.studies())


def stored(docs, folder, study="legw", quick=False, **held):
    place = docs / "results" / folder
    place.mkdir(parents=True)
    listed = [{"id": f"{study}/{name}", "held": value} for name, value in held.items()]
    (place / "result.json").write_text(json.dumps({"study": study, "quick": quick, "claims": listed}))


def found(docs):
    verdicts = {one.claim.id: one for one in claims_table.verdicts("legw", docs)}
    one = verdicts["legw/cnn-lars"]
    return one.held, one.command.removeprefix("isobatch study legw ")


def test_a_verdict_comes_from_the_studys_own_folder_first(tmp_path):
    assert found(tmp_path) == (None, "--out docs/results/legw")
    stored(tmp_path, "legw-quick", quick=True, **{"cnn-lars": None})
    assert found(tmp_path) == (None, "--quick --out docs/results/legw-quick")
    stored(tmp_path, "earlier", **{"cnn-lars": True})
    assert found(tmp_path) == (True, "--out docs/results/earlier")
    stored(tmp_path, "legw", **{"cnn-lars": False})
    stored(tmp_path, "another", study="adam", **{"cnn-lars": True})
    assert found(tmp_path) == (False, "--out docs/results/legw")


def test_a_verdict_elsewhere_counts_where_the_own_folder_has_none(tmp_path):
    stored(tmp_path, "legw", **{"cnn-lars": None})
    stored(tmp_path, "later", **{"cnn-lars": False})
    assert found(tmp_path) == (False, "--out docs/results/later")


@pytest.mark.parametrize(("held", "words"), [
    ([True, True], "2 of 2 claims held"),
    ([True, False, None], "1 of 3 claims held, 1 did not hold, 1 without a verdict"),
])  # fmt: skip
def test_counts(held, words):
    claim = next(iter(claims("legw").values()))
    assert claims_table.counted([claims_table.Standing(claim, "legw", one, "") for one in held]) == words


@pytest.mark.parametrize("page", [
    "# T\n\nText.\n",
    "# T\n\n- **Claimed**: a.\n- **Size**: b.\n- **Found**: c.\n",
    "# T\n\nText first.\n- **Claimed**: a.\n- **Found**: c.\n- **Size**: b.\n",
])  # fmt: skip
def test_a_page_that_begins_otherwise_is_refused(page):
    with pytest.raises(InputError, match="must begin, after its title, with the lines Claimed, Found and Size"):
        claims_table.lines(page, "page")


def test_counts_and_drawn_tables_are_renewed_and_nothing_else(tmp_path):
    page = "# T\n\n- **Found**: old. Kept words. More.\n\n<!-- drawn from none: arms -->\nold\n<!-- end -->\nTail.\n"
    count = sum(len(claims("dino", grid)) for grid in grids("dino"))
    assert claims_table.renewed(page, "dino", tmp_path) == (
        f"# T\n\n- **Found**: 0 of {count} claims held, {count} without a verdict. Kept words. More.\n\n"
        "<!-- drawn from none: arms -->\nNo run is complete.\n<!-- end -->\nTail.\n"
    )


def test_the_tables_of_a_partial_result_show_counts_and_no_intervals():
    last = {"mean": 47.31, "low": None, "high": None, "values": 1}
    whole = {"mean": 46.0, "low": 45.0, "high": 47.0, "values": 8}
    ends = {"collapsed": [], "steps": 900, "seconds": 1500.0}
    data = {
        "claims": [{"id": "a/b", "held": None, "evidence": "1 of 8 seeds"}],
        "references": {"v": {"final": {"average": {"accuracy": whole, "knn": last}}, **ends}},
        "recipe": {"v": {"batch": {"size": 4096}}},
        "runs": {"v reference": 2},
        "judged": {"metric": "knn", "margin": 1.0},
        "stops": {"v": [0, 3_000_000]},
        "rows": [{
            "variant": "v", "arm": "rule", "kappa": 6, "batch": 24576, "seeds": 1, "planned": 8,
            "verdicts": {"average": "not yet", "raw": "not yet"}, "worst": {"average": -0.456, "raw": None},
            "final": {"average": {"accuracy": last, "knn": last}, "raw": {"knn": last}}, **ends, "steps": 150,
        }],
    }  # fmt: skip
    text = markdown(data)
    assert "| `a/b` | no verdict | 1 of 8 seeds |" in text
    assert "| reference | 4,096 | 2 |  |  |  |  | 46.0 [45.0, 47.0] | 47.3 |  | 900 | 0 | 25 | 2,000 |" in text
    rule = (
        "| rule, kappa 6 | 24,576 | 1 of 8 | not yet | -0.46 | not yet |  | 47.3 | 47.3 | 47.3 | 150 | 0 | 25 | 2,000 |"
    )
    assert rule in text
    assert markdown(None) == gaps(None) == gaps(data | {"rows": []}) == polyak.markdown(None) == "No run is complete.\n"


def test_two_variants_without_neighbours_are_named_in_as_many_digits_as_their_margin_needs():
    last = {"mean": 20.0, "low": 17.0, "high": 23.0, "values": 8}
    ends = {"collapsed": [], "seconds": 78.0, "final": {"average": {"accuracy": last}, "raw": {"loss": last}}}
    row = {"arm": "rule", "kappa": 16, "batch": 64, "seeds": 8, "planned": 8, "steps": 1600}
    row |= {"verdicts": {"average": "SAME", "raw": "SAME"}, "worst": {"average": -0.0042, "raw": 0.0282}, **ends}
    curve = [0.001 * k for k in range(9)]
    row |= {"gaps": {"average": curve, "raw": [-2 * gap for gap in curve]}}
    data = {
        "claims": [], "judged": {"metric": "loss", "margin": 0.03}, "rows": [row | {"variant": v} for v in ("a", "b")],
        "references": {v: ends | {"steps": 25600} for v in ("a", "b")}, "runs": {"a reference": 8, "b reference": 8},
        "recipe": {v: {"batch": {"size": 4}} for v in ("a", "b")}, "stops": {v: [0, 102400] for v in ("a", "b")},
    }  # fmt: skip
    lines = markdown(data).splitlines()
    assert lines[3].startswith(
        "| arm | batch | seeds | averaged model | worst gap | raw model | worst gap | accuracy, av"
    )
    assert "| reference, b | 4 | 8 |  |  |  |  | 20.0 [17.0, 23.0] | 25,600 | 0 | 1.3 | 1,313 |" in lines
    assert lines[-1].startswith(
        "| rule, kappa 16, b | 64 | 8 of 8 | SAME | -0.004 | SAME | +0.028 | 20.0 [17.0, 23.0] "
    )
    told = gaps(data).splitlines()
    assert told[0].count("averaged, ") == told[0].count("raw, ") == 4
    name, *cells = (cell.strip() for cell in told[-1].strip("|").split("|"))
    assert (name, cells) == ("rule, kappa 16, b", ["+0.002", "+0.004", "+0.006", "+0.008",
                                                   "-0.004", "-0.008", "-0.012", "-0.016"])  # fmt: skip


def test_the_place_of_an_average_is_told_at_the_largest_perturbation():
    less = {size: {"mean": 0.0, "low": 0.0, "high": 0.0} for size in ("0.05", "0.1")}
    found = {
        "rise": {"raw": {"0.05": 1.0, "0.1": 0.22351}, "average": {"0.05": 1.0, "0.1": 0.223}},
        "rise_average_less_raw": less, "eigenvalue": {"raw": 622.08, "average": 616.52},
        "log_eigenvalue_ratio": {"mean": -0.0086, "low": -0.0156, "high": -0.0016},
        "accuracy_average_less_raw": {"mean": -0.019, "low": -0.086, "high": 0.048},
        "accuracy_taught_less_alone": {"raw": {"mean": 0.225, "low": -0.969, "high": 1.419}, "average": {}},
    }  # fmt: skip
    lines = polyak.markdown(
        {"width": {"group norm": found, "flat": found | {"log_eigenvalue_ratio": None}}}
    ).splitlines()
    assert lines[2] == (
        "| group norm | 0.2235 | 0.2230 | 622.1 | 616.5 | -0.009 [-0.016, -0.002] | -0.02 [-0.09, +0.05] | "
        "+0.23 [-0.97, +1.42] |"
    )
    assert lines[3].split(" | ")[5] == ""


def test_six_times_the_devices_are_modelled_from_measured_speeds():
    recipe = reference(criteria("byol-24576")["grid"], "byol-24576")
    row = {"arm": "rule", "variant": "v", "batch": 24_576, "seconds": 1000.0, "reference": {"seconds": 2000.0}}
    data = {"rows": [row], "recipe": {"v": recipe.model_dump(mode="json")}, "stops": {"v": [0, 2_457_600]}}
    table = [line.split(" | ") for line in devices.markdown(data).splitlines()[2:]]
    size = 4 * devices.parameters(recipe)
    for cells, (alpha, bandwidth) in zip(table, [(20e-6, 10e9), (100e-6, 1e9), (1e-3, 1e8)], strict=True):
        few, many = (
            steps * (batch / n / speed + 2 * (n - 1) * (alpha + size / n / bandwidth))
            for steps, batch, n, speed in [(600, 4096, 8, 1228.8), (100, 24_576, 48, 2457.6)]
        )
        assert cells[1:] == [f"{few:.1f} s", f"{many:.1f} s", f"{few / many:.1f} |"]
    assert devices.markdown(None) == devices.markdown(data | {"rows": []}) == "No pair of runs is complete.\n"


def test_the_ends_of_complete_arms_are_paired_by_seed():
    def of(*points):
        return {"per_seed": {m: {k: list(points) for k in ("knn", "accuracy")} for m in ("raw", "average")}}

    row = {"arm": "rule", "seeds": 3, "planned": 3, **of(41, 53, 45), "reference": of(40, 50, 40)}
    row["per_seed"]["raw"]["knn"] = [39, 47, 35]
    half = 2 / 3**0.5 * 4.302652729911275  # Student's t of 2 degrees of freedom; differences 1, 3, 5
    more, less = (f"{sign}3.00 [{low:+.2f}, {high:+.2f}]" for sign, low, high in
                  [("+", 3 - half, 3 + half), ("-", -3 - half, -3 + half)])  # fmt: skip
    head, _, line = ends.markdown({"rows": [row, row | {"seeds": 2}]}).splitlines()
    assert line == f"| rule | 3 | {more} | {more} | {less} | {more} |"
    assert head.endswith("| neighbours, averaged | probe, averaged | neighbours, raw | probe, raw |")
    assert ends.markdown(None) == ends.markdown({"rows": [row | {"seeds": 2}]}) == "No arm is complete.\n"


def test_other_margins_are_told_from_the_stored_runs():
    found = {(arm.removeprefix("byol-24576 "), margin): (verdict, seeds) for arm, margin, verdict, seeds
             in ends.margins(DOCS / "results" / "byol-24576")}  # fmt: skip
    page = (DOCS / "studies" / "byol-24576.md").read_text("utf-8")
    assert found["rule x6", 2.0] == ("SAME", None)
    assert found["no EMA rule x6", 2.0][0] == "UNDECIDED"
    assert {found[arm, 1.0][0] for arm in ("rule x6", "no EMA rule x6")} == {"UNDECIDED"}
    same, different = (found[arm, 1.0][1] for arm in ("rule x6", "no EMA rule x6"))
    assert f"about {same} fresh seeds to call the rule's arm SAME, and {different} to call" in page


def test_the_gradient_that_travels_is_that_of_the_task():
    from isobatch.tasks import make_run

    part = criteria("byol-24576")["quick"]
    part["recipe"]["options"] |= {"data": "glyphs", "frames": 124, "probe": 62}
    recipe = reference(part, "byol-24576")
    assert devices.parameters(recipe) == sum(w.numel() for w in make_run(recipe, 0).model.parameters())
