"""Training the runs of a comparison: cost known before, every finished run kept, the reference first."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from isobatch.executors import Session, map_jobs, width
from isobatch.verify.cells import name, run_all
from isobatch.verify.design import Criteria
from isobatch.verify.judging import RecipeFails, failures
from isobatch.verify.workers import Curve, Job, Probe, check_percent, check_values, probe, read_curve, train_curve

_TIMED = 20
Kind = tuple[int, str]
"""What decides the cost of a step: batch and optimizer."""


@dataclass
class Campaign:
    """The runs of one comparison.

    Args:
        folder: where finished runs are kept.
        workers: processes; one a core or a GPU unless given.
        on_done: called with each finished curve.
        executor: trains the runs, any `concurrent.futures.Executor`; None for processes of this machine.
    """

    folder: Path | None = None
    workers: int | None = None
    on_done: Callable[[Curve], None] | None = None
    executor: Executor | None = None
    _session: Session | None = field(default=None, init=False, repr=False)

    def __enter__(self) -> "Campaign":
        """Keep runs in flight between calls of `train`.

        Returns:
            Itself.
        """
        if self.executor is not None:
            self._session = Session(self.executor, workers=self.workers)
        return self

    def __exit__(self, *_: object) -> None:
        """Cancel what nobody has waited for."""
        if self._session is not None:
            self._session.close()
            self._session = None

    def probe(self, jobs: Sequence[Job]) -> dict[Kind, Probe]:
        """Evaluate one run of every batch and optimizer before its first step, and time a few steps.

        Args:
            jobs: of all arms.

        Returns:
            Probes by `kind`.
        """
        kinds = {kind(job): replace(job, limit=_TIMED) for job in reversed(jobs)}
        found = map_jobs(
            probe, list(kinds.values()), workers=self.workers, executor=self.executor, device=_device(jobs)
        )
        return dict(zip(kinds, found, strict=True))

    def seconds(self, probes: Mapping[Kind, Probe], jobs: Sequence[Job]) -> float:
        """Estimate the wall time of jobs.

        Args:
            probes: of their kinds.
            jobs: to train.

        Returns:
            Seconds.
        """
        total = 0.0
        for job in jobs:
            found = probes[kind(job)]
            steps = job.stops[-1] / job.recipe.batch.size
            total += found.making + found.step * steps + found.evaluation * len(job.stops)
        loading = max((found.loading for found in probes.values()), default=0.0)
        return loading + total / min(width(self.executor, self.workers, _device(jobs)), len(jobs)) if jobs else 0.0

    def train(self, jobs: Sequence[Job], rule: Criteria, ahead: Sequence[Job] = ()) -> dict[str, list[Curve]]:
        """Train runs, those of the reference first: where it fails, nothing else is trained.

        Args:
            jobs: of some arms and seeds.
            rule: what a failure is.
            ahead: jobs of later looks, trained by an executor's workers that have nothing else to do.

        Returns:
            arm -> curves by seed.

        Raises:
            RecipeFails: more failures of the reference than are allowed.
            InputError: a value that the metric's declaration rules out.
        """
        found: dict[str, list[Curve]] = {}
        for group in ([j for j in jobs if j.arm == "reference"], [j for j in jobs if j.arm != "reference"]):
            trained = run_all(
                train_curve,
                group,
                self.folder,
                name=name,
                read=partial(read_curve, stops=len(rule.stops)),
                workers=self.workers,
                executor=self.executor,
                device=_device(jobs),
                session=self._session,
                ahead=ahead if self._session is not None and group and group[0].arm != "reference" else (),
                on_done=lambda curve: self._arrived(curve, rule),
            )
            for job, curve in zip(group, trained or (), strict=True):
                found.setdefault(job.arm, []).append(replace(curve, arm=job.arm, seed=job.seed))
            lost = failures(found.get("reference", []), rule.metrics, rule.metric, rule.stops)
            if len(lost) > rule.allow_failures:
                kept = f"; the finished runs are kept in {self.folder}" if self.folder else ""
                raise RecipeFails(lost, len(found["reference"]), rule.lr, kept)
            check_percent(found.get("reference", []), rule.metrics[rule.metric], rule.metric)
        return {arm: sorted(curves, key=lambda curve: curve.seed) for arm, curves in found.items()}

    def _arrived(self, curve: Curve, rule: Criteria) -> None:
        check_values(curve, rule.metrics, rule.metric)
        if self.on_done is not None:
            self.on_done(curve)


def kind(job: Job) -> Kind:
    """Return what decides the cost of a run's step.

    Args:
        job: the run.

    Returns:
        Batch and optimizer.
    """
    return job.recipe.batch.size, job.recipe.optimizer.name


def _device(jobs: Sequence[Job]) -> str:
    return jobs[0].device if jobs else "cpu"
