"""On a CUDA device: bit-exact resume, close to the CPU, bf16, compile, fused optimizers, the teacher, the average."""

import pytest
import torch
from tests.recipes import recipe
from torch import nn

from isobatch import ModelEMA
from isobatch.augment import Views, augment
from isobatch.checkpoint import Checkpoints
from isobatch.optimizers import build
from isobatch.tasks import make_run
from isobatch.train import Device, Guard, StepVerdict, Trainer
from isobatch.train.persistence import restore, seed_rng, state_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
GLYPHS = {"data": "glyphs", "side": 16, "frames": 620, "width": 16, "stages": 2}
HEAD = {**GLYPHS, "hidden": 32}
TASKS = {
    "digits": {"data_size": 1437, "optimizer": {"name": "adamw", "lr": 1e-3}},
    "byol": {"data_size": 620, "options": HEAD, "batch_norm": {"momentum": 0.1}},
    "dino": {"data_size": 620, "options": HEAD, "batch_norm": {"momentum": 0.1}},
    "polyak": {"data_size": 620, "options": {**GLYPHS, "distil": 1.0}, "batch_norm": {"momentum": 0.1}},
}
SIZES = [32, 32, 64, 20, 32, 48]


def trainer(task, device="cuda", **parts):
    made = recipe(**{"task": task, "batch": {"size": 32}, "ema": {"decay": 0.9}, **TASKS[task], **parts})
    return Trainer(make_run(made, 0), made, order_seed=1, guard=Guard(1), device=Device.parse(device))


def numbers(one):
    found = {f"model/{name}": value for name, value in one.run.model.state_dict().items()}
    found |= {f"average/{name}": value for name, value in one.average.average().items()}
    for name, parameter in one.run.model.named_parameters():
        found |= {f"{name}/{key}": torch.as_tensor(v) for key, v in one.optimizer.state[parameter].items()}
    return {name: value.detach().cpu().clone() for name, value in found.items()}


@pytest.fixture
def exact(monkeypatch):
    """Kernels whose sums have a fixed order."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("device", ["cuda", "cuda,bf16,channels-last"])
@pytest.mark.parametrize("task", TASKS)
def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(task, device, tmp_path, exact):
    seed_rng(0)
    whole, cut = trainer(task, device), trainer(task, device)
    for index, size in enumerate(SIZES):
        whole.step(size)
        if index == 3:
            with Checkpoints(tmp_path) as store:
                store.save(state_of(cut), seen=cut.seen)
                found = store.load()
            cut = trainer(task, device)
            restore(cut, found.state, found.state)
        cut.step(size)
    got, wanted = numbers(cut), numbers(whole)
    assert got.keys() == wanted.keys()
    for name, value in wanted.items():
        assert torch.equal(got[name], value), name


@pytest.mark.parametrize("task", TASKS)
def test_the_gpu_takes_the_steps_of_the_cpu(task, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    ends = []
    for device in ("cpu", "cuda"):
        one = trainer(task, device)
        losses = [one.step(size).loss for size in SIZES[:3]]
        ends.append((losses, {n: v.double() for n, v in numbers(one).items() if v.is_floating_point()}))
    assert ends[0][0] == pytest.approx(ends[1][0], rel=1e-3)
    for name, value in ends[0][1].items():
        if name.startswith("average"):
            torch.testing.assert_close(ends[1][1][name], value, rtol=0, atol=2e-3, msg=name)


@pytest.mark.filterwarnings("ignore:.*script_method.*:DeprecationWarning")  # torch's own, on import of its compiler
@pytest.mark.parametrize("device", ["cuda,bf16,channels-last", "cuda,compile", "cuda,bf16,channels-last,compile"])
def test_faster_forms_follow_the_plain_one(device):
    plain, fast = trainer("byol"), trainer("byol", device)
    for size in (32, 32, 32):
        one, other = plain.step(size), fast.step(size)
        assert other.verdict is StepVerdict.APPLY
        assert other.loss == pytest.approx(one.loss, rel=0.05)
    values = plain.evaluate(), fast.evaluate()
    assert values[0]["average"]["loss"] == pytest.approx(values[1]["average"]["loss"], rel=0.1)
    assert {p.dtype for p in fast.run.model.parameters()} == {torch.float32}


def test_tf32_moves_a_run_by_little():
    ends = []
    for allowed in (False, True):
        before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed
        try:
            one = trainer("polyak")
            ends.append([one.step(32).loss for _ in range(4)])
        finally:
            torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
    assert ends[0] == pytest.approx(ends[1], rel=0.02)


def test_micro_batches_on_the_device_are_one_batch_without_batch_norm():
    one, parts = trainer("digits"), trainer("digits", "cuda,most=7")
    for size in SIZES:
        one.step(size), parts.step(size)
    for name, value in numbers(one).items():
        torch.testing.assert_close(numbers(parts)[name], value, rtol=0, atol=1e-4, msg=name)


@pytest.mark.parametrize("task", ["byol", "dino"])
def test_a_refused_step_moves_nothing(task):
    one = trainer(task)
    one.step(), one.step()
    before, healthy = numbers(one), one.gradient.run_.loss
    one.gradient.run_.loss = lambda *given: healthy(*given) * float("nan")
    assert one.step().verdict is StepVerdict.SKIP
    for name, value in numbers(one).items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("fused", [False, True])
def test_an_average_after_a_fused_optimizer_equals_the_one_by_hand(fused):
    torch.manual_seed(0)
    model = nn.Linear(64, 64).cuda()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=fused)
    ema, wanted = ModelEMA(model, half_life=40), model.weight.detach().double()
    for _ in range(10):
        model(torch.randn(8, 64, device="cuda")).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        ema.update(samples=8)
        wanted = 0.5**0.2 * wanted + (1 - 0.5**0.2) * model.weight.detach().double()
    torch.testing.assert_close(ema.average()["weight"].double(), wanted, rtol=1e-5, atol=1e-6)
    assert ema.teacher().weight.data_ptr() == ema.average()["weight"].data_ptr()


@pytest.mark.parametrize("name", ["sgd", "adamw", "invariant-adamw"])
def test_shipped_optimizers_step_on_the_device(name):
    model = nn.Linear(4, 4).cuda()
    reference = 8 if name.startswith("invariant") else None
    optimizer = build(name, model.parameters(), lr=1e-3, reference_batch=reference)
    before = model.weight.detach().clone()
    if name.startswith("invariant"):
        with optimizer.chunk(8):
            model(torch.ones(8, 4, device="cuda")).sum().backward()
    else:
        model(torch.ones(8, 4, device="cuda")).sum().backward()
    optimizer.step()
    assert not torch.equal(model.weight, before)


def test_views_are_those_of_the_cpu():
    x, places = torch.rand(64, 3, 32, 32), torch.arange(1000, 1064)
    one, other = augment(x, places, 3, Views()), augment(x.cuda(), places, 3, Views()).cpu()
    assert float((one - other).abs().mean()) < 1e-4
