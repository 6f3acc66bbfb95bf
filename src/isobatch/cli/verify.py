"""isobatch verify: is it the same run?"""

import argparse
from typing import TYPE_CHECKING, Any

from isobatch.cli.options import add_output, add_recipe, prepare, print_table, progress, say, seconds
from isobatch.errors import InputError

if TYPE_CHECKING:
    from isobatch.verify import Comparisons
    from isobatch.verify.search import Largest

EXIT = {"SAME": 0, "UNDECIDED": 3, "DIFFERENT": 4}


def add(commands: Any) -> None:
    """Add the commands.

    Args:
        commands: the sub-parsers.
    """
    verify = commands.add_parser("verify", help="is it the same run?", description="Is it the same run?")
    levels = verify.add_subparsers(required=True, metavar="LEVEL")
    text = "train reference, plan and ablations over several seeds; say SAME, DIFFERENT or UNDECIDED"
    command = levels.add_parser("run", help=text, description=text)
    add_recipe(command)
    command.add_argument("--seeds", type=int, default=10, help="seeds per arm, at least 8, fixed before the run (10)")
    command.add_argument(
        "--ablate", default="all", help="lr-only,ema-only,unscaled with commas between; all or none (all)"
    )
    command.add_argument("--budget", help="do not start if it would take longer: 90s, 10m, 2h")
    command.add_argument("--margin", type=float, help="margin of the headline model (0.03 averaged, 0.10 raw)")
    command.add_argument("--max-kappa", action="store_true", help="find the largest kappa that is SAME")
    command.add_argument("--optimizer", choices=["invariant"], help="plan for the batch-size invariant form")
    command.add_argument("--expect", help='fail with 4 unless these verdicts hold: "plan=SAME,unscaled=DIFFERENT"')
    add_output(command)
    command.set_defaults(call=run)
    text = "how often does the test say SAME or DIFFERENT when the truth is planted?"
    command = levels.add_parser("characteristic", help=text, description=text)
    add_recipe(command)
    command.add_argument("--seeds", type=int, default=40, help="seeds per arm, at least four times --sample (40)")
    command.add_argument("--sample", type=int, default=10, help="seeds per simulated verdict (10)")
    add_output(command)
    command.set_defaults(call=characteristic)


def run(chosen: argparse.Namespace) -> int:
    """Train the arms and print their verdicts.

    Args:
        chosen: parsed arguments.

    Returns:
        0 SAME, 3 UNDECIDED, 4 DIFFERENT; with --expect 0 or 4.
    """
    from isobatch import verify
    from isobatch.plan import Recipe

    recipe, wanted = Recipe.load(chosen.recipe), _expectations(chosen.expect)
    folder, budget = prepare(chosen.out), seconds(chosen.budget)
    ablate = verify.ABLATIONS if chosen.ablate == "all" else tuple(chosen.ablate.replace("none", "").split(","))
    with progress(chosen.json) as (estimated, done):
        result = verify.run(
            recipe,
            chosen.batch_size,
            seeds=chosen.seeds,
            ablate=tuple(filter(None, ablate)),
            margin=chosen.margin,
            budget=budget,
            workers=chosen.workers,
            optimizer=chosen.optimizer,
            on_estimate=estimated,
            on_done=done,
        )
    largest = None
    if chosen.max_kappa:
        from isobatch.verify.search import largest_kappa

        with progress(chosen.json) as (_, done):
            largest = largest_kappa(result, workers=chosen.workers, on_done=done)
    data = _data(result, largest)
    files = []
    if folder is not None:
        from isobatch.verify.story import write_report

        files = write_report(folder, data)
    if chosen.json:
        from isobatch.results import dump

        say(dump(data).rstrip())
    else:
        _print(data)
        say(f"written: {', '.join(map(str, files))}" if files else "no files written; --out DIR keeps a report")
    return _code(data["verdicts"], wanted)


def characteristic(chosen: argparse.Namespace) -> int:
    """Measure the operating characteristic of the test.

    Args:
        chosen: parsed arguments.

    Returns:
        0.
    """
    from isobatch.plan import Recipe
    from isobatch.results import dump, write_result
    from isobatch.verify.characteristic import measure, table

    recipe, folder = Recipe.load(chosen.recipe), prepare(chosen.out)
    with progress(chosen.json) as (estimated, done):
        data = measure(
            recipe,
            chosen.batch_size,
            seeds=chosen.seeds,
            sample=chosen.sample,
            workers=chosen.workers,
            on_estimate=estimated,
            on_done=done,
        )
    if folder is not None:
        write_result(folder, data)
    if chosen.json:
        say(dump(data).rstrip())
    else:
        print_table(f"verdicts of {chosen.sample} seeds drawn from {chosen.seeds}", table(data))
    return 0


def _data(result: "Comparisons", largest: "Largest | None") -> dict[str, Any]:
    from isobatch.verify import to_dict

    data = to_dict(result)
    if largest is not None:
        tried = {f"{k:g}": {"verdict": str(v), "worst": largest.worst[k]} for k, v in largest.tried.items()}
        data["max_kappa"] = {"kappa": largest.kappa, "resolution": "a factor of 2", "tried": tried}
    return data


def _print(data: dict[str, Any]) -> None:
    from isobatch.verify.story import verdict_table

    model = "averaged" if data["headline"] == "average" else "raw"
    title = f"kappa = {data['kappa']:g}, {len(data['seeds'])} seeds, {data['seconds']:g} s"
    print_table(title, verdict_table(data))
    say(f"plan: {data['verdict']} ({model} model)")
    for action in data["next"]:
        say(f"  - {action}")
    if "max_kappa" in data:
        tried = ", ".join(f"{k}: {v['verdict']}" for k, v in data["max_kappa"]["tried"].items())
        say(f"largest kappa that is SAME: {data['max_kappa']['kappa']:g} (to a factor of 2; tried {tried})")


def _expectations(expect: str | None) -> dict[str, str]:
    pairs = [part.split("=") for part in (expect or "").split(",") if part]
    if any(len(pair) != 2 or pair[1] not in EXIT for pair in pairs):
        raise InputError(f'--expect {expect!r} must be arm=VERDICT pairs, such as "plan=SAME,unscaled=DIFFERENT"')
    return {pair[0]: pair[1] for pair in pairs}


def _code(verdicts: dict[str, str], wanted: dict[str, str]) -> int:
    from sys import stderr

    wrong = {arm: verdict for arm, verdict in wanted.items() if verdicts.get(arm) != verdict}
    for arm, verdict in wrong.items():
        stderr.write(f"isobatch: {arm} is {verdicts.get(arm, 'not trained')}, expected {verdict}\n")
    if wanted:
        return EXIT["DIFFERENT"] if wrong else 0
    return EXIT[verdicts["plan"]]
