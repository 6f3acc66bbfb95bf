"""Every warning points at the user's line that led to it, however many calls, hooks and contexts lie between."""

import warnings
from pathlib import Path

import pytest
import torch
from tests.average.kinds import model
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

import isobatch.average
from isobatch import ModelEMA
from isobatch.average import LAWA, Storage, trainable
from isobatch.checkpoint import Checkpoints
from isobatch.errors import warn
from isobatch.noise import NoiseScale, measure
from isobatch.train import SampleScheduler

LINES = Path(__file__).read_text().splitlines()


def spoilt(make=lambda module: ModelEMA(module, half_life=50)):
    """An average that took in a weight that is not finite, and its model, which is finite again."""
    module = model()
    average, good = make(module), {name: t.clone() for name, t in module.state_dict().items()}
    with torch.no_grad():
        module[2].weight.view(-1)[1] = torch.inf
    check = average._engine.buffers.check
    with check.paused():
        average.update(samples=8)
    check._stale, check._moved = 1, True  # as where the share with the bad weight was not due
    module.load_state_dict(good)
    return average, module


def mended_as_it_is_read():
    average, _ = spoilt()
    average.average()  # here


def mended_as_it_is_read_from_a_function_of_mine():
    average, _ = spoilt()

    def weights():
        return average.average()  # here

    weights()


def mended_as_it_is_applied():
    average, module = spoilt()
    with average.applied(module):  # here
        pass


def mended_as_it_is_stored():
    average, _ = spoilt()
    average.state_dict()  # here


def mended_in_an_update():
    average, _ = spoilt()
    for _ in range(20):
        average.update(samples=8)  # here


def mended_in_a_hook_of_mine():
    average, module = spoilt()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.0)
    optimizer.register_step_post_hook(lambda *_: average.update(samples=8))  # here
    for one in module.parameters():
        one.grad = torch.zeros_like(one)
    for _ in range(20):
        optimizer.step()


def mended_in_another_kind():
    average, _ = spoilt(lambda module: LAWA(module, last=2, every=8))
    average.average()  # here


def parameters_that_join():
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    module[0].requires_grad_(False)
    average = ModelEMA(module, half_life=8, storage=Storage(select=trainable))
    module[0].requires_grad_(True)
    average.update(samples=1)  # here


def updates_that_are_no_steps():
    module = model()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    average = ModelEMA(module, half_life=100)
    average.watch(optimizer)
    for one in module.parameters():
        one.grad = torch.ones_like(one)
    for _ in range(80):
        optimizer.step()
        average.update(samples=4), average.update(samples=4)  # here


def no_triton():
    average = ModelEMA(nn.Linear(80, 80), half_life=8, storage=Storage(compiled="triton"))  # here
    average.update(samples=8)


def batch_norm_in_a_noise_scale():
    NoiseScale(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)))  # here


def batch_norm_in_a_measurement():
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    measure(lambda net, x: net(x).square().mean(), net, torch.randn(32, 4).split(8))  # here


def a_schedule_that_ends():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(()))], lr=0.1)
    scheduler = SampleScheduler(LambdaLR(optimizer, [1.0, 0.5].__getitem__), batch_size=8)
    optimizer.step()
    for _ in range(3):
        scheduler.step(samples=8)  # here


def a_damaged_checkpoint(tmp_path):
    with Checkpoints(tmp_path) as store:
        store.save({"w": torch.zeros(2)}, seen=1)
        store.save({"w": torch.ones(2)}, seen=2)
    next(tmp_path.glob("000002-*/manifest.json")).write_text("{")
    Checkpoints(tmp_path).load(fallback=True)  # here


def an_old_name():
    isobatch.average.Horizons  # noqa: B018  # here


def an_old_name_that_is_imported():
    from isobatch.tasks import Lesson  # noqa: F401  # here


HERE = [one for one in globals().values() if getattr(one, "__module__", "") == __name__]
WARNED = [one for one in HERE if one is not spoilt]


@pytest.mark.parametrize("call", WARNED, ids=lambda call: call.__name__)
def test_a_warning_points_at_the_users_line(call, tmp_path):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        call(tmp_path) if call.__code__.co_argcount else call()
    assert said
    for one in said:
        assert (one.filename, LINES[one.lineno - 1].rpartition("# ")[2]) == (__file__, "here"), str(one.message)


def test_without_a_users_line_it_is_said_all_the_same():
    """As from a thread that a library starts: nobody's file is among the callers."""
    namespace = {"warn": warn, "__name__": "installed"}
    code = compile("def tell():\n    warn('spoilt')", "/opt/site-packages/installed.py", "exec")
    exec(code, namespace)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(1) as pool:
            pool.submit(namespace["tell"]).result()
    assert [(str(one.message), one.filename) for one in said] == [("spoilt", "/opt/site-packages/installed.py")]
