"""How fast does A2C train on an Atari game, where does the time go, and does it learn?

    python benchmarks/arcade.py --json benchmarks/results/arcade.json --picture docs/results/arcade/curve.png

Trains examples/a2c-atari.toml, one seed, one thread, and notes the return (mean clipped reward of four games over 150
decisions from fixed starts) of the raw and the averaged weights along the run. Throughput in decisions (four frames
each) a second of processor time: the emulator alone with random actions, a rollout under the policy, and whole training
steps.
"""

import argparse
import time
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure

from isobatch import Recipe
from isobatch.report import write, write_result
from isobatch.report.pictures import RC, png
from isobatch.tasks import make_run
from isobatch.train import Trainer
from isobatch_studies.tasks.arcade import Arcade


def rate(work, decisions: int) -> float:
    began = time.process_time()
    work()
    return round(decisions / (time.process_time() - began), 1)


def throughput(recipe: Recipe, count: int) -> dict[str, float]:
    """Decisions a second of the parts; `count` batches each."""
    batch, pool = recipe.batch.size, 16
    games, numbers = Arcade(str(recipe.options["game"]), pool, 0), np.random.default_rng(0)
    trainer = Trainer(make_run(recipe, 0), recipe)
    trainer.step()
    everyone, indices = np.arange(pool), torch.arange(batch)

    def emulate() -> None:
        for _ in range(count * batch // pool):
            games.act(everyone, numbers.integers(games.actions, size=pool))

    parts = {
        "emulator alone": emulate,
        "rollout under the policy": lambda: [trainer.run.samples[indices] for _ in range(count)],
        "training step": lambda: [trainer.step() for _ in range(count)],
    }
    return {name: rate(work, count * batch) for name, work in parts.items()}


def curve(recipe: Recipe, marks: int) -> dict[str, list]:
    """The return along a run, at its start and `marks` marks."""
    trainer, length = Trainer(make_run(recipe, 0), recipe), int(recipe.staircase().length)
    found: dict[str, list] = {"decisions": [], "raw": [], "average": []}
    for mark in range(marks + 1):
        trainer.train_to(length * mark // marks // recipe.batch.size * recipe.batch.size)
        metrics = trainer.evaluate()
        found["decisions"].append(trainer.seen)
        for model in ("raw", "average"):
            found[model].append(round(metrics[model]["return"], 3))
        print({name: values[-1] for name, values in found.items()}, flush=True)
    return found


def picture(found: dict[str, list], game: str) -> bytes:
    with matplotlib.rc_context(RC):
        made = Figure(figsize=(6.4, 3.8), layout="constrained")
        axes = made.subplots()
        axes.plot(found["decisions"], found["raw"], "o-", color="#D55E00", label="raw weights", alpha=0.8)
        axes.plot(found["decisions"], found["average"], "s-", color="#0072B2", label="averaged weights")
        axes.set_xlabel("decisions of four frames")
        axes.set_ylabel("return over 150 decisions")
        axes.set_title(f"A2C on {game}, one seed", loc="left", fontweight="bold")
        axes.legend(frameon=False, loc="upper left")
    return png(made)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--batches", type=int, default=100, help="of each throughput")
    parser.add_argument("--marks", type=int, default=16)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    recipe = Recipe.load(Path(__file__).parents[1] / "examples" / "a2c-atari.toml")
    game = str(recipe.options["game"])
    data = {
        "game": game,
        "decisions_a_processor_second": throughput(recipe, arguments.batches),
        "curve": curve(recipe, arguments.marks),
    }
    print(data["decisions_a_processor_second"])
    if arguments.json:
        write_result(arguments.json.parent, data, arguments.json.name)
    if arguments.picture:
        write(arguments.picture, picture(data["curve"], game))


if __name__ == "__main__":
    main()
