"""The report of `verify run`: the plan, the overlays, the gaps, the verdict and how it was reached."""

from pathlib import Path
from typing import Any

from isobatch import report
from isobatch.plan import Recipe
from isobatch.plan.plan import show
from isobatch.recipe import toml_text
from isobatch.verify.design import MEANING
from isobatch.verify.mending import MEANING as MENDS

_TOLD = 2


def write_report(folder: Path, data: dict[str, Any]) -> list[Path]:
    """Write result.json, overlay.png and report.html; mended.toml where a change made the plan the same run.

    Args:
        folder: an existing folder.
        data: what `to_dict` returns.

    Returns:
        The files.
    """
    picture, page = folder / "overlay.png", folder / "report.html"
    report.write(picture, report.png(report.overlay_figure(data)))
    report.write(page, html(data))
    files = [report.write_result(folder, data), picture, page]
    if recipe := mended_toml(data):
        files.append(folder / "mended.toml")
        report.write(files[-1], recipe + "\n")
    return files


def html(data: dict[str, Any]) -> str:
    """Return the page of a comparison.

    Args:
        data: what `to_dict` returns.

    Returns:
        HTML without any link to the network.
    """
    size, task = data["recipe"]["batch"]["size"], data["recipe"].get("task", "task")
    switches = "schedule" in data["recipe"]["batch"]
    change = "a batch that switches" if switches else f"batch {size} to {data['batch_size']}"
    plan = data["arms"]["plan"][data["headline"]]
    lead = (
        f"kappa = {data['kappa']:g}, {len(data['seeds'])} seeds: {data['headline_sentence']}; largest mean gap "
        f"{signed(plan['worst'])} against ±{plan['margin']:.4f} in {data['test']['gap']}."
    )
    sections = [
        report.Section(
            "Verdicts",
            [*failure_lines(data), *data["next"]],
            verdict_table(data),
            report.panel_figures(data, data["headline"], steps=True),
        ),
        *_mended(data),
        *(
            report.Section(
                f"The {'averaged' if m == 'average' else 'raw'} model", [], [], report.panel_figures(data, m)
            )
            for m in data["arms"]["plan"]
            if m != data["headline"]
        ),
        report.Section(
            "The plan",
            [f"{w['condition']}: {w['message']} ({w['source']})" for w in data["plan"]["warnings"]],
            _plan(data),
        ),
        report.Section("How the verdict was reached", how(data), _marks(data)),
        report.Section("Data", [f"{name}: {value}" for name, value in data["facts"].items()]),
    ]
    title, recipe = f"{task}: {change}, is it the same run?", toml_text(data["recipe"])
    return report.render(title, lead, sections, badge=data["verdict"], footer=f"{data['seconds']} s", recipe=recipe)


def signed(value: float | None, digits: int = 4) -> str:
    """Return a gap as text.

    Args:
        value: of the gap, None where too few runs ended.
        digits: after the point.

    Returns:
        Such as "+0.0123", or "-".
    """
    return "-" if value is None else f"{value:+.{digits}f}"


def verdict_table(data: dict[str, Any]) -> list[list[str]]:
    """Return arm, meaning, failures, and verdict with worst gap and margin of each model, as rows of cells.

    Args:
        data: what `to_dict` returns.

    Returns:
        Rows, the first one the header.
    """
    models = sorted(next(iter(data["arms"].values())), key=lambda model: model != data["headline"])
    names = {"average": "averaged model", "raw": "raw model"}
    rows = [["arm", "what it changes", "failed"]]
    for model in models:
        rows[0] += [names.get(model, model), "worst gap, margin"]
    tried = (data.get("mended") or {"tests": {}})["tests"]
    for arm, tests in [*data["arms"].items(), *((name, {data["headline"]: test}) for name, test in tried.items())]:
        any_test = next(iter(tests.values()))
        row = [arm, MEANING.get(arm, MENDS.get(arm, "")), f"{len(any_test['failures'])}/{any_test['seeds']}"]
        for model in models:
            if model in tests:
                row += [tests[model]["verdict"], f"{signed(tests[model]['worst'], 3)}, ±{tests[model]['margin']:.3f}"]
            else:
                row += ["", ""]
        rows.append(row)
    return rows


def failure_lines(data: dict[str, Any]) -> list[str]:
    """Return the failed runs of every arm, with the reason of the first ones.

    Args:
        data: what `to_dict` returns.

    Returns:
        One line for each arm with failures.
    """
    lines = []
    for arm, tests in data["arms"].items():
        test = next(iter(tests.values()))
        if lost := test["failures"]:
            told = "; ".join(f"seed {one['seed']}: {one['why']}" for one in lost[:_TOLD])
            more = f"; and seeds {', '.join(str(one['seed']) for one in lost[_TOLD:])}" if lost[_TOLD:] else ""
            lines.append(f"{arm} failed in {len(lost)} of {test['seeds']} seeds: {told}{more}")
    return lines


def mended_toml(data: dict[str, Any]) -> str:
    """Return the recipe of the change that is SAME, as TOML.

    Args:
        data: what `to_dict` returns.

    Returns:
        TOML, empty where nothing was mended.
    """
    found = data.get("mended")
    if not found or not found["best"]:
        return ""
    values = found["recipes"][found["best"]]
    unused = Recipe.parse(values).unused()
    return toml_text({**values, "optimizer": {k: v for k, v in values["optimizer"].items() if k not in unused}})


def _mended(data: dict[str, Any]) -> list[report.Section]:
    found = data.get("mended")
    if found is None:
        return []
    if found["best"] is None:
        return [report.Section("Mended", ["nothing that was tried made the plan the same run"])]
    what = MENDS.get(found["best"], found["best"])
    test = found["tests"][found["best"]]
    text = (
        f"{what}: SAME, worst gap {signed(test['worst'])} against ±{test['margin']:.4f}. "
        f"{len(found['tests'])} changes shared the error rate of one test. The recipe at the new batch:"
    )
    return [report.Section("Mended", [text], code=mended_toml(data))]


def how(data: dict[str, Any]) -> list[str]:
    """Return the rule of the test, fixed before the run, as sentences.

    Args:
        data: what `to_dict` returns.

    Returns:
        Sentences.
    """
    test, level = data["test"], data["test"]["level"]
    ratio = test["kind"] == "ratio"
    metric = data["metric"]
    gap = f"log({metric} of the arm) - log({metric} of the reference)" if ratio else f"the difference in {test['gap']}"
    margins = ", ".join(f"±{v:.4g} ({'averaged' if m == 'average' else m} model)" for m, v in test["margins"].items())
    looks = test["looks"]
    seeds = f"{looks[0]} seeds" if len(looks) == 1 else f"looks after {', '.join(map(str, looks))} seeds"
    lost = f"not finite, or {test['ceiling']:g} times its start" if ratio else "not finite"
    return [
        f"Gap: {gap} on held-out data, at {len(data['marks'])} marks fixed in {data['unit']}. Seed s gives every arm "
        "the same initial weights and an independent sample order, so gaps are paired by seed.",
        f"Margin, fixed before the run and taken from no run that is judged: {margins}.",
        f"SAME: at every mark the interval of the mean gap lies inside the margin, by the t interval and by a "
        f"companion that allows for skew ({level['same']:.0%} wrong at most). DIFFERENT: at some mark it lies wholly "
        f"outside ({level['different']:.1%} over all marks). Where the two disagree, a seed is an outlier or nothing "
        "varies: UNDECIDED.",
        f"A run that stops, is {lost}, has failed: it is no gap, it stands by arm and seed, and SAME is impossible "
        f"with more than {test['allow_failures']} of them. Failing more often than the reference is DIFFERENT.",
        f"SAME counts only where a control ({', '.join(test['controls']) or 'none was trained'}) is DIFFERENT: "
        "otherwise the test could not have told.",
        f"One verdict for each model; the headline is the averaged model's where the recipe has an average. Seeds were "
        f"fixed before the run: {seeds}.",
    ]


def _plan(data: dict[str, Any]) -> list[list[str]]:
    rows = [["key", "was", "becomes", "rule", "because", "confidence", "note"]]
    for row in data["plan"]["rows"]:
        cells = [row["key"], show(row["was"]), show(row["becomes"])]
        rows.append([*cells, row["rule"], row["because"], row["confidence"], row["note"]])
    return rows


def _marks(data: dict[str, Any]) -> list[list[str]]:
    tests, model = data["arms"], data["headline"]
    rows = [[f"{data['unit']} seen", "margin", *tests]]
    for index, mark in enumerate(data["marks"]):
        cells = []
        for models in tests.values():
            mean, low, high = (signed(models[model][key][index]) for key in ("mean", "low", "high"))
            cells.append(f"{mean} [{low}, {high}]")
        rows.append([f"{mark:,}", f"±{tests['plan'][model]['margin']:.4f}", *cells])
    return rows
