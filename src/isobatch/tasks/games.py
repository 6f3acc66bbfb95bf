"""The old place of games as streams, which are in the distribution of the studies (isobatch-studies) now."""

from isobatch.renamed import old_names

_GAMES = "isobatch_studies.tasks.games"
_KEPT = ("Games", "Rollouts", "a2c_loss", "choose", "discounted", "uniform")

__getattr__ = old_names(
    __name__,
    {name: f"{_GAMES}.{name}" for name in _KEPT}
    | {"Outcome": f"{_GAMES}.Transition", "Stream": "isobatch.tasks.stream.Stream"},
)
