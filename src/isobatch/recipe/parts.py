"""The parts of a recipe: batch, optimizer, schedule, batch norm, and the forms of the rules."""

from typing import Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    field_validator,
    model_validator,
)

from isobatch.curves import shape_of
from isobatch.recipe.autowu import Search


class Part(BaseModel):
    """Frozen, and strict about keys and numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)


class Adaptive(Part):
    """A batch that follows the gradient noise scale: B = sqrt(exchange_rate * B_simple).

    Args:
        exchange_rate: r in samples, how many more samples a saved step is worth; B**2/B_simple where a batch is right.
        settle: shortest span between two changes, such as "2 epochs"; a twentieth of the run unless given.
        least: smallest batch.
        most: largest batch, by memory or by the critical batch size; the data set unless given.
        hysteresis: relative change below which nothing is done.
        growth: largest factor of one change.
        drift: relative move of the reference's temperature (its learning rate) that voids the estimate.
    """

    exchange_rate: StrictFloat = Field(gt=0)
    settle: str | None = None
    least: StrictInt = Field(default=1, ge=1)
    most: StrictInt | None = Field(default=None, ge=1)
    hysteresis: StrictFloat = Field(default=0.2, ge=0)
    growth: StrictFloat = Field(default=2.0, gt=1)
    drift: StrictFloat = Field(default=0.25, gt=0)


class Noise(Part):
    """Measuring the gradient noise scale while a recipe is trained.

    Args:
        every: steps from one measurement to the next; a fixed number, so that a resumed run measures the same steps.
        half_life: of the averages, such as "2 epochs"; batch.adaptive.settle or a twentieth of the run unless given.
        geometry: euclidean, adam or sign.
        capture: auto (ranks and micro-batches, else rows of known layers), chunks, rows, norms, or halves (measured
            steps run in two passes, whatever the layers are).
    """

    every: StrictInt = Field(default=4, ge=1)
    half_life: str | None = None
    geometry: Literal["euclidean", "adam", "sign"] = "euclidean"
    capture: Literal["auto", "chunks", "rows", "norms", "halves"] = "auto"


class Batch(Part):
    """The global batch: samples (or tokens) per optimizer step, and how it is spread.

    Args:
        size: global samples per optimizer step.
        unit: what the clock counts, samples or tokens.
        micro: samples per device and forward pass; size/devices unless given.
        devices: data-parallel devices.
        schedule: pairs (start, batch), such as [["0 epochs", 8], ["10 epochs", 128]]; the settings still hold at size.
        adaptive: a batch that follows the noise scale from size on, instead of a schedule.
        schedule_lr: whether the numbers per step follow the rules at each stage of the schedule (scale, unless
            given), or stay as they are stated (keep), as where a ramp of the batch leaves the learning rate alone.
        sequence: tokens in a sample, which lets spans be given in either.
        reduction: how the loss adds up over the batch: mean (unless given), sum, or "times batch" (a mean that is
            multiplied by it).
    """

    size: StrictInt = Field(ge=1)
    unit: Literal["samples", "tokens"] = "samples"
    micro: StrictInt | None = Field(default=None, ge=1)
    devices: StrictInt = Field(default=1, ge=1)
    schedule: tuple[tuple[str, StrictInt], ...] | None = None
    adaptive: Adaptive | None = None
    schedule_lr: Literal["scale", "keep"] | None = None
    sequence: StrictInt | None = Field(default=None, ge=1)
    reduction: Literal["mean", "sum", "times batch"] | None = None

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.schedule is not None and self.adaptive is not None:
            raise ValueError("batch.schedule and batch.adaptive both set the batch; remove one of them")
        if self.schedule is None and self.schedule_lr is not None:
            raise ValueError(
                f'batch.schedule_lr = "{self.schedule_lr}" needs batch.schedule; add the stages, or remove it'
            )
        whole = self.devices * (self.micro or 1)
        sizes = [("batch.size", self.size)]
        sizes += [(f'batch.schedule from "{start}"', batch) for start, batch in self.schedule or ()]
        if self.schedule is not None and not self.schedule:
            raise ValueError('batch.schedule=[] has no stage; give [["0 epochs", 8], ["10 epochs", 128]] or remove it')
        for name, size in sizes:
            if size < 1:
                raise ValueError(f"{name}: {size} must be a whole number of at least 1")
            if size % whole:
                lower = size // whole * whole
                near = f"{lower} or {lower + whole}" if lower else f"{whole}"
                raise ValueError(f"{name}={size} is not a multiple of micro x devices = {whole}; nearest: {near}")
        return self

    @property
    def summed(self) -> bool:
        """Whether the gradient grows with the batch, because the loss is summed or multiplied by it."""
        return self.reduction in ("sum", "times batch")

    @property
    def per_device(self) -> int:
        """Samples per device and forward pass: what batch norm sees."""
        return self.micro or self.size // self.devices

    @property
    def accumulation(self) -> int:
        """Micro-batches per optimizer step on each device."""
        return self.size // (self.per_device * self.devices)


class Optimizer(Part):
    """The optimizer and its numbers per step.

    Args:
        name: sgd, adam, adamw, rmsprop, or another name known to the rules.
        lr: learning rate at batch.size, for the loss as batch.reduction says.
        momentum: heavy-ball momentum, PyTorch form without dampening.
        nesterov: Nesterov's form of it.
        betas: Adam's moments.
        alpha: RMSProp's moment.
        eps: beside sqrt(v).
        eps_inside: whether eps stands inside the root, sqrt(v + eps), instead.
        weight_decay: lambda.
        decay: how lambda is coupled: decoupled, coupled, independent or trust-ratio; the optimizer's own unless given.
        clip: largest norm of the gradient.
        clip_by: norm (of the whole gradient), value (of each entry) or module (the norm within each module).
        lr_limit: largest stable lr/(1-momentum), where you have measured it.
        reference_batch: batch whose second moment the invariant forms keep; batch.size unless given.
    """

    name: str
    lr: StrictFloat = Field(gt=0)
    momentum: StrictFloat = Field(default=0.0, ge=0, lt=1)
    nesterov: StrictBool = False
    betas: tuple[StrictFloat, StrictFloat] = (0.9, 0.999)
    alpha: StrictFloat = Field(default=0.99, ge=0, lt=1)
    eps: StrictFloat = Field(default=1e-8, ge=0)
    eps_inside: StrictBool = False
    weight_decay: StrictFloat = Field(default=0.0, ge=0)
    decay: Literal["decoupled", "coupled", "independent", "trust-ratio"] | None = None
    clip: StrictFloat | None = Field(default=None, gt=0)
    clip_by: Literal["norm", "value", "module"] = "norm"
    lr_limit: StrictFloat | None = Field(default=None, gt=0)
    reference_batch: StrictInt | None = Field(default=None, ge=1)

    @field_validator("betas")
    @classmethod
    def _in_range(cls, betas: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"optimizer.betas={list(betas)} must each be in [0, 1)")
        return betas

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.nesterov and not self.momentum:
            raise ValueError("optimizer.nesterov needs momentum > 0; set momentum or drop nesterov")
        if self.clip_by != "norm" and self.clip is None:
            raise ValueError(f'optimizer.clip_by = "{self.clip_by}" needs optimizer.clip; set it or drop clip_by')
        return self


class Schedule(Part):
    """Length, warm-up and shape, in samples.

    Args:
        length: such as "30 epochs", "20_000 samples", "500 steps" (steps of this recipe's batch).
        warmup: linear warm-up, same form.
        shape: a name in `isobatch.curves.SHAPES` (constant, linear, minus-sqrt, cosine), or autowu (see `search`).
        final: learning rate at the end, as a share of lr.
        stair: samples over which the reference held each value; one step of this recipe unless given.
        decay_from: where the decay begins, such as "1 epoch"; the end of the warm-up unless given.
        search: how autowu looks for the peak.
    """

    length: str
    warmup: str = "0 samples"
    shape: str = "constant"
    final: StrictFloat = Field(default=0.0, ge=0, le=1)
    stair: StrictFloat | None = Field(default=None, gt=0)
    decay_from: str | None = None
    search: Search | None = None

    @field_validator("shape")
    @classmethod
    def _known(cls, name: str) -> str:
        return shape_of(name, beside=("autowu",))

    @model_validator(mode="after")
    def _searches(self) -> Self:
        if not self.searches:
            if self.search is not None:
                raise ValueError('schedule.search needs schedule.shape = "autowu"; set it, or drop the search')
        elif self.warmup != "0 samples" or self.final or self.decay_from is not None:
            raise ValueError("autowu has a warm-up and a decay of its own; drop schedule.warmup, final and decay_from")
        return self

    @property
    def searches(self) -> bool:
        """Whether the learning rate is searched for while it trains."""
        return self.shape == "autowu"


class BatchNorm(Part):
    """Batch norm's running statistics.

    Args:
        momentum: PyTorch's m = 1 - decay, per forward pass.
        synchronised: whether statistics are taken over all devices, not over each one's own samples.
    """

    momentum: StrictFloat = Field(default=0.1, ge=0, le=1)
    synchronised: StrictBool = False


class Rules(Part):
    """Which form of a rule is used where several exist.

    Args:
        lr: auto (the optimizer's own) or a word of `isobatch.rules.LEARNING_RATES`: linear, sqrt, noise-aware, legw
            (warm-up included, nothing else moves), speed or keep.
        momentum: sample-clock, keep, or auto: kept where kappa/(1-mu) steps are short against the run or the sample
            clock would pass the stability limit.
        betas: power, linear, keep, or auto: beta1 likewise, beta2 by power.
        average: half-life (rho**kappa) or keep (the decay per update, another average at every other batch).
        floors: smallest beta1 and beta2 that a change may reach.
        noise_share: f, the noise share of the second moment at batch.size, for noise-aware.
    """

    lr: str = "auto"
    momentum: Literal["sample-clock", "keep", "auto"] = "sample-clock"
    betas: Literal["power", "linear", "keep", "auto"] = "power"
    average: Literal["half-life", "keep"] = "half-life"
    floors: tuple[StrictFloat, StrictFloat] = (0.5, 0.95)
    noise_share: StrictFloat | None = Field(default=None, ge=0, le=1)

    @model_validator(mode="after")
    def _in_range(self) -> Self:
        if not all(0 <= floor < 1 for floor in self.floors):
            raise ValueError(f"rules.floors={list(self.floors)} must each be in [0, 1)")
        return self
