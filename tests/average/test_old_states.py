"""States and names from before: a state saved under an old class name goes on bit for bit, old names name the new."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.average.kinds import ALL, BATCHES, model, step

import isobatch.average
from isobatch.average import LAWA, SWA, ModelEMA, MultiEMA, Storage, timm_warmup

SAVED = Path(__file__).parents[1] / "fixtures" / "averages-v1"
VALUES = json.loads((SAVED / "states.json").read_text())
TENSORS = load_file(SAVED / "states.safetensors")
MAKERS = {kind.name.replace(" ", "-"): kind.make for kind in ALL} | {
    "narrow": lambda m: MultiEMA(m, half_lives=[20, 90], dtype=torch.bfloat16),
    "compensated": lambda m: ModelEMA(m, half_life=50, storage=Storage(rounding="compensated"), buffers="average"),
    "stepped": lambda m: ModelEMA(m, decay=0.99, batch_size=8, warmup=timm_warmup(batch_size=8)),
}


def part(name, role):
    start = f"{name}|{role}|"
    return {key.removeprefix(start): value for key, value in TENSORS.items() if key.startswith(start)}


def test_every_kind_has_a_state_from_before():
    assert VALUES.keys() == MAKERS.keys()
    assert {values["class"] for values in VALUES.values()} >= {"Horizons", "UniformTail", "RecentMean", "ModelEMA"}


@pytest.mark.parametrize("name", MAKERS)
def test_a_saved_average_goes_on_bit_for_bit(name):
    module = model(seed=7)
    module.load_state_dict(part(name, "model"))
    average = MAKERS[name](module)
    average.load_state_dict({"tensors": part(name, "saved"), "values": VALUES[name]})
    for j in range(5, len(BATCHES)):
        step(module, j)
        average.update(samples=BATCHES[j])
    after = part(name, "after")
    found = average.state_dict()["tensors"]
    assert found.keys() == after.keys()
    assert all(torch.equal(found[key], after[key]) for key in after)


@pytest.mark.parametrize(("old", "new"), [("Horizons", MultiEMA), ("UniformTail", SWA), ("RecentMean", LAWA)])
def test_an_old_name_names_the_new_one(old, new):
    with pytest.warns(DeprecationWarning, match=f"{old} is now {new.__name__}"):
        assert getattr(isobatch.average, old) is new


def test_other_names_do_not_exist():
    with pytest.raises(AttributeError, match="Horizon"):
        isobatch.average.Horizon  # noqa: B018
