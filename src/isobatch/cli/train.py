"""isobatch train: the reference loop on a recipe's task."""

import argparse
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from isobatch.cli.options import DEVICE, folder_name, load_recipe, prepare, print_table, say
from isobatch.errors import InputError
from isobatch.installed import need


def add(commands: Any) -> None:
    """Add the command.

    Args:
        commands: the sub-parsers.
    """
    text = "train a recipe's task: checkpointed, resumable, at any batch size; under torchrun on many processes"
    command = commands.add_parser("train", help=text, description=text)
    command.add_argument("recipe", type=Path, help="recipe file (TOML) with a task")
    command.add_argument("--out", type=folder_name, required=True, help="folder for checkpoints, log and result.json")
    command.add_argument("--batch-size", type=int, help="another global batch, by the rules; also when resuming")
    command.add_argument("--resume", action="store_true", help="go on from the newest whole checkpoint in --out")
    command.add_argument("--seed", type=int, default=0, help="seed of the initial weights (0)")
    command.add_argument("--order-seed", type=int, default=0, help="seed of the sample order (0)")
    command.add_argument("--every", help='how far apart checkpoints lie, such as "1000 samples" (a tenth of the run)')
    command.add_argument("--patience", type=int, default=3, help="steps in a row that may be skipped (3)")
    command.add_argument("--async-save", action="store_true", help="write checkpoints in a thread")
    loggers = "tell a logger too, samples on its x axis; wandb stays offline"
    command.add_argument("--log", choices=["tensorboard", "trackio", "wandb"], default="", help=loggers)
    command.add_argument(
        "--tensorboard", action="store_const", const="tensorboard", dest="log", help="--log tensorboard"
    )
    command.add_argument("--device", default="cpu", help=DEVICE)
    parts = "under torchrun, keep a part of the weights on each rank (FSDP2) in place of copies"
    command.add_argument("--shard", action="store_true", help=parts)
    command.add_argument("--noise", action="store_true", help="measure the noise scale on the way, into the log")
    adaptive = "let the batch follow the noise scale, with R samples for a saved step: B = sqrt(R * noise scale)"
    command.add_argument("--adaptive", type=float, metavar="R", help=adaptive)
    command.add_argument("--json", action="store_true", help="print JSON for programs")
    command.set_defaults(call=train)


def train(chosen: argparse.Namespace) -> int:
    """Train, and print the last metrics.

    Args:
        chosen: parsed arguments.

    Returns:
        0, or 128 plus the number of the signal that ended the run.
    """
    from dataclasses import asdict

    need("torch")
    import torch.distributed as dist

    from isobatch.results import dump, write_result
    from isobatch.train.job import Options
    from isobatch.train.job import train as run

    recipe = _measured(load_recipe(chosen.recipe), chosen.noise, chosen.adaptive)
    if chosen.patience < 0:
        raise InputError(f"--patience {chosen.patience} must be at least 0")
    many = "RANK" in os.environ and "WORLD_SIZE" in os.environ
    chosen.json |= many and os.environ["RANK"] != "0"
    folder = prepare(chosen, "checkpoints/", "log.jsonl", "result.json") or chosen.out
    options = Options(
        out=folder,
        batch_size=chosen.batch_size,
        resume=chosen.resume,
        seed=chosen.seed,
        order_seed=chosen.order_seed,
        every=int(recipe.samples(chosen.every, "--every")) if chosen.every else None,
        patience=chosen.patience,
        asynchronous=chosen.async_save,
        log=chosen.log,
        device=chosen.device,
        shard=chosen.shard,
    )
    with ExitStack() as stack:
        if many:
            dist.init_process_group("gloo")
            stack.callback(dist.destroy_process_group)
        first = not many or dist.get_rank() == 0
        bar, trained = stack.enter_context(_bar(chosen.json or not first, recipe.batch.unit)), []

        def seen_to(step: Any, seen: int, length: int) -> None:
            trained[:] = [seen]
            bar(step, seen, length)

        outcome = run(recipe, options, seen_to)
    if not first:
        return outcome.exit_code
    data = {"recipe": recipe.model_dump(mode="json", exclude_none=True), **asdict(outcome)}
    write_result(folder, data)
    if chosen.json:
        say(dump(data).rstrip())
        return outcome.exit_code
    state = "finished" if outcome.finished else "saved, to be resumed"
    say(f"{state}: {outcome.seen:,} {recipe.batch.unit}, {outcome.steps:,} steps, {outcome.skipped} skipped")
    if chosen.resume and outcome.finished and not trained:
        say("the run had ended before, so that nothing was trained: --resume goes on with one that was stopped")
    if outcome.metrics:
        names = list(outcome.metrics["raw"])
        rows = [[model, *(f"{values[name]:.4f}" for name in names)] for model, values in outcome.metrics.items()]
        print_table("held-out metrics", [["weights", *names], *rows])
    return outcome.exit_code


def _measured(recipe: Any, noise: bool, exchange_rate: float | None) -> Any:
    """Return the recipe with the noise scale measured, and the batch following it, where the options ask for that."""
    if not noise and exchange_rate is None:
        return recipe
    values = recipe.model_dump(exclude_none=True)
    values.setdefault("noise", {})
    if exchange_rate is not None:
        values["batch"]["adaptive"] = {**values["batch"].get("adaptive", {}), "exchange_rate": exchange_rate}
    return type(recipe).parse(values)


def _bar(quiet: bool, unit: str) -> Any:
    """Show a bar on stderr while a run is trained; a line a minute where stderr is no terminal."""
    from contextlib import contextmanager

    @contextmanager
    def show() -> Any:
        from rich.console import Console
        from rich.progress import Progress

        from isobatch.executors.progress import Words

        console = Console(stderr=True, quiet=quiet)
        hidden = quiet or not console.is_terminal
        with Progress(console=console, transient=True, disable=hidden) as bar:
            task, words = bar.add_task("training", total=None), Words()

            def seen_to(_: Any, seen: float, length: float) -> None:
                bar.update(task, completed=seen, total=length)
                if hidden and not quiet:
                    words(f"training: {seen:,.0f} of {length:,.0f} {unit}")

            yield seen_to

    return show()
