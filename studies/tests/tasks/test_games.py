"""Games as samples: the published equations, one stream at any batch, exact resume."""

import numpy as np
import pytest
import torch
from tests.gloo import world
from tests.recipes import recipe
from tests.reference import a2c as slow
from tests.train.test_resume import everything, same

from isobatch.errors import InputError
from isobatch.plan import Schedule
from isobatch.tasks import make_run
from isobatch.train import Trainer
from isobatch.train.persistence import restore, state_of
from isobatch_studies.tasks.cartpole import LIMIT, CartPoles, judge
from isobatch_studies.tasks.games import Rollouts, Transition, a2c_loss, discounted, uniform


def made(seed=0, size=20, **options):
    return recipe(task="a2c-cartpole", data_size=None, batch={"size": size}, options={"width": 8, "pool": 6, **options},
                  optimizer={"name": "rmsprop", "lr": 5e-3}, ema={"decay": 0.9},
                  schedule={"length": "600 samples", "warmup": "0 samples"})  # fmt: skip


def test_the_cart_is_gymnasiums():
    gymnasium = pytest.importorskip("gymnasium")
    ours, rng = CartPoles(1, seed=3), np.random.default_rng(0)
    theirs = gymnasium.make("CartPole-v1").unwrapped
    theirs.reset(seed=0)
    games, falls = np.array([0]), 0
    for _ in range(400):
        theirs.state, theirs.steps_beyond_terminated = ours.states[0].copy(), None
        action = int(rng.integers(2))
        seen, _, over, _, _ = theirs.step(action)
        found = ours.act(games, np.array([action]))
        np.testing.assert_allclose(found.last.numpy()[0], seen, rtol=0, atol=1e-6)
        assert bool(found.ended[0]) == over
        falls += over
    assert falls > 5
    assert np.abs(ours.states).max() <= 0.05 or ours.ages[0] > 0


def test_the_time_limit_cuts_and_a_cut_game_is_followed_by_the_critic():
    games = CartPoles(2, seed=0)
    games.ages[1] = LIMIT - 1
    found = games.act(np.array([0, 1]), np.array([0, 1]))
    assert (found.ended.tolist(), found.cut.tolist()) == ([False, False], [False, True])
    assert games.ages.tolist() == [1, 0]


@pytest.mark.parametrize("seed", range(3))
def test_returns_and_loss_are_those_of_the_paper(seed):
    rng, g = np.random.default_rng(seed), 0.9
    r, over, cut = rng.normal(size=(6, 4)), rng.random((6, 4)) < 0.2, rng.random((6, 4)) < 0.2
    cut &= ~over
    last, end = rng.normal(size=(6, 4)), rng.normal(size=4)
    ours = discounted(r, over | cut, np.where(cut, last, 0.0), end, g)
    theirs = [slow.returns(r[:, i], over[:, i], cut[:, i], last[:, i], end[i], g) for i in range(4)]
    np.testing.assert_allclose(ours.T, theirs, rtol=1e-12)
    z, v = torch.tensor(rng.normal(size=(5, 3))), torch.tensor(rng.normal(size=5))
    a, ret = torch.tensor([0, 2, 1, 1, 0]), torch.tensor(rng.normal(size=5))
    found = a2c_loss(lambda seen: (z, v), (torch.zeros(5), a, ret))  # type: ignore[arg-type]
    assert float(found) == pytest.approx(slow.loss(z.tolist(), v.tolist(), a.tolist(), ret.tolist()), rel=1e-12)


class Scripted:
    """Games whose ends are written down: frame by frame, one column a game."""

    def __init__(self, ended, cut, kind=bool):
        self.ended, self.cut, self.pool = np.array(ended), np.array(cut), len(ended[0])
        self.frame, self.kind = 0, kind

    def observe(self, games):
        return torch.full((len(games), 1), float(self.frame))

    def act(self, games, actions):
        ended, cut = (flags[self.frame][games].astype(self.kind) for flags in (self.ended, self.cut))
        self.frame += 1
        last = torch.full((len(games), 1), 100.0 + self.frame)
        return Transition(np.arange(1.0, 1 + len(games)), ended, cut, last)


ENDS = {
    "nothing": [(0, 0)] * 4,
    "over": [(0, 0), (1, 0), (0, 0), (0, 0)],
    "cut": [(0, 0), (0, 1), (0, 0), (0, 0)],
    "both": [(0, 0), (1, 1), (0, 0), (0, 0)],
    "both at once": [(1, 1), (0, 0), (0, 0), (0, 0)],
    "both at the end": [(0, 0), (0, 0), (0, 0), (1, 1)],
    "always both": [(1, 1)] * 4,
    "cut, then both": [(0, 1), (1, 1), (0, 0), (0, 0)],
    "both, then cut": [(1, 1), (0, 1), (0, 0), (0, 0)],
    "over, then both, then cut": [(1, 0), (1, 1), (0, 1), (0, 0)],
}


@pytest.mark.parametrize("kind", [bool, int, np.uint8, np.float32])
@pytest.mark.parametrize("name", ENDS)
def test_nothing_follows_a_game_that_is_over_on_the_step_of_its_limit(name, kind):
    """Beside another game that is cut in every frame, so that the critic is always asked."""
    ended = [[over, 0] for over, _ in ENDS[name]]
    cut = [[limit, 1] for _, limit in ENDS[name]]
    rollouts = Rollouts(
        Scripted(ended, cut, kind), lambda x: (torch.zeros(len(x), 2), 3 * x[:, 0]), frames=100, steps=4, discount=0.5
    )
    found = rollouts[torch.arange(8)][2].reshape(2, 4)
    values = [3 * (101.0 + t) for t in range(4)]
    for game in range(2):
        ours = [[row[game] for row in flags] for flags in (ended, cut)]
        wanted = slow.returns([game + 1.0] * 4, *ours, values, 3 * 4.0, 0.5)
        assert found[game].tolist() == pytest.approx(wanted), (name, game)


def test_the_gradient_does_not_flow_through_the_gain():
    v = torch.tensor([0.3], requires_grad=True)
    z = torch.zeros(1, 2, requires_grad=True)
    a2c_loss(lambda seen: (z, v), (torch.zeros(1), torch.tensor([1]), torch.tensor([1.0]))).backward()  # type: ignore
    assert float(v.grad) == pytest.approx(-0.7, rel=1e-6)  # 0.5 * d(R-V)^2/dV alone


def test_weights_held_still_any_batches_see_one_stream():
    def frames(sizes):
        run = make_run(made(), 1)
        parts = [run.samples[torch.zeros(n)] for n in sizes]
        return [torch.cat(field) for field in zip(*parts, strict=True)]

    one, other = frames([600]), frames([20, 5, 55, 240, 180, 100])
    for a, b in zip(one, other, strict=True):
        assert len(a) == 600
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
    assert len(frames([7])[0]) == 7


def test_numbers_are_uniform_and_independent_of_their_neighbours():
    numbers = np.array([uniform(5, np.arange(4000), turn) for turn in range(5)])
    assert abs(numbers.mean() - 0.5) < 4 / np.sqrt(12 * numbers.size)
    assert abs(numbers.var() - 1 / 12) < 0.002
    assert abs(np.corrcoef(numbers)[np.triu_indices(5, 1)]).max() < 0.06
    assert abs(np.corrcoef(numbers[0, :-1], numbers[0, 1:])[0, 1]) < 0.06


def test_a_resumed_run_plays_on_bit_for_bit():
    sizes = [20, 20, 35, 5, 12, 60, 20, 20]
    whole = Trainer(make_run(made(), 2), made())
    for size in sizes:
        whole.step(size)
    cut = Trainer(make_run(made(), 2), made())
    for index, size in enumerate(sizes):
        if index in (1, 3, 6):
            state = state_of(cut)
            cut = Trainer(make_run(made(), 2), made())
            restore(cut, state, state)
        cut.step(size)
    assert isinstance(cut.run.samples, Rollouts)
    assert len(cut.run.samples.scores) > 0
    same(everything(whole), everything(cut))


def test_it_learns():
    one = made(size=80, width=64, pool=16)
    one = one.model_copy(update={"schedule": Schedule(length="20000 samples")})
    run = make_run(one, 0)
    before = run.evaluate()["return"]
    trainer = Trainer(run, one.model_copy(update={"ema": None}))
    for _ in range(250):
        trainer.step(80)
    assert run.evaluate()["return"] > 2 * before


def test_the_judge_is_a_function_of_the_weights():
    run = make_run(made(), 4)
    with torch.no_grad():
        assert judge(run.model) == judge(run.model)


def test_other_games_and_other_processes_are_refused(tmp_path):
    state = make_run(made(pool=5), 0).samples.state_dict()  # type: ignore[attr-defined]
    with pytest.raises(InputError, match="the state holds 5 games, this pool 6"):
        make_run(made(), 0).samples.load_state_dict(state)  # type: ignore[attr-defined]

    def ranked(_):
        with pytest.raises(InputError, match="a stream of games is one process"):
            make_run(made(), 0).samples[torch.zeros(5)]

    world(2, tmp_path, ranked)


def test_the_old_place_answers_with_the_new_one():
    import isobatch.tasks.games as old

    with pytest.warns(DeprecationWarning, match=r"is now isobatch_studies\.tasks\.games\.Rollouts"):
        assert old.Rollouts is Rollouts
