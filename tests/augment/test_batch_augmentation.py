"""Views: rows with random numbers of their own, one gradient however the rows pass, the paper's update."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.augment.cases import mlp, parsed, softmax_regression, trainer
from tests.gloo import world
from tests.reference import augmentation as reference
from torch import nn

from isobatch.augment import BatchAugmentation, Draws, ViewAverage, cutout, identity, shift, shift_cutout, viewed
from isobatch.errors import InputError
from isobatch.tasks import make_run
from isobatch.train import Trainer


def test_draws_are_the_reference_and_belong_to_their_row():
    found = Draws(5, torch.tensor([0, 9, 2**40]), torch.tensor([0, 3, 1])).uniform(4)
    for row, (position, copy) in enumerate([(0, 0), (9, 3), (2**40, 1)]):
        assert found[row].tolist() == [reference.uniform(5, position, copy, k) for k in range(4)]


def test_draws_are_uniform_and_independent():
    draws = Draws(0, torch.arange(4000))
    first, second = draws.uniform(1).flatten(), draws.uniform(1).flatten()
    for numbers in (first, second):
        assert abs(float(numbers.mean()) - 0.5) < 4 / (12 * 4000) ** 0.5
        assert abs(float(numbers.var()) - 1 / 12) < 0.005
        assert abs(float(torch.corrcoef(torch.stack([numbers[1:], numbers[:-1]]))[0, 1])) < 4 / 4000**0.5
    assert abs(float(torch.corrcoef(torch.stack([first, second]))[0, 1])) < 4 / 4000**0.5
    assert set(Draws(0, torch.arange(200)).integers(-1, 1).flatten().tolist()) == {-1, 0, 1}


@pytest.mark.parametrize("shape", [(16,), (4, 4), (3, 4, 4)])
def test_shift_and_cutout_are_moves_and_holes(shape):
    images = torch.arange(1.0, 1 + 4 * 16 * (3 if len(shape) == 3 else 1)).view(4, *shape)
    moved = shift(images, Draws(0, torch.arange(4)))
    by = Draws(0, torch.arange(4)).integers(0, 2, 2)
    grid = images.view(4, -1, 4, 4)
    for row in range(4):
        wide = torch.zeros(grid.shape[1], 6, 6)
        wide[:, 1:5, 1:5] = grid[row]
        y, x = by[row].tolist()
        assert torch.equal(moved.view(4, -1, 4, 4)[row], wide[:, y : y + 4, x : x + 4])
    holes = cutout(images, Draws(0, torch.arange(4)), size=3).view(4, -1, 4, 4)
    for row in range(4):
        gone = (holes[row] == 0).all(0)
        assert gone.any(0).sum() in (2, 3)
        assert gone.sum() == gone.any(0).sum() * gone.any(1).sum()
        assert torch.equal(holes[row][:, ~gone], grid[row][:, ~gone])


@pytest.mark.parametrize("passes", ["one", "copies"])
@pytest.mark.parametrize("views", [1, 3])
def test_steps_are_those_of_the_paper(views, passes):
    run = softmax_regression()
    x, y = (t.numpy() for t in run.samples.tensors)
    start = run.model[0].weight.detach().numpy().copy()
    one = trainer(run, augment={"view": "shift-cutout", "views": views, "passes": passes, "seed": 7})
    order = one.order.indices(0, 36).tolist()
    batches = [[(order[p], p) for p in range(first, first + 12)] for first in (0, 12, 24)]

    def view(image, position, copy):
        draws = Draws(7, torch.tensor([position]), torch.tensor([copy]))
        return shift_cutout(torch.from_numpy(image)[None], draws)[0].numpy()

    for wanted in reference.batch_augmentation(start, x, y, batches, view, M=views, eta=0.5):
        one.step()
        torch.testing.assert_close(run.model[0].weight.detach(), torch.from_numpy(wanted), rtol=0, atol=1e-12)
    assert (one.seen, one.drawn) == (36, 36)


@pytest.mark.parametrize("micro", [None, 4])
def test_passes_and_micro_batches_give_one_gradient(micro):
    """In float64 without batch norm, whatever the chunks; the batch changes on the way."""
    wanted = mlp(augment={"view": "shift-cutout", "views": 4})
    got = mlp(augment={"view": "shift-cutout", "views": 4, "passes": "copies"}, batch={"size": 12, "micro": micro})
    for size in (12, 12, 24, 7):
        left, right = wanted.step(size), got.step(size)
        assert left.loss == pytest.approx(right.loss, rel=1e-12)
    for a, b in zip(wanted.run.model.parameters(), got.run.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_one_identical_view_is_no_augmentation():
    plain, viewed_once = mlp(), mlp(augment={"view": "identity", "views": 1})
    for size in (12, 24):
        assert plain.step(size).loss == viewed_once.step(size).loss
    for a, b in zip(plain.run.model.parameters(), viewed_once.run.model.parameters(), strict=True):
        assert torch.equal(a, b)


def cnn(passes, **parts):
    made = parsed(
        task="digits-cnn", options={"width": 4}, augment={"view": "shift", "views": 3, "passes": passes}, **parts
    )
    return Trainer(make_run(made, 0), made)


def test_batch_norm_sees_all_rows_or_chunks_of_distinct_samples():
    seen = {}
    for passes in ("one", "copies"):
        one, rows = cnn(passes), []
        one.run.model[1].register_forward_hook(lambda _, args, __, rows=rows: rows.append(args[0].detach()))
        one.step()
        seen[passes] = rows
    assert [len(rows) for rows in seen["one"]] == [36]
    assert [len(rows) for rows in seen["copies"]] == [12, 12, 12]
    images = torch.cat(seen["copies"])
    torch.testing.assert_close(images, seen["one"][0])  # copy-major, the same rows


def test_predictions_are_averaged_over_views():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(16, 5)), torch.rand(6, 16)
    rows = torch.arange(6)
    made = [model(shift(x, Draws(2, rows, torch.full_like(rows, copy)))) for copy in range(3)]
    torch.testing.assert_close(ViewAverage(model, shift, 3, seed=2)(x), sum(made) / 3)
    mean = sum(m.softmax(1) for m in made) / 3
    torch.testing.assert_close(ViewAverage(model, shift, 3, of="probabilities", seed=2)(x).exp(), mean)
    one = cnn("one")
    one.passes.recipe = parsed(augment={"view": "shift", "evaluate": 2})
    assert set(one.evaluate()) == {"raw", "raw, 2 views"}


def test_the_gradient_is_multiplied_by_the_ratio_of_norms():
    """mean_j |g_j| over |mean_j g_j|, measured on the sample clock; the loss is not multiplied."""
    part = {"view": "shift-cutout", "views": 4, "adjust_norm": "24 samples"}
    plain, adjusted = mlp(augment={**part, "adjust_norm": None}), mlp(augment=part)
    norms, grads = [], []
    for copy in range(4):
        batch = adjusted.run.samples[adjusted.order.indices(0, 12)]
        draws = Draws(0, torch.arange(12), torch.full((12,), copy))
        loss = adjusted.run.step(viewed(batch, shift_cutout, draws))
        grads.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(adjusted.run.model.parameters()))]))
        norms.append(float(grads[-1].norm()))
    ratio = sum(norms) / 4 / float(torch.stack(grads).mean(0).norm())
    assert plain.step().loss == pytest.approx(adjusted.step().loss, rel=1e-12)
    assert adjusted.passes.factor == pytest.approx(ratio, rel=1e-12)
    assert ratio > 1
    for a, b in zip(plain.run.model.parameters(), adjusted.run.model.parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad * ratio, rtol=1e-10, atol=0)
    before = adjusted.passes.factor
    adjusted.step()
    assert adjusted.passes.factor == before
    adjusted.step()
    assert adjusted.passes.factor != before


@pytest.mark.parametrize("passes", ["one", "copies"])
def test_ranks_take_the_steps_of_one_process(passes, tmp_path):
    part = {"view": "shift-cutout", "views": 3, "passes": passes, "adjust_norm": "24 samples"}

    def steps(one):
        losses = [one.step(size).loss for size in (12, 11, 1, 24)]
        return {n: p.detach().clone() for n, p in one.run.model.named_parameters()} | {"loss": torch.tensor(losses)}

    world(2, tmp_path, lambda rank: save_file(steps(mlp(augment=part)), tmp_path / str(rank)))
    wanted = steps(mlp(augment=part))
    for rank in range(2):
        for name, value in load_file(tmp_path / str(rank)).items():
            torch.testing.assert_close(value, wanted[name], rtol=0, atol=1e-6 if name == "loss" else 1e-12)


@pytest.mark.parametrize(
    ("part", "match"),
    [
        ({"view": "shift", "views": 0}, r"augment\.views=0"),
        ({"view": "shift", "views": -2}, r"augment\.views=-2"),
        ({"view": "rotate"}, r"augment\.view='rotate' is not shipped \(identity"),
        ({"view": "nothing.here:view"}, "cannot be imported"),
        ({"view": "tests.augment.cases:nothing"}, "has no function 'nothing'"),
        ({"view": "shift", "adjust_norm": "0 samples"}, r"augment\.adjust_norm"),
        ({"view": "shift", "passes": "two"}, r"augment\.passes"),
    ],
)
def test_bad_recipes_are_refused(part, match):
    with pytest.raises(InputError, match=match):
        trainer(augment=part)


def test_a_view_that_changes_the_shape_is_refused():
    for view in (lambda x, _: x[:, :-1], lambda x, _: x.float(), lambda x, _: None):
        with pytest.raises(InputError, match="must keep shape and type"):
            viewed(torch.rand(2, 4).double(), view, Draws(0, torch.arange(2)))
    with pytest.raises(InputError, match="are no images"):
        shift(torch.rand(2, 5), Draws(0, torch.arange(2)))
    with pytest.raises(InputError, match="has no inputs"):
        viewed({"x": torch.rand(2)}, identity, Draws(0, torch.arange(2)))
    with pytest.raises(InputError, match="views=0"):
        BatchAugmentation(identity, views=0)
    with pytest.raises(InputError, match="views=0"):
        ViewAverage(nn.Linear(1, 1), identity, views=0)


def test_an_invariant_optimizer_takes_views_together_only():
    optimizer = {"name": "invariant-adamw", "lr": 1e-3}
    trainer(optimizer=optimizer, augment={"view": "shift", "views": 2}).step()
    with pytest.raises(InputError, match=r'augment\.passes = "one"'):
        trainer(optimizer=optimizer, augment={"view": "shift", "views": 2, "passes": "copies"})
