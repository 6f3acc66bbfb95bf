"""The average teaches: a slow twin of the loop, resume, batch change, refused steps, accumulation and ranks."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.gloo import world
from tests.recipes import recipe
from torch import nn

from isobatch.average import ObservedMean
from isobatch.checkpoint import Checkpoints
from isobatch.errors import InputError
from isobatch.tasks import LossNeeds, Run, TensorSamples
from isobatch.train import Device, Guard, StepVerdict, Trainer
from isobatch.train.persistence import restore, state_of

SIZES = [12, 12, 24, 7, 12, 36, 5, 12]


def run(mode="eval", norm=False):
    """The student follows the teacher's output less its running centre, plus noise by the place in the stream."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(100, 4, generator=generator, dtype=torch.float64)
    torch.manual_seed(0)
    layers = [nn.Linear(4, 5), nn.BatchNorm1d(5)] if norm else [nn.Linear(4, 5)]
    model = nn.Sequential(*layers, nn.Tanh(), nn.Linear(5, 3)).double()
    centre = ObservedMean(torch.zeros(3, dtype=torch.float64), half_life=30)

    def loss(net, batch, context):
        with torch.no_grad():
            target = context.teacher(batch[0])
        context.means["centre"].add(target)
        noise = torch.sin(context.places.double())[:, None]
        goal = target - context.means["centre"].value + noise * (1 + context.seen / context.length)
        return (net(batch[0]) - goal).square().sum(1).mean()

    needs = LossNeeds(teacher=mode, means={"centre": centre})
    return Run(model, TensorSamples(x), loss, lambda net: {"loss": float(net(x).square().mean())}, {}, needs)


def trainer(*, mode="eval", norm=False, patience=0, device="cpu", **parts):
    parts = {"batch": {"size": 12}, "optimizer": {"lr": 0.05, "momentum": 0.5}, "ema": {"decay": 0.9}, **parts}
    made = recipe(data_size=100, **parts, **({"batch_norm": {"momentum": 0.1}} if norm else {}))
    return Trainer(run(mode, norm), made, order_seed=1, guard=Guard(patience), device=Device.parse(device))


def numbers(one):
    found = {f"model/{name}": value for name, value in one.run.model.state_dict().items()}
    found |= {f"average/{name}": value for name, value in one.average.average().items()}
    found["centre"] = one.run.needs.means["centre"].value
    return {name: value.detach().clone().contiguous() for name, value in found.items()}


def same(got, wanted, within=0.0):
    assert got.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(got[name], value, rtol=0, atol=within, msg=name)


def test_each_step_is_taught_by_the_average_after_the_step_before():
    """zeta, c and theta by hand: the target of step t comes from zeta_t and c_t, which follow theta_t (post-step)."""
    one = trainer(optimizer={"lr": 0.05})
    twin = run()
    theta = [p.detach().clone() for p in twin.model.parameters()]
    zeta, c, seen = [p.clone() for p in theta], torch.zeros(3, dtype=torch.float64), 0
    forward = lambda w, x: torch.tanh(x @ w[0].T + w[1]) @ w[2].T + w[3]  # noqa: E731
    for size in SIZES:
        x = twin.samples[one.order.indices(seen, size)][0]
        target = forward(zeta, x)
        places = torch.arange(seen, seen + size).double()
        goal = target - c + torch.sin(places)[:, None] * (1 + seen / one.length)
        leaves = [w.clone().requires_grad_() for w in theta]
        gradients = torch.autograd.grad((forward(leaves, x) - goal).square().sum(1).mean(), leaves)
        lr = 0.05 * size / 12 * one.schedule.mean(seen, seen + size)
        theta = [w - lr * g for w, g in zip(theta, gradients, strict=True)]
        zeta = [0.9 ** (size / 12) * z + (1 - 0.9 ** (size / 12)) * w for z, w in zip(zeta, theta, strict=True)]
        c = 0.5 ** (size / 30) * c + (1 - 0.5 ** (size / 30)) * target.mean(0)
        seen += size
        one.step(size)
    for parameter, value in zip(one.run.model.parameters(), theta, strict=True):
        torch.testing.assert_close(parameter.detach(), value, rtol=1e-10, atol=1e-12)
    for value, wanted in zip(one.average.average().values(), zeta, strict=True):
        torch.testing.assert_close(value, wanted, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(one.run.needs.means["centre"].value, c, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_a_resumed_run_equals_the_uninterrupted_one(mode, tmp_path):
    whole, cut = trainer(mode=mode, norm=True), trainer(mode=mode, norm=True)
    for index, size in enumerate(SIZES):
        whole.step(size)
        if index in (0, 3, 6):
            with Checkpoints(tmp_path / str(index)) as store:
                store.save(state_of(cut), seen=cut.seen)
                found = store.load()
            cut = trainer(mode=mode, norm=True)
            restore(cut, found.state, found.state)
        cut.step(size)
    same(numbers(cut), numbers(whole))


@pytest.mark.parametrize("norm", [False, True])
def test_a_refused_step_moves_neither_average_nor_centre(norm):
    one = trainer(norm=norm, patience=1, mode="train")
    one.step(), one.step(24)
    before, healthy = numbers(one), one.gradient.run_.loss
    one.gradient.run_.loss = lambda *given: healthy(*given) * float("nan")
    assert one.step().verdict is StepVerdict.SKIP
    same(numbers(one), before)
    one.gradient.run_.loss = healthy
    assert one.step().verdict is StepVerdict.APPLY
    assert not torch.equal(numbers(one)["centre"], before["centre"])


@pytest.mark.parametrize("given", [{"batch": {"size": 12, "micro": 2}}, {"device": "cpu,most=5"}])
def test_micro_batches_are_one_batch(given):
    one, parts = trainer(), trainer(**given)
    for size in SIZES:
        one.step(size), parts.step(size)
    same(numbers(parts), numbers(one), within=1e-12)


def test_ranks_are_one_process(tmp_path):
    sizes = [*SIZES, 2]

    def ranked(rank):
        one = trainer()
        for size in sizes:
            one.step(size)
        save_file(numbers(one), tmp_path / f"{rank}")

    world(3, tmp_path, ranked)
    alone = trainer()
    for size in sizes:
        alone.step(size)
    same(load_file(tmp_path / "1"), load_file(tmp_path / "0"))
    same(load_file(tmp_path / "0"), numbers(alone), within=1e-12)


def test_a_teacher_needs_an_average_and_a_lesson():
    with pytest.raises(InputError, match=r"uses the weight average as its teacher; add \[ema\]"):
        trainer(ema=None)
    with pytest.raises(InputError, match=r"train it with isobatch\.train\.Trainer"):
        run().step((torch.zeros(1, 4),))


def test_a_checkpoint_without_the_means_is_refused():
    one = trainer()
    state = state_of(one)
    with pytest.raises(InputError, match=r"running means \[\], the task \['centre'\]"):
        restore(trainer(), {key: value for key, value in state.items() if key != "means"})


@pytest.mark.parametrize(("text", "message"), [
    ("cuda:99", r"device='cuda:99' cannot be used here .*; use cpu"),
    ("gpu", "device='gpu' cannot be used here"),
    ("cpu,fp8", "device option 'fp8' must be one of bf16, channels-last, compile, most=4096"),
    ("cpu,most=0", "device option most=0 must be at least 1"),
    ("cpu,most=many", "device option most=many must be a whole number"),
])  # fmt: skip
def test_a_device_that_is_not_there_is_refused(text, message):
    with pytest.raises(InputError, match=message):
        Device.parse(text)


def test_bfloat16_is_close_and_leaves_the_weights_in_their_dtype():
    made = recipe(data_size=100, optimizer={"lr": 0.05})
    ends = []
    for device in (Device(), Device.parse("cpu,bf16,channels-last")):
        plain = run()
        plain.model.float()
        plain.needs.means["centre"].value = torch.zeros(3)
        plain.samples.tensors = tuple(t.float() for t in plain.samples.tensors)
        one = Trainer(plain, made, device=device)
        one.train_to(400)
        assert {p.dtype for p in plain.model.parameters()} == {torch.float32}
        ends.append(torch.cat([p.detach().flatten() for p in plain.model.parameters()]))
    assert not torch.equal(*ends)
    torch.testing.assert_close(*ends, rtol=0, atol=0.05)
