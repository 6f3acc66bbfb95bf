"""A logger that notes what it is told, and what it must have been told of a run."""

import math


class Notes:
    def __init__(self):
        self.told, self.closed = [], 0

    def add(self, values, seen):
        assert not self.closed
        self.told.append((seen, dict(values)))

    def close(self):
        self.closed += 1


def check(notes, clock, half_life):
    """Half-life and noise scale stand at the samples seen, up to the end of the run."""
    places = [seen for seen, _ in notes.told]
    assert places == sorted(places)
    assert 0 < places[0] < places[-1] == clock.seen
    for seen, values in notes.told:
        assert (values["isobatch/seen"], values["isobatch/half_life"]) == (seen, half_life)
        assert all(math.isfinite(value) for value in values.values())
    last, estimate = notes.told[-1][1], clock.noise.estimate()
    assert last["isobatch/noise_scale_identified"] == (estimate.verdict.value == "identified")
    known = estimate.value is not None and math.isfinite(estimate.value)
    assert last.get("isobatch/noise_scale") == (estimate.value if known else None)
    assert notes.closed == 1
