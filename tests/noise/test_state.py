"""State: resumed bit for bit, refused where it does not fit; windows, temperature and the pace of measuring."""

import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from isobatch.errors import InputError
from isobatch.noise import NoiseScale, scale
from isobatch.noise.history import MOST_CELLS, History
from isobatch.noise.independence import FIRST, copied
from isobatch.noise.pace import ADVANCE, Pace, Stopwatch, gap
from isobatch.noise.record import Found


def build(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1)).double()


def train(net, noise, steps, optimizer, micro=16):
    for step in steps:
        x = torch.randn(16, 4, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        optimizer.zero_grad()
        for part in x.split(micro):
            ((net(part).squeeze(1) - part.sum(1)).square().mean() * (len(part) / 16)).backward()
        noise.update(samples=16)
        optimizer.step()


@pytest.mark.parametrize("cuts", [(1,), (7,), (40,), (300,), (5, 6)])
@pytest.mark.parametrize(("micro", "options"), [(16, {"every": 2}), (4, {"every": 1, "half_life": 200.0})])
def test_resume_is_bit_for_bit(cuts, micro, options):
    """Through JSON and tensors alone, at any step, also twice, and across the merging of cells."""
    options = options | {"groups": "layer"}
    total = max(*cuts, 10) + 9
    net = build()
    optimizer = torch.optim.SGD(net.parameters(), 0.01)
    whole = NoiseScale(net, optimizer, **options)
    train(net, whole, range(total), optimizer, micro)
    net = build()
    optimizer = torch.optim.SGD(net.parameters(), 0.01)
    noise, start = NoiseScale(net, optimizer, **options), 0
    for cut in cuts:
        train(net, noise, range(start, cut), optimizer, micro)
        state = noise.state_dict()
        tensors = {name: t.clone() for name, t in state["tensors"].items()}
        values = json.loads(json.dumps(state["values"], allow_nan=False))
        noise, start = NoiseScale(net, optimizer, **options), cut
        noise.load_state_dict({"tensors": tensors, "values": values})
    train(net, noise, range(start, total), optimizer, micro)
    assert noise.estimate() == whole.estimate()
    assert noise.seen == whole.seen == 16.0 * total
    ours, theirs = noise.state_dict(), whole.state_dict()
    assert ours["values"] == theirs["values"]
    for name, tensor in theirs["tensors"].items():
        assert torch.equal(ours["tensors"][name], tensor)


@pytest.mark.parametrize(
    "other",
    [{"geometry": "sign"}, {"half_life": 5.0}, {"groups": "layer"}, {"unit": "tokens"}, {"data_size": 100}],
)
def test_a_state_of_another_measurement_is_refused_with_both_values(other):
    state = NoiseScale(build()).state_dict()
    noise = NoiseScale(build(), **other)
    before = noise.state_dict()["values"]
    with pytest.raises(InputError, match=f"the state was kept with {next(iter(other)).replace('groups', 'columns')}="):
        noise.load_state_dict(state)
    assert noise.state_dict()["values"] == before


def test_a_damaged_state_is_refused():
    net = build()
    noise = NoiseScale(net, every=1)
    train(net, noise, range(3), torch.optim.SGD(net.parameters(), 0.01))
    state = noise.state_dict()
    state["tensors"]["history"] = state["tensors"]["history"][:2]
    with pytest.raises(InputError, match="damaged"):
        NoiseScale(net, every=1).load_state_dict(state)


def add(history, values, span=10.0, start=0.0, counts=1.0):
    for i, (trace, signal) in enumerate(values):
        found = Found(torch.tensor([[trace, signal]], dtype=torch.float64), torch.tensor(counts, dtype=torch.float64))
        history.add(found, seen=start + (i + 1) * span, span=span, batch=span)
    return start + len(values) * span


@pytest.mark.parametrize("half_life", [None, 35.0, math.inf])
def test_averages_are_weighted_by_age_on_the_sample_clock(half_life):
    values = np.random.default_rng(0).standard_normal((20, 2)) + 5
    history = History(half_life)
    seen = add(history, values.tolist())
    position = np.arange(20) * 10.0 + 5
    weight = (position / seen) ** 2 if half_life is None else 0.5 ** ((seen - position) / half_life)
    np.testing.assert_allclose(history.read(seen, 1).means[0], weight @ values / weight.sum(), rtol=1e-12)


def test_cells_are_merged_and_forgotten_but_means_stay():
    values = np.random.default_rng(1).standard_normal((1000, 2)) + 5
    history = History(math.inf)
    seen = add(history, values.tolist())
    read = history.read(seen, 1)
    assert len(history.cells) <= MOST_CELLS
    assert read.measurements == 1000
    np.testing.assert_allclose(read.means[0], values.mean(0), rtol=1e-12)
    short = History(30.0)
    seen = add(short, values.tolist())
    assert short.read(seen, 1).measurements == pytest.approx(60, abs=2)


def test_nothing_is_read_before_somebody_asks(monkeypatch):
    net = build()
    noise = NoiseScale(net, every=1, groups="layer", data_size=1000)
    for name in ("item", "tolist", "__float__", "__bool__", "__int__", "cpu", "numpy"):

        def refuse(self, *args, name=name, **kwargs):
            raise AssertionError(f"Tensor.{name} makes the host wait")

        monkeypatch.setattr(torch.Tensor, name, refuse)
    for micro in (16, 4):
        train(net, noise, range(5), torch.optim.SGD(net.parameters(), 0.01), micro)


def test_another_temperature_starts_the_window_again():
    net = build()
    optimizer = torch.optim.SGD(net.parameters(), 0.001)
    noise = NoiseScale(net, optimizer, every=1)
    train(net, noise, range(40), optimizer)
    before = noise.estimate()
    noise.rescale()
    assert noise.estimate() == before
    noise.rescale(temperature=0.5)
    found = noise.estimate()
    assert found.verdict == "undefined"
    assert f"about {2 * before.value:.4g} samples were expected" in found.caveats[-1]
    train(net, noise, range(40, 80), optimizer)
    assert noise.estimate().measurements == 40
    assert noise.seen == 80 * 16
    with pytest.raises(InputError, match="temperature"):
        noise.rescale(temperature=0)


def test_the_gap_keeps_the_budget_and_the_advance():
    for relative in (0.001, 0.01, 0.1, 0.5):
        step = spent = 0
        while step < 20_000:
            step += gap(relative, 0.003, step)
            spent += relative
        assert spent <= 0.003 * step + ADVANCE + 20 * relative
        assert gap(relative, 0.003, 10**9) == max(1, math.ceil(relative / 0.003))
    assert gap(0.05, 0.003, 1) == 1


def test_every_is_obeyed_and_turns_are_kept_until_ready():
    pace = Pace(every=4, budget=0.1)
    assert [pace.due() for _ in range(9)] == [False, False, False, True, False, False, False, True, False]
    pace = Pace(every=2, budget=0.1)
    assert [pace.due(ready=i > 4) for i in range(8)] == [False, False, False, False, False, True, False, True]


def test_a_cheap_measurement_is_made_often_and_a_dear_one_seldom():
    def settle(cost):
        pace = Pace(every=None, budget=0.003)
        pace.steps = 10**6
        pace._steps.extend([1.0] * 31)
        watch = Stopwatch(torch.device("cpu"))
        watch.host = cost
        pace.measured(watch, None, torch.device("cpu"))
        return pace.gap

    assert [settle(cost) for cost in (0.001, 0.03, 0.3)] == [1, 10, 100]


def test_a_measurement_costs_what_its_step_took_longer():
    """Its own parts take 0.03 of a step, but the step takes 0.059 longer: one in twenty keeps a budget of 0.003."""
    now = [0.0]
    pace, device = Pace(None, 0.003, lambda: now[0]), torch.device("cpu")
    pace.steps = 10**6
    for turn in range(60):
        measured, watch = turn % 2 == 1, Stopwatch(device)
        pace.leave(watch if measured else None)
        now[0] += 1.059 if measured else 1.0
        pace.arrive()
        if measured:
            watch.host = 0.03
            pace.measured(watch, None, device)
    assert pace.gap == 20


def test_what_a_measurement_costs_in_the_next_step_is_spread_over_all():
    pace, device = Pace(None, 0.003, lambda: 0.0), torch.device("cpu")
    pace.steps = 10**6
    pace._steps.extend([1.0] * 31)
    for turn in range(32):
        watch, after = Stopwatch(device), Stopwatch(device)
        watch.host, after.host = 0.03, 0.12
        pace.measured(watch, (), device)
        if turn % 4 == 0:
            pace.followed(after)
    assert pace.gap == 20


@pytest.mark.parametrize("every", [1, 2])
def test_comparing_two_steps_counts_as_a_cost(every):
    net = build()
    noise = NoiseScale(net, every=every)
    train(net, noise, range(7), torch.optim.SGD(net.parameters(), 0.01))
    assert len(noise.progress.pairs) == len([watch for watch in noise.pace._later if watch is not None]) > 2
    assert all(watch.seconds() > 0 for watch in noise.pace._later if watch is not None)


def test_steps_that_are_compared_do_not_count_as_plain_ones():
    """Each third step is measured and takes 0.05 longer, the next one 0.2: so 0.25 in all, one in 84 keeps 0.003."""
    now = [0.0]
    pace, device = Pace(None, 0.003, lambda: now[0]), torch.device("cpu")
    pace.steps = 10**6
    for turn in range(120):
        measured, compared = turn % 3 == 1, turn % 3 == 2
        watch, after = Stopwatch(device), Stopwatch(device)
        pace.leave(watch if measured else None, plain=not compared)
        now[0] += 1.05 if measured else 1.2 if compared else 1.0
        pace.arrive()
        if measured:
            watch.host = 0.05
            pace.measured(watch, (), device)
        if compared:
            after.host = 0.2
            pace.followed(after)
    assert list(pace._steps) == pytest.approx([1.0] * 31)
    assert 81 <= pace.gap <= 84


def test_what_is_compared_in_a_measured_step_is_no_cost_of_that_step():
    now = [0.0]
    pace, device = Pace(None, 0.003, lambda: now[0]), torch.device("cpu")
    pace.steps = 10**6
    for _ in range(20):
        watch, after = Stopwatch(device), Stopwatch(device)
        pace.leave(watch, plain=False)
        now[0], watch.host, after.host = now[0] + 1.25, 0.05, 0.2
        pace.arrive()
        pace.followed(after)
        pace.measured(watch, (), device)
    assert list(pace._steps) == pytest.approx([1.0] * 8)
    assert list(pace._longer) == pytest.approx([0.05] * 12)


def test_copies_for_comparison_go_into_the_memory_of_those_before():
    net = build()
    noise, places = NoiseScale(net, every=1), []
    optimizer = torch.optim.SGD(net.parameters(), 0.01)
    for step in range(24):
        train(net, noise, [step], optimizer, micro=4)
        places.append(None if noise._pair is None else {t.data_ptr() for t in noise._pair.before.values()})
    assert all(place == places[0] for place in places[1:FIRST])
    assert not noise._spare  # from then on pairs are rare
    grown = {p: torch.ones(3) for p in net.parameters()}
    made = copied(list(net.parameters()), all_of_them=False, into=grown)
    assert all(torch.equal(made[p], p.grad) and made[p].dtype == torch.float64 for p in net.parameters())


@pytest.mark.parametrize("turn", [0, 3])
def test_ranks_that_average_later_are_looked_for_once(monkeypatch, turn):
    """All of this process's memory is searched for them; also where a run goes on that has measured already."""
    net, looked, group = build(), [], object()
    noise = NoiseScale(net, every=1)
    state = noise.state_dict()
    state["values"]["clock"]["turn"] = turn
    net.requires_grad_(False)
    noise.load_state_dict(state)
    monkeypatch.setattr(scale, "world_size", lambda: 2)
    monkeypatch.setattr(scale, "process_group_of", lambda *_, **__: looked.append(1))
    for _ in range(3):  # nothing is measured yet
        noise.update(samples=16)
    assert not looked
    net.requires_grad_(True)
    train(net, noise, range(4), torch.optim.SGD(net.parameters(), 0.01))
    assert len(looked) == 1
    monkeypatch.setattr(scale, "process_group_of", lambda *_, **__: group)
    found = NoiseScale(net, every=1, process_group=None)
    found._setup = noise._setup
    found._look_for_ranks()
    assert found._setup.group is group


def test_unmeasured_steps_have_no_hooks():
    net = build()
    noise = NoiseScale(net, every=3)
    counts = []
    for _ in range(6):
        counts.append(sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules()))
        train(net, noise, range(1), torch.optim.SGD(net.parameters(), 0.01))
    assert [count > 0 for count in counts] == [True, False, False, True, False, False]


def test_deleted_noise_leaves_no_hooks_that_act():
    net = build()
    noise = NoiseScale(net, capture="chunks")
    del noise
    net(torch.ones(2, 4, dtype=torch.float64)).sum().backward()
