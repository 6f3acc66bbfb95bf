"""isobatch verify: is it the same run?"""

import argparse
from typing import TYPE_CHECKING, Any

from isobatch.cli import verify_split
from isobatch.cli.options import (
    DEVICE,
    add_output,
    add_recipe,
    executor_of,
    load_recipe,
    prepare,
    print_table,
    progress,
    say,
    seconds,
)
from isobatch.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

    from isobatch.verify import Comparisons
    from isobatch.verify.largest import Largest

DEFAULT = "as many as find what is the same four times in five"
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
    add_seeds(command)
    command.add_argument(
        "--ablate",
        default="all",
        help="controls: lr-only,ema-only,unscaled,clip, commas between; all or none (all)",
    )
    command.add_argument("--metric", help="judge this metric instead of the task's headline")
    text = "largest gap that counts as the same: excess of a ratio (0.03 averaged, 0.05 raw), or in the metric's unit"
    command.add_argument("--margin", type=float, help=text)
    text = "SAME stays possible beside K failed seeds of an arm; the headline names them (0)"
    command.add_argument("--allow-failures", type=int, default=0, metavar="K", help=text)
    command.add_argument("--budget", help="do not start if it would take longer: 90s, 10m, 2h; fewer seeds if it must")
    command.add_argument("--max-kappa", action="store_true", help="find the largest kappa that is SAME")
    command.add_argument("--mend", action="store_true", help="where the plan is not SAME, try what should mend it")
    command.add_argument("--optimizer", choices=["invariant"], help="plan for the batch-size invariant form")
    command.add_argument("--expect", help='fail with 4 unless these verdicts hold: "plan=SAME,unscaled=DIFFERENT"')
    command.add_argument("--device", default="cpu", help=DEVICE)
    text = "a trainer of your own hangs after so many seconds without an update (600)"
    command.add_argument("--timeout", type=float, default=600.0, metavar="SECONDS", help=text)
    add_output(command)
    command.set_defaults(call=run)
    text = "how often does the test say SAME or DIFFERENT when the truth is planted?"
    command = levels.add_parser("characteristic", help=text, description=text)
    add_recipe(command)
    command.add_argument("--seeds", type=int, default=40, help="seeds per arm, at least four times --sample (40)")
    command.add_argument("--sample", type=int, default=10, help="seeds per simulated verdict (10)")
    command.add_argument("--device", default="cpu", help=DEVICE)
    add_output(command)
    command.set_defaults(call=characteristic)
    verify_split.add(levels)


def add_seeds(command: argparse.ArgumentParser) -> None:
    """Add how many seeds, and from which on.

    Args:
        command: the command's parser.
    """
    text = "seeds per arm, at least 8, fixed before the run; 10..40 looks on the way and stops as soon as it may"
    command.add_argument("--seeds", type=seeds_asked, help=f"{text} ({DEFAULT})")
    command.add_argument("--seed-from", type=int, default=0, metavar="S", help="the first seed (0)")


def seeds_asked(text: str) -> int | tuple[int, int]:
    """Read a number of seeds, or a range of looks.

    Args:
        text: such as "20" or "10..40".

    Returns:
        The number, or the pair.

    Raises:
        ArgumentTypeError: neither.

    Example:
        >>> seeds_asked("10..40")
        (10, 40)
    """
    least, dots, most = text.partition("..")
    try:
        return (int(least), int(most)) if dots else int(least)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} must be a number such as 20, or a range such as 10..40") from None


def run(chosen: argparse.Namespace) -> int:
    """Train the arms and print their verdicts.

    Args:
        chosen: parsed arguments.

    Returns:
        0 SAME, 3 UNDECIDED, 4 DIFFERENT; with --expect 0 or 4.
    """
    from isobatch import verify

    recipe, budget, ablate = load_recipe(chosen.recipe), seconds(chosen.budget), _ablations(chosen.ablate)
    wanted = _expectations(chosen.expect, verify.arms(recipe, chosen.batch_size, ablate, chosen.optimizer))
    folder = prepare(chosen, "result.json", "overlay.png", "report.html")
    with executor_of(chosen) as executor, progress(chosen.json) as (estimated, done):
        result = verify.run(
            recipe,
            chosen.batch_size,
            seeds=chosen.seeds,
            seed_from=chosen.seed_from,
            ablate=ablate,
            margin=chosen.margin,
            metric=chosen.metric,
            allow_failures=chosen.allow_failures,
            budget=budget,
            workers=chosen.workers,
            executor=executor,
            optimizer=chosen.optimizer,
            mend=chosen.mend,
            device=chosen.device,
            timeout=chosen.timeout,
            out=folder,
            on_folder=None if chosen.json else _kept,
            on_estimate=estimated,
            on_done=done,
        )
        largest = None
        if chosen.max_kappa:
            from isobatch.verify.largest import largest_kappa

            largest = largest_kappa(result, workers=chosen.workers, executor=executor, on_done=done)
    data = _data(result, largest)
    if chosen.json:
        from isobatch.results import dump

        say(dump(data | {"folder": str(result.folder)}).rstrip())
    else:
        _print(data)
    files = []
    if folder is not None:  # after the verdict, which a full disk must not cost
        from isobatch.verify.page import write_report

        files = write_report(folder, data)
    if not chosen.json:
        say(f"written: {', '.join(map(str, files))}" if files else "no report written; --out DIR keeps one")
    return _code(data["verdicts"], wanted)


def _ablations(text: str) -> tuple[str, ...]:
    from isobatch import verify

    return verify.ABLATIONS if text == "all" else tuple(part for part in text.split(",") if part and part != "none")


def _kept(folder: "Path", reused: dict[str, Any] | None) -> None:
    """Say on stderr where finished runs are kept, before any is trained."""
    from sys import stderr

    stderr.write(f"isobatch: finished runs are kept in {folder}; the same command goes on from there\n")
    if reused is not None:
        stderr.write(
            f"isobatch: {reused['shared']} of these seeds were judged before ({reused['verdict']}); "
            "fresh ones keep the error rates: --seed-from\n"
        )


def characteristic(chosen: argparse.Namespace) -> int:
    """Measure the operating characteristic of the test.

    Args:
        chosen: parsed arguments.

    Returns:
        0.
    """
    from isobatch.results import dump, write_result
    from isobatch.verify.characteristic import measure, table

    recipe, folder = load_recipe(chosen.recipe), prepare(chosen, "result.json")
    with executor_of(chosen) as executor, progress(chosen.json) as (estimated, done):
        data = measure(
            recipe,
            chosen.batch_size,
            seeds=chosen.seeds,
            sample=chosen.sample,
            workers=chosen.workers,
            executor=executor,
            device=chosen.device,
            out=folder,
            on_folder=None if chosen.json else _kept,
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

    data = to_dict(result, searched=largest is not None)
    if largest is not None:
        tried = {f"{k:g}": {"verdict": str(v), "worst": largest.worst[k]} for k, v in largest.tried.items()}
        data["max_kappa"] = {"kappa": largest.kappa, "resolution": "a factor of 2", "tried": tried}
    return data


def _print(data: dict[str, Any]) -> None:
    from isobatch.verify.page import failure_lines, mended_toml, verdict_table

    title = f"kappa = {data['kappa']:g}, {len(data['seeds'])} seeds, {data['seconds']:g} s"
    print_table(title, verdict_table(data))
    say(f"{data['verdict']}: {data['headline_sentence']}")
    for line in (*failure_lines(data), *data["next"]):
        say(f"  - {line}")
    if recipe := mended_toml(data):
        say(f"a recipe that is SAME at the new batch ({data['mended']['best']}):\n\n{recipe}\n")
    if "max_kappa" in data:
        tried = ", ".join(f"{k}: {v['verdict']}" for k, v in data["max_kappa"]["tried"].items())
        say(f"largest kappa that is SAME: {data['max_kappa']['kappa']:g} (to a factor of 2; tried {tried})")


def _expectations(expect: str | None, arms: dict[str, Any]) -> dict[str, str]:
    pairs = [part.split("=") for part in (expect or "").split(",") if part]
    if any(len(pair) != 2 or pair[1] not in EXIT for pair in pairs):
        raise InputError(f'--expect {expect!r} must be arm=VERDICT pairs, such as "plan=SAME,unscaled=DIFFERENT"')
    if twice := [arm for arm, _ in pairs if [one for one, _ in pairs].count(arm) > 1]:
        raise InputError(f"--expect {expect!r} names {twice[0]} twice; give one verdict an arm")
    trained = [name for name in arms if name != "reference"]
    for name, _ in pairs:
        if name not in trained:
            raise InputError(f"--expect {name}=... names an arm that is not trained; trained: {', '.join(trained)}")
    return {pair[0]: pair[1] for pair in pairs}


def _code(verdicts: dict[str, str], wanted: dict[str, str]) -> int:
    from sys import stderr

    wrong = {arm: verdict for arm, verdict in wanted.items() if verdicts.get(arm) != verdict}
    for arm, verdict in wrong.items():
        stderr.write(f"isobatch: {arm} is {verdicts.get(arm, 'not trained')}, expected {verdict}\n")
    if wanted:
        return EXIT["DIFFERENT"] if wrong else 0
    return EXIT[verdicts["plan"]]
