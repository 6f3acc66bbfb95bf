"""Comparisons on engines: the demo everywhere, and looks that cancel what nobody needs."""

from concurrent.futures import Executor, Future
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path

import pytest
from tests.executors.engines import dask_cluster, environment
from tests.recipes import recipe

from isobatch import verify
from isobatch.executors import opened
from isobatch.executors.remote import Answer, answered
from isobatch.plan import Recipe

ROOT = Path(__file__).resolve().parents[2]


class FirstLook(Executor):
    """Makes the calls of the first seeds, at once, and none of the others."""

    workers = 4

    def __init__(self, seeds):
        self.seeds, self.held = seeds, []

    def submit(self, fn, /, *args, **kwargs):
        future: Future = Future()
        _, job = answered(Answer(args[0].work, ""))
        if job.seed < self.seeds:
            future.set_result(fn(*args, **kwargs))
        else:
            self.held.append(future)
        return future


def test_a_verdict_at_the_first_look_waits_for_none_of_the_later_seeds_and_cancels_them():
    made = recipe(
        task="quadratic", data_size=256, optimizer={"lr": 0.008}, ema={"decay": 0.98},
        schedule={"length": "1024 samples", "warmup": "0 samples", "shape": "constant"},
        options={"dimension": 4, "noise": 0.01},
    )  # fmt: skip
    engine = FirstLook(10)
    result = verify.run(made, 32, seeds=(10, 40), ablate=("unscaled",), executor=engine)
    assert {arm: len(runs) for arm, runs in result.curves.items()} == {"reference": 10, "plan": 10, "unscaled": 10}
    assert result.verdicts["plan"] == "SAME"
    assert len(engine.held) == 30 * 3
    assert all(future.cancelled() for future in engine.held)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_the_demo_is_the_same_bits_on_every_engine(tmp_path, monkeypatch):
    for name, value in environment(RAY_worker_niceness="0").items():
        monkeypatch.setenv(name, value)
    made = Recipe.load(ROOT / "examples" / "digits.toml")

    def curves(executor, workers):
        found = verify.run(made, 128, seeds=10, workers=workers, executor=executor).curves
        return {arm: [(one.seed, one.values, one.steps, one.stopped) for one in runs] for arm, runs in found.items()}

    here = curves(None, 2)
    assert sum(map(len, here.values())) == 50
    names = {"ray": "ray", "submitit": f"slurm:cluster=local,folder={tmp_path / 'logs'}"}
    with ExitStack() as stack:
        if find_spec("distributed"):
            names["dask"] = stack.enter_context(dask_cluster(tmp_path))[1]
        for module, on in names.items():
            if module == "dask" or find_spec(module):
                with opened(on, workers=2) as executor:
                    assert curves(executor, None) == here, on
