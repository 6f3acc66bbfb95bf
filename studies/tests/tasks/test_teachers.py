"""BYOL, DINO and Polyak averaging: losses against slow twins, the loop's guarantees, probes, collapse."""

import math

import numpy as np
import pytest
import torch
from tests.recipes import recipe
from torch import nn

from isobatch.checkpoint import Checkpoints
from isobatch.errors import InputError
from isobatch.tasks import make_run
from isobatch.train import Trainer
from isobatch.train.persistence import restore, seed_rng, state_of
from isobatch_studies.tasks import probe
from isobatch_studies.tasks.byol import regression
from isobatch_studies.tasks.dino import agreement
from isobatch_studies.tasks.polyak import distance
from isobatch_studies.tasks.resnet import ResNet

SMALL = {"data": "glyphs", "side": 8, "frames": 124, "width": 8, "stages": 2}
HEAD = {"hidden": 8}
TASKS = {"byol": HEAD, "dino": {**HEAD, "prototypes": 16, "bottleneck": 4}, "polyak": {"distil": 0.5}}


def trainer(task, norm="group", micro=None, **options):
    made = recipe(
        task=task, data_size=124, batch={"size": 8, "micro": micro}, optimizer={"lr": 0.05, "momentum": 0.5},
        ema={"decay": 0.9, "final": 1.0}, schedule={"length": "800 samples"},
        batch_norm={"momentum": 0.1} if norm == "batch" else None,
        options={**SMALL, **TASKS[task], "norm": norm, **options},
    )  # fmt: skip
    return Trainer(make_run(made, 0), made, order_seed=1)


def numbers(one):
    found = dict(one.run.model.state_dict()) | {f"average/{n}": v for n, v in one.average.average().items()}
    found |= {f"mean/{name}": mean.value for name, mean in one.run.needs.means.items()}
    return {name: value.detach().clone() for name, value in found.items()}


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize("task", TASKS)
def test_a_resumed_run_equals_the_uninterrupted_one_also_across_a_change_of_the_batch(task, norm, tmp_path):
    seed_rng(0)
    whole, cut = trainer(task, norm), trainer(task, norm)
    for index, size in enumerate([8, 8, 16, 12, 8]):
        whole.step(size)
        if index == 3:
            with Checkpoints(tmp_path) as store:
                store.save(state_of(cut), seen=cut.seen)
                found = store.load()
            cut = trainer(task, norm)
            restore(cut, found.state, found.state)
            torch.manual_seed(99)
        cut.step(size)
    for name, value in numbers(whole).items():
        assert torch.equal(value, numbers(cut)[name]), name


@pytest.mark.parametrize("task", TASKS)
def test_micro_batches_are_one_batch_without_batch_norm(task):
    one, parts = trainer(task), trainer(task, micro=2)
    for size in (8, 16):
        assert one.step(size).loss == pytest.approx(parts.step(size).loss, rel=1e-4)
    for name, value in numbers(one).items():
        torch.testing.assert_close(numbers(parts)[name], value, rtol=0, atol=2e-5, msg=name)


def test_the_loss_of_byol_pairs_each_view_with_the_other():
    q, z = torch.randn(6, 5, dtype=torch.float64), torch.randn(6, 5, dtype=torch.float64)
    wanted = 0.0
    for sample in range(3):
        for a, b in ((0, 1), (1, 0)):
            p, t = q[3 * a + sample].numpy(), z[3 * b + sample].numpy()
            wanted += 2 - 2 * p @ t / np.linalg.norm(p) / np.linalg.norm(t)
    assert regression(q, z).item() == pytest.approx(wanted / 3)


def test_the_loss_of_dino_pairs_each_global_crop_with_all_others():
    taught, student = torch.randn(2 * 3, 4, dtype=torch.float64), torch.randn(5 * 3, 4, dtype=torch.float64)
    wanted, pairs = 0.0, 0
    for t in range(2):
        for s in range(5):
            if s == t:
                continue
            for sample in range(3):
                p = np.exp(taught[3 * t + sample].numpy() / 0.05)
                q = np.exp(student[3 * s + sample].numpy() / 0.1)
                wanted -= (p / p.sum() * np.log(q / q.sum())).sum()
                pairs += 1
    assert agreement(taught, student, 2, 5, heat=0.05).item() == pytest.approx(wanted / pairs)


def test_the_centre_of_dino_follows_the_teacher_with_its_half_life_in_samples():
    one = trainer("dino", centre_half_life=20.0)
    seen = []
    mean = one.run.needs.means["centre"]
    add = mean.add
    mean.add = lambda values: (seen.append(values.double()), add(values))[1]
    c = torch.zeros(16, dtype=torch.float64)
    for size in (8, 16, 5):
        one.step(size)
        c = 0.5 ** (size / 20) * c + (1 - 0.5 ** (size / 20)) * seen[-1].mean(0)
    torch.testing.assert_close(mean.value.double(), c, rtol=1e-5, atol=1e-7)
    assert mean.half_life == 20
    assert trainer("dino").run.needs.means["centre"].half_life == pytest.approx(8 * math.log(0.5) / math.log(0.9))


def test_the_half_life_of_the_centre_does_not_move_with_the_batch():
    made = recipe(task="dino", data_size=124, schedule={"length": "2000 samples"}, options={**SMALL, **HEAD})
    ends = [make_run(r, 0).needs.means["centre"].half_life for r in (made, made.at(64).recipe)]
    assert ends[0] == ends[1]


def test_distillation_is_the_divergence_from_the_teacher():
    p, q = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    wanted = (p.softmax(1) * (p.softmax(1) / q.softmax(1)).log()).sum(1).mean()
    torch.testing.assert_close(distance(p, q), wanted)
    assert trainer("polyak").run.needs.teacher == "train"
    assert trainer("polyak", distil=0.0).run.needs.teacher is None


def test_evaluation_leaves_the_model_as_it_was_and_does_not_depend_on_the_running_statistics():
    one = trainer("byol", "batch")
    one.step()
    before = {name: value.clone() for name, value in one.run.model.state_dict().items()}
    first = one.evaluate()
    for name, value in one.run.model.state_dict().items():
        assert torch.equal(value, before[name]), name
    for name, buffer in one.run.model.named_buffers():
        if name.endswith("running_mean"):
            buffer.add_(5.0)
    assert one.evaluate() == first
    assert set(first["average"]) == {"loss", "accuracy", "knn", "rank", "variance"}


def test_a_linear_probe_is_the_logistic_regression_of_scikit_learn():
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import log_loss

    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(200, 5, generator=generator, dtype=torch.float64), torch.arange(200) % 3
    x[:, 0] += y
    z = ((x - x[:150].mean(0)) / x[:150].std(0)).numpy()
    model = LogisticRegression(C=1 / (1e-3 * 150), tol=1e-9, max_iter=1000).fit(z[:150], y[:150])
    loss, accuracy = probe.linear(x[:150], y[:150], x[150:], y[150:], 3)
    assert loss == pytest.approx(log_loss(y[150:], model.predict_proba(z[150:])), rel=1e-4)
    assert accuracy == pytest.approx(model.score(z[150:], y[150:]) * 100)


def test_collapse_shows_in_rank_and_variance_and_chance_in_the_probe():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 6, generator=generator, dtype=torch.float64)
    y = torch.arange(400) % 4
    assert probe.effective_rank(x) > 5.9
    assert probe.unit_variance(x) > 0.98
    flat = torch.ones_like(x) + 1e-13 * x
    assert probe.effective_rank(flat) == 0
    assert probe.unit_variance(flat) < 1e-9
    line = x[:, :1] * torch.arange(1.0, 7.0, dtype=torch.float64)
    assert probe.effective_rank(line) == pytest.approx(1, abs=1e-6)
    assert probe.linear(flat, y, flat, y, 4)[0] == pytest.approx(math.log(4), abs=1e-3)


def test_neighbours_find_the_class_of_a_cluster():
    x = torch.eye(3, dtype=torch.float64).repeat(30, 1)
    y = torch.arange(90) % 3
    noisy = x + 0.1 * torch.randn(90, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert probe.neighbours(x, y, noisy, y) == 100


def test_resnet_18_has_its_parameters_and_halves_the_side():
    net = ResNet(width=64, depth=2, stages=4)
    assert sum(p.numel() for p in net.parameters()) == 11_168_832
    assert net.features == 512
    assert not any(isinstance(m, nn.BatchNorm2d) for m in ResNet(norm="group").modules())
    shapes = []
    small = ResNet(width=8, stages=3)
    small.blocks.register_forward_hook(lambda _, __, out: shapes.append(out.shape[1:]))
    assert small(torch.rand(2, 3, 16, 16)).shape == (2, 32)
    assert shapes == [(32, 4, 4)]


@pytest.mark.parametrize(("task", "options", "message"), [
    ("byol", {"norm": "layer"}, r"options\.norm='layer' must be \"batch\" or \"group\""),
    ("byol", {"width": 0}, r"options\.width=0 must be at least 1"),
    ("dino", {"prototypes": 1}, r"options\.prototypes=1 must be at least 2"),
    ("dino", {"temperature": 0.0}, r"options\.temperature=0 must be in \(0, inf\]"),
    ("polyak", {"distil": -1.0}, r"options\.distil=-1 must be in \[0, inf\]"),
])  # fmt: skip
def test_bad_options_are_refused(task, options, message):
    with pytest.raises(InputError, match=message):
        trainer(task, **options)
