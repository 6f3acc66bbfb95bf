"""Every way of seeing chunks gives the numbers that the chunk gradients themselves give, in float64."""

import numpy as np
import pytest
import torch
from tests.reference import noise as slow
from torch import nn
from torch.nn import functional as F

from isobatch.errors import InputError
from isobatch.noise import NoiseScale


class Text(nn.Module):
    """Embedding, attention-free mixing, norms and heads: every layer whose rows can be told apart."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 6, padding_idx=0)
        self.norm = nn.LayerNorm(6)
        self.rms = nn.RMSNorm(6)
        self.mix = nn.Conv1d(6, 4, 3, padding=1)
        self.group = nn.GroupNorm(2, 4)
        self.wide = nn.Linear(4, 40)
        self.head = nn.Linear(40 * 5, 3)

    def forward(self, tokens):
        x = self.rms(self.norm(self.embed(tokens)))
        x = self.group(self.mix(x.mT)).mT
        return self.head(torch.tanh(self.wide(x)).flatten(1))


class Image(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3, padding=1, padding_mode="circular")
        self.deep = nn.Conv3d(1, 2, 2)
        self.norm = nn.GroupNorm(1, 2, affine=True)
        self.head = nn.Linear(30, 2, bias=False)

    def forward(self, x):
        x = self.norm(self.conv(x[:, None]))
        return self.head(F.gelu(self.deep(x[:, None])).flatten(1))


def text(rows, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 7, (rows, 5), generator=generator), torch.randint(0, 3, (rows,), generator=generator)


def image(rows, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 4, 6, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, 2, (rows,), generator=generator)


def build(kind, seed=0):
    torch.manual_seed(seed)
    net = kind().double()
    with torch.no_grad():
        for name, p in net.named_parameters():
            if "norm" in name or "rms" in name or "group" in name:
                p.add_(torch.randn_like(p) * 0.3)
    return net


def gradients(net, x, y, sizes):
    """Mean gradient of each chunk as numpy vectors."""
    found = []
    for a, b in zip(x.split(sizes), y.split(sizes), strict=True):
        grads = torch.autograd.grad(F.cross_entropy(net(a), b), [p for p in net.parameters() if p.requires_grad])
        found.append(torch.cat([g.flatten() for g in grads]).numpy())
    return found


def close(estimate, G_j, B_j, rtol=1e-10):
    np.testing.assert_allclose(estimate.gradient_squared, slow.G_squared(G_j, B_j), rtol=rtol)
    np.testing.assert_allclose(estimate.trace, slow.trace_Sigma(G_j, B_j), rtol=rtol)


@pytest.mark.parametrize(("kind", "data"), [(Text, text), (Image, image)])
@pytest.mark.parametrize("rows", [3, 12])
def test_rows_are_the_gradients_of_single_samples(kind, data, rows):
    net, (x, y) = build(kind), data(12)
    noise = NoiseScale(net, every=1, rows=rows)
    F.cross_entropy(net(x), y).backward()
    noise.update(samples=12)
    found = noise.estimate()
    each = gradients(net, x, y, [1] * 12)
    assert found.caveats == ()
    if rows == 12:
        close(found, each, [1] * 12)
        return
    seen = [each[i] for i in range(0, 12, 4)]
    mean_square = float(np.sum(slow.mean_gradient(each, [1] * 12) ** 2))
    trace = (sum(float(g @ g) for g in seen) - 3 * mean_square) / (3 - 3 / 12)
    np.testing.assert_allclose([found.trace, found.gradient_squared], [trace, mean_square - trace / 12], rtol=1e-10)


def test_rows_turn_from_one_measurement_to_the_next():
    net, (x, y) = build(Text), text(12)
    noise, found = NoiseScale(net, every=1, rows=3, half_life=1e-9), set()
    for _ in range(4):
        net.zero_grad()
        F.cross_entropy(net(x), y).backward()
        noise.update(samples=12)
        found.add(noise.estimate().trace)
    assert len(found) == 4


@pytest.mark.parametrize("kind", [Text, Image])
def test_norm_layers_alone(kind):
    data = text if kind is Text else image
    net, (x, y) = build(kind), data(8)
    noise = NoiseScale(net, every=1, rows=8, capture="norms")
    F.cross_entropy(net(x), y).backward()
    noise.update(samples=8)
    for name, p in net.named_parameters():
        p.requires_grad_(name.split(".")[0] in ("norm", "rms", "group"))
    found = noise.estimate()
    close(found, gradients(net, x, y, [1] * 8), [1] * 8)


@pytest.mark.parametrize("sizes", [[3, 3, 3, 3], [4, 1, 7]])
@pytest.mark.parametrize("declare", [True, False])
def test_accumulation(sizes, declare):
    net, (x, y) = build(Text), text(12)
    noise = NoiseScale(net, every=1)
    for a, b in zip(x.split(sizes), y.split(sizes), strict=True):
        loss = F.cross_entropy(net(a), b) * (len(a) / 12)
        if declare:
            with noise.chunk(len(a)):
                loss.backward()
        else:
            loss.backward()
    noise.update(samples=12)
    if declare or len(set(sizes)) == 1:
        close(noise.estimate(), gradients(net, x, y, sizes), sizes)
    else:
        assert abs(noise.estimate().trace / slow.trace_Sigma(gradients(net, x, y, sizes), sizes) - 1) > 0.05


def test_the_first_micro_batch_alone():
    net, (x, y) = build(Text), text(12)
    noise = NoiseScale(net, every=1, capture="prefix")
    for a, b in zip(x.split(3), y.split(3), strict=True):
        (F.cross_entropy(net(a), b) / 4).backward()
    noise.update(samples=12)
    each = gradients(net, x, y, [3] * 4)
    first, mean = float(each[0] @ each[0]), slow.mean_gradient(each, [3] * 4)
    G2, S = slow.two_sizes(first, float(mean @ mean), 3, 12)
    found = noise.estimate()
    np.testing.assert_allclose([found.gradient_squared, found.trace], [G2, S], rtol=1e-10)


@pytest.mark.parametrize("rows", [8, 9])
def test_halves_leave_the_gradient_and_measure(rows):
    net, (x, y) = build(Text), text(rows)
    expected = F.cross_entropy(net(x), y)
    expected.backward()
    noise = NoiseScale(net, every=2)
    whole = {name: p.grad.clone() for name, p in net.named_parameters()}
    for measured in (True, False):
        net.zero_grad()
        assert noise.armed is measured
        loss = noise.halves(lambda a, b: F.cross_entropy(net(a), b), x, y)
        noise.update(samples=rows * 10)
        np.testing.assert_allclose(loss, expected.detach(), rtol=1e-12)
        for name, p in net.named_parameters():
            torch.testing.assert_close(p.grad, whole[name], rtol=1e-9, atol=1e-15)
    sizes = [rows // 2, rows - rows // 2]
    close(noise.estimate(), gradients(net, x, y, sizes), [10 * n for n in sizes])


def test_rows_of_unequal_counts():
    net, (x, y) = build(Text), text(6)
    counts = [1, 5, 2, 2, 9, 1]
    weight = torch.tensor(counts, dtype=torch.float64) / 20
    noise = NoiseScale(net, every=1, rows=6)
    with noise.chunk(20, rows=counts):
        (F.cross_entropy(net(x), y, reduction="none") * weight).sum().backward()
    noise.update(samples=20)
    close(noise.estimate(), gradients(net, x, y, [1] * 6), counts)


def test_rows_within_micro_batches():
    net, (x, y) = build(Text), text(12)
    noise = NoiseScale(net, every=1, rows=4, capture="rows")
    for a, b in zip(x.split(4), y.split(4), strict=True):
        (F.cross_entropy(net(a), b) / 3).backward()
    noise.update(samples=12)
    close(noise.estimate(), gradients(net, x, y, [1] * 12), [1] * 12)


@pytest.mark.parametrize("capture", ["rows", "chunks"])
@pytest.mark.parametrize("order", ["unscale-clip-update", "unscale-update-clip", "update-unscale"])
def test_loss_scale_and_clipping_in_any_order(capture, order):
    net, (x, y) = build(Text), text(12)
    noise = NoiseScale(net, every=1, rows=12, capture=capture)
    parts = [12] if capture == "rows" else [4, 4, 4]
    for a, b in zip(x.split(parts), y.split(parts), strict=True):
        (F.cross_entropy(net(a), b) * (len(a) / 12) * 65536.0).backward()
    for what in order.split("-"):
        if what == "unscale":
            for p in net.parameters():
                p.grad.div_(65536.0)
        elif what == "clip":
            nn.utils.clip_grad_norm_(net.parameters(), 0.01)
        else:
            noise.update(samples=12)
    found = noise.estimate()
    sizes = [1] * 12 if capture == "rows" else parts
    each = gradients(net, x, y, sizes)
    value = slow.trace_Sigma(each, sizes) / slow.G_squared(each, sizes)
    np.testing.assert_allclose(found.trace / found.gradient_squared, value, rtol=1e-9)


def test_grad_scaler_itself():
    net, (x, y) = build(Text).float(), text(12)
    optimizer = torch.optim.SGD(net.parameters(), 0.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    noise = NoiseScale(net, optimizer, every=1, rows=12)
    scaler.scale(F.cross_entropy(net(x), y)).backward()
    scaler.unscale_(optimizer)
    nn.utils.clip_grad_norm_(net.parameters(), 1e3)
    noise.update(samples=12)
    scaler.step(optimizer)
    scaler.update()
    close(noise.estimate(), gradients(net, x, y, [1] * 12), [1] * 12, rtol=1e-3)


def test_autocast_rows_are_close():
    net, (x, y) = build(Text).float(), text(12)
    noise = NoiseScale(net, every=1, rows=12)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = F.cross_entropy(net(x), y)
    loss.backward()
    noise.update(samples=12)
    assert noise.estimate().excluded == 0
    close(noise.estimate(), gradients(net, x, y, [1] * 12), [1] * 12, rtol=0.05)


def test_frozen_parameters_do_not_count():
    net, (x, y) = build(Text), text(12)
    for p in [*net.embed.parameters(), net.head.bias]:
        p.requires_grad_(False)
    noise = NoiseScale(net, every=1, rows=12)
    F.cross_entropy(net(x), y).backward()
    noise.update(samples=12)
    close(noise.estimate(), gradients(net, x, y, [1] * 12), [1] * 12)


def test_layers_that_rows_cannot_see_are_left_out_and_said():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(7, 4)
            self.position = nn.Embedding(5, 4)
            self.twice = nn.Linear(4, 4)
            self.free = nn.Parameter(torch.ones(4))
            self.head = nn.Linear(4, 7, bias=False)
            self.head.weight = self.embed.weight
            self.last = nn.Linear(7, 3)
            self.reused = nn.Linear(3, 3)

        def forward(self, tokens):
            x = self.embed(tokens) + self.position(torch.arange(5)) + self.free
            x = self.last(self.head(self.twice(torch.tanh(self.twice(x))))).mean(1)
            return self.reused(x) + x @ self.reused.weight

    net, (x, y) = build(Odd), text(12)
    noise = NoiseScale(net, every=1, rows=12, groups="layer")
    F.cross_entropy(net(x), y).backward()
    noise.update(samples=12)
    found = noise.estimate()
    for name, p in net.named_parameters():
        p.requires_grad_(name.startswith("last") or name == "reused.bias")
    close(found, gradients(net, x, y, [1] * 12), [1] * 12)
    assert any("of 25.0%" in text for text in found.caveats), found.caveats
    assert found.parts["twice"].verdict == "undefined"


def test_parts_add_up_and_match_their_layers():
    net, (x, y) = build(Text), text(12)
    noise = NoiseScale(net, every=1, groups="layer")
    for a, b in zip(x.split(3), y.split(3), strict=True):
        (F.cross_entropy(net(a), b) / 4).backward()
    noise.update(samples=12)
    found = noise.estimate()
    np.testing.assert_allclose(sum(p.trace for p in found.parts.values()), found.trace, rtol=1e-10)
    for name, p in net.named_parameters():
        p.requires_grad_(name.startswith("wide"))
    close(found.parts["wide"], gradients(net, x, y, [3] * 4), [3] * 4)


def test_groups_of_the_optimizer_and_of_a_function():
    net, (x, y) = build(Text), text(12)
    optimizer = torch.optim.SGD(
        [{"params": net.head.parameters(), "name": "head"}, {"params": net.wide.parameters()}], 0.1
    )
    by_group = NoiseScale(net, optimizer, every=1, groups="optimizer")
    by_name = NoiseScale(net, every=1, groups=lambda name: "bias" if name.endswith("bias") else "weight")
    F.cross_entropy(net(x), y).backward()
    by_group.update(samples=12)
    by_name.update(samples=12)
    assert set(by_group.estimate().parts) == {"head", "group 1", "not optimized"}
    assert set(by_name.estimate().parts) == {"bias", "weight"}


@pytest.mark.parametrize("in_place", [True, False])
def test_compiled_models_are_measured_by_chunks(in_place):
    net, (x, y) = build(Image), image(12)
    each = gradients(net, x, y, [4] * 3)
    if in_place:
        net.compile(backend="aot_eager")
        model = net
    else:
        model = torch.compile(net, backend="aot_eager")
    noise = NoiseScale(model, every=1)
    for a, b in zip(x.split(4), y.split(4), strict=True):
        (F.cross_entropy(model(a), b) / 3).backward()
    noise.update(samples=12)
    close(noise.estimate(), each, [4] * 3)
    F.cross_entropy(model(x), y).backward()
    noise.update(samples=12)
    assert "one chunk" in noise.estimate().caveats[-1]
    with pytest.raises(InputError, match="compiled"):
        NoiseScale(model, capture="rows")


def test_another_head_is_refused():
    net, (x, y) = build(Image), image(12)
    noise = NoiseScale(net, every=1)
    F.cross_entropy(net(x), y).backward()
    net.head = nn.Linear(30, 2).double()
    with pytest.raises(InputError, match="anew"):
        noise.update(samples=12)


def test_the_model_is_left_as_it_was():
    net, (x, y) = build(Text), text(12)
    F.cross_entropy(net(x), y).backward()
    before = {name: p.grad.clone() for name, p in net.named_parameters()}
    net.zero_grad()
    noise = NoiseScale(net, every=1)
    F.cross_entropy(net(x), y).backward()
    for name, p in net.named_parameters():
        assert torch.equal(p.grad, before[name])
    noise.update(samples=12)
    del noise
    import gc

    gc.collect()
    net.zero_grad()
    F.cross_entropy(net(x), y).backward()
    for name, p in net.named_parameters():
        assert torch.equal(p.grad, before[name])


def test_chunks_must_be_declared_consistently():
    net, (x, y) = build(Text), text(12)
    noise = NoiseScale(net, every=1)
    with noise.chunk(6):
        F.cross_entropy(net(x[:6]), y[:6]).backward()
    with pytest.raises(InputError, match="declare every pass"):
        F.cross_entropy(net(x[6:]), y[6:]).backward()
    with pytest.raises(InputError, match="same unit"):
        noise.update(samples=12)
    with pytest.raises(InputError, match="inside another"), noise.chunk(1), noise.chunk(1):
        pass
    with pytest.raises(InputError, match="own count"), noise.chunk(3, rows=[1, 1]):
        pass


@pytest.mark.parametrize("capture", ["rows", "norms", "auto"])
def test_images_in_channels_last_are_measured_as_any(capture):
    """Layers are run again on their own; torch's group norm crashes on such an input that takes no gradient."""
    found = []
    for layout in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        body = [nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        net = nn.Sequential(*body, nn.Linear(4, 2)).to(memory_format=layout)
        noise = NoiseScale(net, every=1, capture=capture)
        for step in range(2):
            x = torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(step)).to(memory_format=layout)
            net.zero_grad()
            net(x).square().mean().backward()
            noise.update(samples=8)
        estimate = noise.estimate()
        assert estimate.measurements == 2
        found.append((estimate.trace, estimate.gradient_squared))
    assert found[1] == pytest.approx(found[0], rel=1e-4)
