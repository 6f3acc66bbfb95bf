"""[critical]: a measured critical batch, kept with the recipe, and what it says of a noise scale."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Self

from pydantic import Field, StrictFloat, StrictInt, model_validator

from isobatch.errors import InputError, unreadable
from isobatch.recipe.parts import Part

_TABLE = re.compile(r"^\[critical\][^\n]*\n(?:(?!\[)[^\n]*\n?)*", re.MULTILINE)


class Critical(Part):
    """A critical batch with where it came from.

    It holds for a goal and near the temperature (lr/batch) at which it was measured. The ratio B_crit/B_simple turns
    a noise scale measured elsewhere on this task into a critical batch; without it B_simple is no batch size.

    Args:
        batch: B_crit = E_min/S_min, in the recipe's unit.
        low: lower end of its interval; left out where the data do not bound it.
        high: upper end of its interval; left out where the data do not bound it.
        samples: E_min, the fewest samples to the goal.
        goal: what was reached, such as "loss 0.3".
        source: how it was measured.
        date: when, such as "2026-11-27".
        noise_scale: B_simple measured on the way to the same goal.
        ratio: B_crit/B_simple.
        ratio_low: lower end of its interval.
        ratio_high: upper end of its interval.
    """

    batch: StrictFloat | StrictInt = Field(gt=0)
    low: StrictFloat | StrictInt | None = Field(default=None, gt=0)
    high: StrictFloat | StrictInt | None = Field(default=None, gt=0)
    samples: StrictFloat | StrictInt | None = Field(default=None, gt=0)
    goal: str = ""
    source: str = ""
    date: str | None = Field(default=None, pattern=r"^\d{4}-\d{2}-\d{2}$")
    noise_scale: StrictFloat | StrictInt | None = Field(default=None, gt=0)
    ratio: StrictFloat | StrictInt | None = Field(default=None, gt=0)
    ratio_low: StrictFloat | StrictInt | None = Field(default=None, gt=0)
    ratio_high: StrictFloat | StrictInt | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        for name, low, value, high in (
            ("critical.batch", self.low, self.batch, self.high),
            ("critical.ratio", self.ratio_low, self.ratio, self.ratio_high),
        ):
            ends = [end for end in (low, value, high) if end is not None]
            if ends != sorted(ends):
                raise ValueError(f"{name}={value} must lie in its interval, [{low}, {high}]")
        return self

    def calibrated(self, noise_scale: float) -> Critical:
        """Return the critical batch that a noise scale stands for, by the stored ratio.

        Args:
            noise_scale: B_simple measured on this task, in its unit.

        Returns:
            B_crit = ratio*B_simple with the ratio's interval.

        Raises:
            InputError: no ratio is stored.
        """
        if self.ratio is None:
            raise InputError("[critical] holds no ratio; measure one with `isobatch noise sweep --calibrate`")
        ends = {
            name: None if end is None else end * noise_scale
            for name, end in (("low", self.ratio_low), ("high", self.ratio_high))
        }
        source = f"noise scale {noise_scale:g} x ratio {self.ratio:.3g}" + (f" ({self.source})" if self.source else "")
        return self.model_copy(
            update={"batch": self.ratio * noise_scale, **ends, "source": source, "noise_scale": noise_scale}
        )

    def about(self, unit: str) -> str:
        """Return it in words, with its interval and source.

        Args:
            unit: of the batch.

        Returns:
            Text.

        Example:
            >>> Critical(batch=41.0, low=28.0, high=60.0, source="noise sweep", date="2026-11-27").about("samples")
            'critical batch 41 samples [28 to 60] (noise sweep, 2026-11-27)'
        """
        ends = " to ".join("?" if end is None else f"{end:.3g}" for end in (self.low, self.high))
        interval = f" [{ends}]" if self.low is not None or self.high is not None else ""
        origin = ", ".join(filter(None, (self.source, self.date)))
        return f"critical batch {self.batch:.4g} {unit}{interval}" + (f" ({origin})" if origin else "")

    def to_toml(self) -> str:
        """Return the table as TOML, its numbers to six digits."""
        lines = ["[critical]"]
        for key, value in self.model_dump(exclude_none=True).items():
            number = isinstance(value, (int, float))
            if value != "":
                lines.append(f"{key} = {float(f'{value:.6g}')!r}" if number else f"{key} = {json.dumps(value)}")
        return "\n".join(lines) + "\n"

    def store(self, path: Path) -> None:
        """Write the table into a recipe file, in place of an older one; the rest of the file stays as it is.

        Args:
            path: a recipe file.

        Raises:
            InputError: a file that cannot be read or written, or that writes the table inline.
        """
        try:
            text = path.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise unreadable("the recipe", path, error) from None
        if re.search(r"^critical\s*=", text, re.MULTILINE):
            raise InputError(f"{path} writes critical inline; make it a table, [critical], at the end of the file")
        kept = _TABLE.sub("", text).rstrip("\n")
        try:
            path.write_text(f"{kept}\n\n{self.to_toml()}", "utf-8")
        except OSError as error:
            raise InputError(f"cannot write {path}: {error.strerror}; copy this by hand:\n{self.to_toml()}") from None
