"""One run of the study: its loss, batches and noise scales as it goes, and the averaged model at ten marks."""

import math
import time
from dataclasses import dataclass
from typing import Any

from isobatch.errors import NonFiniteError
from isobatch.plan import Recipe
from isobatch.verify.cells import hashed, run_values
from isobatch.verify.workers import Curve

MARKS = 10


@dataclass(frozen=True)
class Drive:
    """One run to train.

    Args:
        arm: its name.
        recipe: its numbers.
        seed: of the initial weights.
        stream: of the sample order, one for each arm.
        look_every: samples between two looks at the loss.
    """

    arm: str
    recipe: Recipe
    seed: int
    stream: int
    look_every: int


@dataclass
class Path:
    """What a run gave.

    Args:
        arm: name of the arm.
        seed: of the initial weights.
        batches: samples of every applied step.
        seen: samples at every look.
        losses: raw held-out loss there.
        noise: (samples, B_simple) at every identified estimate.
        values: model -> metric -> value at the start and at ten marks.
        seconds: time spent.
        stopped: why the run ended early.
    """

    arm: str
    seed: int
    batches: list[int]
    seen: list[int]
    losses: list[float]
    noise: list[list[float]]
    values: dict[str, dict[str, list[float]]]
    seconds: float
    stopped: str = ""

    def curve(self) -> Curve:
        """Return the marks as the equivalence test takes them."""
        return Curve(self.arm, self.seed, self.values, len(self.batches), self.seconds, self.stopped)

    def reach(self, goal: float) -> tuple[float, float] | None:
        """Return (steps, samples) to a loss, interpolated in its logarithm; None where it was not reached.

        Args:
            goal: loss.

        Returns:
            Steps and samples.
        """
        for index, loss in enumerate(self.losses):
            if loss <= goal:
                samples = float(self.seen[index])
                if index and self.losses[index - 1] > loss:
                    before, last = self.seen[index - 1], self.losses[index - 1]
                    share = (math.log(last) - math.log(goal)) / (math.log(last) - math.log(loss))
                    samples = before + share * (samples - before)
                return self._steps(samples), samples
        return None

    def _steps(self, samples: float) -> float:
        done = 0.0
        for number, batch in enumerate(self.batches):
            if done + batch >= samples:
                return number + (samples - done) / batch
            done += batch
        return float(len(self.batches))


def drive(job: Drive) -> Path:
    """Train one run.

    Args:
        job: the run.

    Returns:
        Its path.
    """
    from isobatch.tasks import make_run
    from isobatch.train import Trainer
    from isobatch.train.loop import Step

    began = time.perf_counter()
    trainer = Trainer(make_run(job.recipe, job.seed), job.recipe, order_seed=job.seed + 1_000_003 * (job.stream + 1))
    path = Path(job.arm, job.seed, [], [], [], [], {}, 0.0)
    points = [trainer.evaluate()]

    def look(step: Step) -> None:
        path.batches.append(step.batch)
        if not path.seen or trainer.seen >= path.seen[-1] + job.look_every:
            path.seen.append(trainer.seen)
            path.losses.append(trainer.run.evaluate()["loss"])
        news: dict[str, Any] = trainer.monitor.news if trainer.monitor is not None else {}
        if news.get("noise/verdict") == "identified":
            path.noise.append([trainer.seen, news["noise/scale"]])

    try:
        for mark in range(1, MARKS + 1):
            trainer.train_to(trainer.length * mark // MARKS, look)
            points.append(trainer.evaluate())
    except NonFiniteError as error:
        path.stopped = str(error)
    for model in points[0]:
        series = [point[model]["loss"] for point in points]
        path.values[model] = {"loss": series + [math.nan] * (MARKS + 1 - len(points))}
    path.seconds = time.perf_counter() - began
    return path


def file_name(job: Drive) -> str:
    """Return the file name of a run's path.

    Args:
        job: the run.

    Returns:
        A hash of everything that decides it.
    """
    return hashed("drive", job.arm, run_values(job.recipe), job.seed, job.stream, job.look_every)
