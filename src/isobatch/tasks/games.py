"""The old place of games as streams, which are in the distribution of the studies (isobatch-studies) now."""

from isobatch.renamed import old_names

_NAMES = ("Games", "Outcome", "Rollouts", "a2c_loss", "choose", "discounted", "uniform")

__getattr__ = old_names(
    __name__,
    {name: f"isobatch_studies.tasks.games.{name}" for name in _NAMES} | {"Stream": "isobatch.tasks.stream.Stream"},
)
