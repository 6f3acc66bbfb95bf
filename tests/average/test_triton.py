"""The Triton kernel by Triton's interpreter where it is installed, and what happens where there is no GPU."""

import json
import os
import subprocess
import sys
import warnings
from importlib.util import find_spec

import pytest
import torch
from torch import nn

from isobatch.average import ModelEMA, MultiEMA, Storage
from isobatch.errors import InputError
from isobatch.gradients import triton_for, triton_kernel

TRITON = Storage(compiled="triton")


@pytest.fixture(autouse=True)
def forgotten():
    triton_for.cache_clear()
    yield
    triton_for.cache_clear()


def checked(interpret):
    made = subprocess.run(
        [sys.executable, "-m", "tests.average.triton_checks"],
        env=os.environ | {"TRITON_INTERPRET": interpret},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    return json.loads(made.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.skipif(find_spec("triton") is None, reason="needs triton")
def test_the_kernel_is_the_rule_by_the_interpreter():
    found = checked("1")
    assert len(found) == 3 * (4 + 3)
    for name, value in found.items():
        assert value <= (4 if name.startswith("rule") else 1e-6), (name, value)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("triton") is None, reason="needs triton")
def test_the_kernel_compiles_for_gpus_that_are_not_here_and_no_decay_is_part_of_it():
    assert checked("0") == {f"{w} {a}": True for w in ("fp32", "bf16", "fp16") for a in (80, 90)}


def walked(storage):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(80, 80), nn.Linear(80, 3)).bfloat16()
    averages = MultiEMA(model, half_lives=[20, 50], storage=storage)
    for _ in range(3):
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(0.9)
        averages.update(samples=8)
    return averages.average(50)


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter needs no GPU")
def test_without_a_gpu_one_warning_says_so_and_plain_pytorch_goes_on():
    with pytest.warns(UserWarning, match="plain PyTorch.*lies on cpu, and Triton needs a CUDA device") as told:
        mine = walked(TRITON)
    assert len([w for w in told if "triton" in str(w.message)]) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        walked(TRITON)
    plain = walked(Storage(flat=True))
    assert all(torch.equal(mine[name], plain[name]) for name in plain)


def test_without_triton_one_warning_names_it(monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(triton_kernel, "import_module", missing)
    triton_kernel._jitted.cache_clear()
    with pytest.warns(UserWarning, match="No module named 'triton.*pip install triton"):
        assert triton_for(torch.device("cpu")) is None


def test_a_kernel_that_fails_or_rounds_otherwise_is_left(monkeypatch):
    def wrong(averages, rests, previous, weights, shares):
        averages[0].zero_()

    def broken(*_):
        raise RuntimeError("no such architecture")

    plain = walked(Storage(flat=True))
    for kernel, words in ((wrong, "differs from what plain"), (broken, "no such architecture")):
        monkeypatch.setattr("isobatch.average.kernels.triton_for", lambda device, kernel=kernel: kernel)
        with pytest.warns(UserWarning, match=words):
            mine = walked(TRITON)
        assert all(torch.equal(mine[name], plain[name]) for name in plain)


@pytest.mark.parametrize(
    "options", [{"dtype": torch.bfloat16}, {"dtype": torch.float16, "rounding": "nearest"}, {"rounding": "compensated"}]
)
def test_only_averages_of_float32_rounded_to_nearest(options):
    rounding = {k: v for k, v in options.items() if k == "rounding"}
    dtype = {k: v for k, v in options.items() if k == "dtype"}
    with pytest.raises(InputError, match="float32"):
        ModelEMA(nn.Linear(1, 1), half_life=8, storage=Storage(compiled="triton", **rounding), **dtype)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_on_a_gpu_the_kernel_is_plain_pytorch_to_rounding(dtype):
    model = nn.Sequential(nn.Linear(300, 300), nn.Linear(300, 3)).to("cuda", dtype)
    pairs = [MultiEMA(model, half_lives=[20, 50, 300], storage=storage) for storage in (TRITON, Storage())]
    for _ in range(5):
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(0.9)
        for average in pairs:
            average.update(samples=8)
    assert pairs[0]._engine.buffers.intake.updates[0]._compiled[0][0]._function is triton_kernel.blended_by_triton
    for name, tensor in pairs[0].average(50).items():
        torch.testing.assert_close(tensor, pairs[1].average(50)[name], rtol=1e-6, atol=1e-7)
