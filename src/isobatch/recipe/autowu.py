"""[schedule.search]: how a recipe's learning rate is searched for while it trains (AutoWU)."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictFloat, StrictInt

from isobatch.curves import Growth, interval_for


class Search(BaseModel):
    """AutoWU: the rate grows from lr_min to optimizer.lr until the loss turns.

    Args:
        lr_min: where the rate starts; optimizer.lr is the highest one it tries.
        warmup: longest warm-up as a share of the run.
        overshoot: decades by which the rate may grow while the tests are patient; it sets how often they are made.
        tests: such as "1 epoch" (as published), instead of overshoot.
        patience: tests in a row that must say that the loss has turned.
        confidence: of one vote.
        decay: cosine to 0 at once, or hold the peak and follow the cosine over the last part.
        cooldown: that part, as a share of the run.
        rollback: go back to weights, optimizer and average as they were where the loss was lowest.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    lr_min: StrictFloat = Field(default=1e-5, gt=0)
    warmup: StrictFloat = Field(default=0.5, gt=0, le=1)
    overshoot: StrictFloat = Field(default=0.25, gt=0)
    tests: str | None = None
    patience: StrictInt = Field(default=3, ge=1)
    confidence: StrictFloat = Field(default=0.95, gt=0.5, lt=1)
    decay: Literal["cosine", "hold"] = "cosine"
    cooldown: StrictFloat = Field(default=0.2, ge=0, le=1)
    rollback: StrictBool = False

    def growth(self, lr_max: float, length: float, stair: float, tests: float | None) -> Growth:
        """Return the search on the sample clock.

        Args:
            lr_max: highest rate.
            length: samples of the run.
            stair: samples of one reference step.
            tests: samples between two tests, None to follow the overshoot.

        Returns:
            How it grows and turns.

        Raises:
            ValueError: lr_min not below lr_max, patience longer than the warm-up, or a bound that steps cannot keep.
        """
        if self.lr_min >= lr_max:
            raise ValueError(
                f"schedule.search.lr_min={self.lr_min:g} must be below optimizer.lr={lr_max:g}, its highest rate"
            )
        low, end = self.lr_min / lr_max, self.warmup * length
        every = interval_for(self.overshoot, low, self.patience, end) if tests is None else tests
        growth = Growth(
            length=length,
            stair=stair,
            low=low,
            warmup=self.warmup,
            every=every,
            patience=self.patience,
            confidence=self.confidence,
            decay=self.decay,
            cooldown=self.cooldown,
        )
        if tests is None and growth.overshoot > self.overshoot * (1 + 1e-9):
            raise ValueError(
                f"schedule.search.overshoot={self.overshoot:g} decades cannot be kept: {self.patience} tests in "
                f"a warm-up of {end / stair:.4g} steps take {growth.overshoot:.2f}; allow it or raise lr_min"
            )
        return growth
