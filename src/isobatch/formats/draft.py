"""Draft: what a file says, by short names, until it is a recipe."""

from dataclasses import dataclass, field
from typing import Any

from isobatch.errors import InputError
from isobatch.plan import Recipe
from isobatch.rules import OPTIMIZERS
from isobatch.units import to_samples

_OPTIMIZER = (
    "name",
    "lr",
    "momentum",
    "nesterov",
    "alpha",
    "eps",
    "eps_inside",
    "weight_decay",
    "decay",
    "clip",
    "clip_by",
)
_SHAPES = {"hold": "constant", "linear": "linear", "cosine": "cosine"}


@dataclass
class Draft:
    """Facts of a recipe as they are read.

    Args:
        unit: what the clock counts, samples or tokens.
        values: numbers by the short names of `view.FIELDS`, and the optimizer's name, nesterov, coupling and the like.
        spans: name -> quantity, such as "2000 steps".
        warmup_from: share of the peak at which the warm-up begins.
        rest: segments of the learning rate after the warm-up (`isobatch.recipe.Segment`); a span may be a span's name.
        curves: segments of other settings.
        groups: parameters with numbers of their own.
        average: what the weight average has beside its decay: every, start, ramp.
        batch: what the batch has beside its size: sequence, reduction, schedule.
        stair: samples over which the trainer holds each value of its schedule; one step unless given.
        kept: spans that the recipe shall hold by name.
        rules: forms of rules that the file's own trainer imposes.
        data_size: samples in an epoch.
    """

    unit: str = "samples"
    values: dict[str, Any] = field(default_factory=dict)
    spans: dict[str, str] = field(default_factory=dict)
    warmup_from: float = 0.0
    rest: list[dict[str, Any]] = field(default_factory=list)
    curves: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    groups: list[dict[str, Any]] = field(default_factory=list)
    average: dict[str, Any] = field(default_factory=dict)
    batch: dict[str, Any] = field(default_factory=dict)
    stair: float | None = None
    kept: list[str] = field(default_factory=list)
    rules: dict[str, Any] = field(default_factory=dict)
    data_size: int | None = None

    def samples(self, name: str) -> float:
        """Return a span in samples (or tokens)."""
        if name not in self.spans:
            raise InputError(f"the file does not say the {name} of the run, in a way that can be read; add it")
        size, sequence = self.values["batch"], self.batch.get("sequence")
        more = {"sequence": sequence} if sequence is not None else {}
        return to_samples(self.spans[name], batch=size, data_size=self.data_size, name=name, unit=self.unit, **more)

    def samples_in(self, unit: str) -> float:
        """Return the samples (or tokens) of the recipe's clock in one of a unit's."""
        sequence = self.batch.get("sequence") or 1
        if unit == self.unit:
            return 1.0
        return float(sequence) if self.unit == "tokens" else 1.0 / sequence

    def recipe(self) -> Recipe:
        """Return the recipe of these facts; refuse facts that are no recipe."""
        values = self.values
        pairs = (("size", "batch"), ("devices", "devices"), ("micro", "micro"))
        batch = {key: values[name] for key, name in pairs if values.get(name) is not None}
        optimizer = {key: _float(values[key]) for key in _OPTIMIZER if values.get(key) is not None}
        has = OPTIMIZERS[values["name"]].keys if values.get("name") in OPTIMIZERS else ()
        for name in ("alpha", "eps"):  # what some trainers hand over, and this optimizer does not have
            if name not in has:
                optimizer.pop(name, None)
        if "beta1" in values and "betas" in has:
            optimizer["betas"] = (float(values["beta1"]), float(values["beta2"]))
        tables: dict[str, Any] = {"batch": {"unit": self.unit} | batch | self.batch, "optimizer": optimizer}
        if self.data_size is not None:
            tables["data_size"] = self.data_size
        if "length" in self.spans:
            tables |= self._schedule()
        tables |= {"groups": self.groups} if self.groups else {}
        tables |= {"spans": {name: self.spans[name] for name in self.kept}} if self.kept else {}
        if values.get("ema") is not None or self.average:
            tables["ema"] = dict(self.average)
            for key, name in (("decay", "ema"), ("final", "ema_final")):
                if values.get(name) is not None:
                    tables["ema"][key] = float(values[name])
        if values.get("batch_norm") is not None:
            tables["batch_norm"] = {"momentum": float(values["batch_norm"])}
            if values.get("synchronised"):
                tables["batch_norm"]["synchronised"] = True
        if self.rules:
            tables["rules"] = self.rules
        return Recipe.parse(tables)

    def _schedule(self) -> dict[str, Any]:
        table: dict[str, Any] = {"length": self.spans["length"]}
        if self.stair is not None:
            table["stair"] = float(self.stair)
        warm = "warmup" in self.spans and self.samples("warmup") > 0
        if warm and self.samples("warmup") > self.samples("length"):
            raise InputError(
                f"the warm-up ({self.spans['warmup']}) is longer than the run ({self.spans['length']}); "
                "shorten the one or lengthen the other"
            )
        rest = self.rest or [{"by": "hold"}]
        first, spans = rest[0], [segment.get("span") for segment in rest]
        plain = len(rest) == 1 and spans == [None] and set(first) <= {"by", "to"} and first["by"] in _SHAPES
        tables: dict[str, Any] = {"schedule": table}
        if plain and (not warm or not self.warmup_from):
            table |= {"shape": _SHAPES[first["by"]], "final": float(first.get("to", 0.0))}
            table |= {"warmup": self.spans["warmup"]} if warm else {}
        else:
            up = {"span": "warmup", "by": "linear", "start": float(self.warmup_from), "to": 1.0}
            lead = [] if not warm else [{"span": "warmup", "by": "hold"}] if self.warmup_from == 1 else [up]
            tables["curves"] = {"lr": self._spoken([*lead, *rest])}
        others = {name: self._spoken(segments) for name, segments in self.curves.items()}
        if others:
            tables["curves"] = tables.get("curves", {}) | others
        return tables

    def _spoken(self, segments: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return segments with the quantities of their spans; a segment without any samples is left out."""
        out = []
        for segment in segments:
            named = {
                k: self.spans[v] for k, v in segment.items() if k in ("span", "every", "scale") and v in self.spans
            }
            if "span" in segment and segment["span"] in self.spans and self.samples(segment["span"]) <= 0:
                continue
            out.append({key: _float(value) for key, value in (segment | named).items() if value is not None})
        return out


def _float(value: Any) -> Any:
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value
