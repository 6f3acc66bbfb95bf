"""The causes that are known: name, kind in words, advice."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Cause:
    """Why an update depends on how its batch is split.

    Args:
        name: of the kind, fixed.
        what: the kind in words.
        seen: the pattern that was measured.
        advice: what to change.
        confidence: "measured" (the pattern fits every split), "derived" (what is left when others are excluded), or
            "unknown".
        explains: components that it accounts for.
    """

    name: str
    what: str
    seen: str
    advice: str
    confidence: str = "measured"
    explains: tuple[str, ...] = ()


KINDS: dict[str, tuple[str, str]] = {
    "sum-instead-of-mean": (
        "sum instead of mean",
        "normalise by the whole batch: divide by its samples or tokens over all micro-batches and processes",
    ),
    "mean-of-means": (
        "mean of means: every micro-batch weighs the same, whatever it holds",
        "divide each micro-batch's sum by the samples or tokens of the whole batch, counted before the first backward",
    ),
    "missing-division": (
        "missing division by accumulation",
        "divide each micro-batch's mean loss by the number of micro-batches before backward",
    ),
    "doubled-division": (
        "doubled division: what is already a share of the batch is divided again",
        "divide once, either by the number of micro-batches (processes) or by the whole batch's count",
    ),
    "gradient-lost": (
        "gradient of some micro-batches lost",
        "call backward for every micro-batch, and zero_grad once per optimizer step, after it, not between them",
    ),
    "unscale-per-part": (
        "gradients scaled between micro-batches (unscaled once per micro-batch)",
        "call scaler.unscale_ once, after the last backward; never multiply gradients between micro-batches",
    ),
    "clip-per-part": (
        "clipping per micro-batch",
        "clip once, after the last backward of the batch and before the optimizer step",
    ),
    "clip-before-division": (
        "clipping before the gradient is divided",
        "divide first, then clip, so that the threshold is compared with the batch's mean gradient",
    ),
    "average-per-part": (
        "weight average (EMA) updated k times per update",
        "update the average once, after the optimizer step",
    ),
    "teacher-per-part": (
        "teacher updated per micro-batch",
        "update the teacher once, after the optimizer step; every micro-batch must see the same teacher",
    ),
    "centre-per-part": (
        "centre or running statistic updated per micro-batch",
        "collect over the micro-batches and update once per optimizer step",
    ),
    "buffers-wrong-moment": (
        "buffers averaged or copied at the wrong moment",
        "copy or average the buffers once, after the last micro-batch's forward pass",
    ),
    "scheduler-per-part": (
        "scheduler stepped k times per update",
        "step the scheduler once per optimizer step",
    ),
    "scheduler-per-process": (
        "scheduler stepped once per process",
        "count optimizer steps, not processes (Accelerate: step_scheduler_with_optimizer, split_batches)",
    ),
    "decay-per-part": (
        "weight decay applied per micro-batch",
        "apply decay once per optimizer step, or divide a penalty in the loss by the number of micro-batches",
    ),
    "noise-per-part": (
        "noise added per micro-batch",
        "add noise once, to the whole batch's gradient, before the optimizer step",
    ),
    "perturbation-per-part": (
        "weights perturbed per micro-batch (sharpness-aware, adversarial weights)",
        "take the perturbation from the whole batch's gradient, and pass all micro-batches at the perturbed weights",
    ),
    "batch-norm": (
        "batch statistics (batch norm) on micro-batches",
        "synchronise or freeze the statistics, use group norm, or keep samples per forward fixed (ghost batch norm)",
    ),
    "in-batch-loss": (
        "loss couples the samples of a micro-batch (in-batch contrastive)",
        "gather or cache representations (GradCache) so that the loss sees the whole batch",
    ),
    "optimizer-per-part": (
        "optimizer stepped on a step that accumulation should skip: once per micro-batch",
        "call optimizer.step only after the last micro-batch",
    ),
    "step-missed": (
        "optimizer not stepped in every update",
        "step after the last micro-batch, however many there are: (i + 1) % accumulation must count them as they come",
    ),
    "mode-per-part": (
        "training mode switched between micro-batches",
        "call model.train() before each micro-batch's forward pass; eval() belongs around an evaluation alone",
    ),
    "step-on-skip": (
        "optimizer stepped on a skipped step",
        "where one micro-batch is not finite, skip the whole update: test once, after the last backward",
    ),
    "scaler-per-part": (
        "gradient scaler updated per micro-batch",
        "call scaler.update once per optimizer step",
    ),
    "samples-lost": (
        "samples dropped or duplicated",
        "look at the loader: drop_last, even_batches, padding of samplers, batch // parts",
    ),
    "processes-apart": (
        "gradients are not averaged over the processes",
        "call the wrapped model (DDP), leave no_sync before the last backward, or all_reduce the gradients",
    ),
    "loss-reported": (
        "loss reported differently from what is trained",
        "report the sum of the micro-batches' shares, the number whose gradient is taken",
    ),
    "non-determinism": (
        "the same update twice gives two results",
        "seed what draws random numbers, or make it deterministic; nothing can be compared before",
    ),
    "unexplained": ("a difference that fits no known pattern", "look at the component that differs first"),
}
"""Name -> kind in words and advice."""


def cause(name: str, seen: str, *explains: str, confidence: str = "measured") -> Cause:
    """Return a cause of a known kind.

    Args:
        name: in KINDS.
        seen: the pattern that was measured.
        *explains: components.
        confidence: as in Cause.

    Returns:
        The cause.
    """
    return Cause(name, KINDS[name][0], seen, KINDS[name][1], confidence, explains)


GRADIENT = ("gradient before clipping", "gradient at the step")
