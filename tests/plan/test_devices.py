"""Fewer devices are a question of their own: the same batch by accumulation, or the batch that they take."""

import json

import pytest
from tests.recipes import recipe

from isobatch import InputError, cli


def passes(size, devices, micro):
    """One update dealt out sample by sample: passes until each of the batch has been on a device."""
    left, n = size, 0
    while left > 0:
        for _ in range(devices):
            left -= min(micro, left)
        n += 1
    return n


NANO = {"size": 491_520, "unit": "tokens", "micro": 12_288, "devices": 8}
BIG = {"size": 1024, "devices": 32}
ASKED = [
    # the recipe's batch, what is asked, n that keeps it, the batch that the devices take, its n
    (BIG, {"devices": 4}, 8, 128, 1),
    (BIG, {"devices": 4, "micro": 32}, 8, 128, 1),
    (BIG, {"devices": 4, "micro": 64}, 4, 256, 1),
    (BIG, {"micro": 8}, 4, 256, 1),
    (BIG, {"devices": 64}, 1, 2048, 1),
    (BIG, {"devices": 1, "micro": 1}, 1024, 1, 1),
    (BIG, {"devices": 128, "micro": 64}, 1, 8192, 1),
    (NANO, {"devices": 1}, 40, 61_440, 5),
    ({"size": 64, "micro": 4, "devices": 2}, {"devices": 1}, 16, 32, 8),
    ({"size": 64, "micro": 4, "devices": 2}, {"micro": 8}, 4, 128, 8),
]
plain = {"ema": None, "schedule": None}


@pytest.mark.parametrize(("batch", "asked", "n", "taken", "after"), ASKED)
def test_devices_and_micro_alone_have_two_answers(batch, asked, n, taken, after):
    plan = recipe(batch=batch, **plain).at(**asked)
    assert plan.kept.accumulation == n == passes(batch["size"], plan.kept.devices, plan.kept.micro)
    assert plan.rows[0].rule == f"keep the batch, accumulate n = {n}"
    new = plan.recipe.batch
    assert (new.size, new.accumulation, plan.kappa) == (taken, after, taken / batch["size"])
    assert plan.row("batch.accumulation").becomes == after
    text = str(plan)
    assert f"n = {n} keeps the batch of {batch['size']}" in text
    assert f"{new.devices} x {new.per_device} x n = {after} is a batch of {taken}" in text


@pytest.mark.parametrize("size", [32, 96, 1024, 960])
@pytest.mark.parametrize("devices", [1, 2, 3, 8])
@pytest.mark.parametrize("micro", [1, 4, 7, 32, 500])
def test_n_is_right_for_every_devices_and_micro(size, devices, micro):
    plan = recipe(batch={"size": size}, batch_norm={"momentum": 0.1}, **plain).at(devices=devices, micro=micro)
    kept = plan.kept
    assert kept.accumulation == passes(size, devices, micro)
    assert kept.micro <= micro
    assert kept.even == (kept.devices * kept.micro * kept.accumulation == size)
    assert (kept.even_micro is None) == (kept.even or size % devices != 0)
    if kept.even_micro is not None:
        assert size % (devices * kept.even_micro) == 0
        assert not any(size % (devices * m) == 0 for m in range(kept.even_micro + 1, micro + 1))
        assert f"micro = {kept.even_micro} makes it n = " in plan.rows[0].note
    assert kept.batch_norm == pytest.approx(1 - 0.9 ** (kept.micro / size), rel=1e-9)
    assert plan.recipe.batch.size == plan.recipe.batch.devices * plan.recipe.batch.per_device


@pytest.mark.parametrize(("size", "batch", "asked", "n"), [
    (491_520, NANO, {"devices": 1, "micro": 12_288}, 40),
    (1024, {"size": 1024}, {"devices": 4, "micro": 64}, 4),
    (128, {"size": 1024}, {"devices": 4, "micro": 16}, 16),
    (128, {"size": 1024, "devices": 8}, {}, 8),
    (128, {"size": 1024, "devices": 8}, {"devices": 2}, 8),
])  # fmt: skip
def test_row_zero_beside_a_batch_that_was_asked_for(size, batch, asked, n):
    plan = recipe(batch=batch, **plain).at(size, **asked)
    assert plan.rows[0].rule == f"keep the batch, accumulate n = {n}"


def test_batch_norm_of_the_kept_batch_is_the_new_devices():
    plan = recipe(batch={"size": 256, "devices": 8}, batch_norm={"momentum": 0.1}, **plain).at(64, devices=2)
    assert plan.kept.batch_norm == pytest.approx(0.1)
    assert "batch norm" not in plan.rows[0].note
    plan = recipe(batch={"size": 256, "devices": 8}, batch_norm={"momentum": 0.1}, **plain).at(devices=2, micro=64)
    assert plan.kept.batch_norm == pytest.approx(1 - 0.9**2)
    assert "batch norm then sees 64 samples a pass: its momentum becomes 0.19" in plan.rows[0].note


def test_the_command_answers_without_a_batch_size(tmp_path, capsys):
    path = tmp_path / "recipe.toml"
    path.write_text('[batch]\nsize = 1024\ndevices = 32\n[optimizer]\nname = "sgd"\nlr = 0.1\n')
    assert cli.run(["plan", str(path), "--devices", "4", "--micro", "32"]) == 0
    assert "4 x 32 x n = 8 keeps the batch of 1024" in capsys.readouterr().out
    assert cli.run(["plan", str(path), "--devices", "4", "--micro", "32", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["kept"] == {"size": 1024, "devices": 4, "micro": 32, "accumulation": 8, "even": True,
                            "even_micro": None, "batch_norm": None}  # fmt: skip
    assert told["recipe"]["batch"]["size"] == 128
    with pytest.raises(InputError, match="or give the devices and what fits on them: --devices, --micro"):
        recipe().at()
