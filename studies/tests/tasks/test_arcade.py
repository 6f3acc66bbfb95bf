"""Atari as samples: one stream at any batch, and a checkpoint that is played again."""

import numpy as np
import pytest
import torch
from tests.recipes import recipe
from tests.train.test_resume import everything, same

from isobatch.errors import InputError
from isobatch.tasks import make_run
from isobatch.train import Trainer
from isobatch.train.persistence import restore, state_of
from isobatch_studies.tasks.arcade import Arcade, judge

pytest.importorskip("ale_py")


def made(**options):
    return recipe(task="a2c-atari", data_size=None, batch={"size": 10}, ema=None,
                  optimizer={"name": "rmsprop", "lr": 1e-3}, schedule={"length": "400 samples", "warmup": "0 samples"},
                  options={"pool": 2, "width": 2} | options)  # fmt: skip


def test_weights_held_still_any_batches_see_one_stream():
    def frames(sizes):
        run = make_run(made(), 1)
        parts = [run.samples[torch.zeros(n)] for n in sizes]
        return [torch.cat(field) for field in zip(*parts, strict=True)]

    one, other = frames([60]), frames([10, 5, 25, 20])
    assert one[0].shape == (60, 4, 42, 40)
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    assert float(one[0].max()) <= 1


def test_a_resumed_run_plays_on_bit_for_bit():
    sizes = [10, 10, 25, 5, 10, 10]
    whole, cut = (Trainer(make_run(made(), 2), made()) for _ in range(2))
    for size in sizes:
        whole.step(size)
    for index, size in enumerate(sizes):
        if index == 3:
            state = state_of(cut)
            cut = Trainer(make_run(made(), 2), made())
            restore(cut, state, state)
        cut.step(size)
    same(everything(whole), everything(cut))
    screens = [one.run.samples.games.screens for one in (whole, cut)]  # type: ignore[attr-defined]
    assert (screens[0] == screens[1]).all()


def test_a_game_that_ends_starts_anew():
    games = Arcade("Breakout", 1, 0)
    over = 0
    for _ in range(700):
        over += int(games.act(np.array([0]), np.array([1])).ended[0])
        if over:
            break
    assert over == 1
    assert (games.starts[0], len(games.taken[0])) == (2, 0)


def test_the_judge_is_a_function_of_the_weights():
    run = make_run(made(), 4)
    with torch.no_grad():
        assert judge(run.model, "Pong") == judge(run.model, "Pong")


def test_a_game_that_is_not_there_is_refused():
    with pytest.raises(InputError, match=r"options\.game='Pongg' is not among the games of ale-py"):
        make_run(made(game="Pongg"), 0)
