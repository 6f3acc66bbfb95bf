"""[planned]: the stamp of a plan that was written to a file, by which it is known again."""

from typing import Self

from pydantic import StrictInt, field_validator

from isobatch.recipe.parts import Part


class Planned(Part):
    """Where the numbers of a planned recipe came from.

    Args:
        batches: from the batch of the first recipe to the one that the numbers now belong to.
    """

    batches: tuple[StrictInt, ...]

    @field_validator("batches")
    @classmethod
    def _on_the_way(cls, batches: tuple[int, ...]) -> tuple[int, ...]:
        if len(batches) < 2 or min(batches) < 1:
            raise ValueError(f"planned.batches={list(batches)} must hold at least two batches: from, to")
        return batches

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

    def then(self, size: int) -> Self:
        """Return the stamp of the next plan.

        Args:
            size: its batch.

        Returns:
            The stamp, itself for a batch that stays.

        Example:
            >>> Planned(batches=(8, 32)).then(128).batches
            (8, 32, 128)
        """
        return self if size == self.batches[-1] else self.model_copy(update={"batches": (*self.batches, size)})
