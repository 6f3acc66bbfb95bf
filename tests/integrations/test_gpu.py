"""The HF callback on a GPU, with a real gradient scaler."""

import pytest
import torch

pytest.importorskip("transformers")

from tests.integrations.test_hf import IsobatchCallback, trained

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_the_clock_counts_on_a_gpu_what_it_counts_on_a_cpu(tmp_path, precision):
    callback = IsobatchCallback(50, noise={"every": 1}, quiet=True)
    half = {precision: True} if precision != "fp32" else {}
    trained(tmp_path, callback, use_cpu=False, **half)
    assert callback.clock.drawn == 108
    assert callback.ema.seen == callback.clock.seen <= 108
    assert all(tensor.is_cuda and tensor.isfinite().all() for tensor in callback.ema.average().values())
