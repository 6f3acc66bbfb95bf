"""[planned]: the stamp of a plan that was written to a file, by which it is known again."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Self

from pydantic import Field, StrictFloat, StrictInt, field_validator

from isobatch.recipe.parts import Part


class Planned(Part):
    """Where the numbers of a planned recipe came from.

    Args:
        batches: from the batch of the first recipe to the one that the numbers now belong to.
        held: decays that a floor holds, as rows name them, and what each was at the first batch.
        stages: batches of the stages of batch.schedule at the first batch, where they had to be rounded.
    """

    batches: tuple[StrictInt, ...]
    held: dict[str, StrictFloat] = Field(default_factory=dict)
    stages: tuple[StrictInt, ...] = ()

    @field_validator("batches")
    @classmethod
    def _on_the_way(cls, batches: tuple[int, ...]) -> tuple[int, ...]:
        if len(batches) < 2 or min(batches) < 1:
            raise ValueError(f"planned.batches={list(batches)} must hold at least two batches: from, to")
        return batches

    @field_validator("held")
    @classmethod
    def _in_range(cls, held: dict[str, float]) -> dict[str, float]:
        for key, decay in held.items():
            if not 0 <= decay < 1:
                raise ValueError(f"planned.held[{key!r}]={decay!r} must be in [0, 1)")
        return held

    @field_validator("stages")
    @classmethod
    def _whole(cls, stages: tuple[int, ...]) -> tuple[int, ...]:
        if stages and min(stages) < 1:
            raise ValueError(f"planned.stages={list(stages)} must be batches of at least 1")
        return stages

    def check(self, size: int) -> None:
        """Refuse a file whose batch was changed by hand after its numbers were planned.

        Args:
            size: batch.size.

        Raises:
            ValueError: another batch than the one planned for.
        """
        last = self.batches[-1]
        if last != size:
            raise ValueError(
                f"batch.size={size}, but the other numbers of this file were planned for {last} ([planned]); put "
                f"batch.size back to {last} and plan {size} from there, or remove [planned] if they hold for {size}"
            )

    def then(self, size: int, held: Mapping[str, float] = MappingProxyType({}), stages: tuple[int, ...] = ()) -> Self:
        """Return the stamp of the next plan.

        Args:
            size: its batch.
            held: decays that a floor holds at it, as they were at the first batch.
            stages: of batch.schedule at the first batch, where they had to be rounded.

        Returns:
            The stamp, itself for a batch that stays.

        Example:
            >>> Planned(batches=(8, 32)).then(128).batches
            (8, 32, 128)
        """
        if size == self.batches[-1]:
            return self
        return self.model_copy(
            update={"batches": (*self.batches, size), "held": {**self.held, **held}, "stages": stages}
        )

    def of_group(self, name: str) -> Self:
        """Return the stamp for a group that states moments of its own.

        Args:
            name: of the group.

        Returns:
            The stamp, the group's decays in place of the optimizer's.

        Example:
            >>> stamp = Planned(batches=(8, 512), held={"optimizer.alpha": 0.99, "groups.head.alpha": 0.9})
            >>> stamp.of_group("head").held
            {'optimizer.alpha': 0.9}
        """
        place = f"groups.{name}."
        own = {f"optimizer.{key.removeprefix(place)}": old for key, old in self.held.items() if key.startswith(place)}
        return self.model_copy(update={"held": own})
