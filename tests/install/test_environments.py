"""The base install plans and says what else to install, an extra brings what its rooms need; in fresh environments."""

import json

import pytest
from tests.install.environments import ROOT, call, environment

HEAVY = ("torch", "numpy", "scipy", "sklearn", "matplotlib", "jinja2", "networkx", "safetensors", "pytorch_optimizer")
ABSENT = "from importlib.util import find_spec; print([name for name in {} if find_spec(name)])"
ALL = 'not installed: torch, numpy, safetensors, scipy, matplotlib, jinja2; pip install "isobatch[torch,verify]"'
TORCH = 'not installed: torch, numpy, safetensors; pip install "isobatch[torch]"'
EXAMPLES = sorted((ROOT / "examples").glob("*.toml"))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return environment(tmp_path_factory.mktemp("base") / "env")


@pytest.fixture(scope="module")
def torch(tmp_path_factory):
    return environment(tmp_path_factory.mktemp("torch") / "env", "torch")


def test_the_base_holds_nothing_heavy(base):
    found = call(base, "-c", ABSENT.format(HEAVY))
    assert (found.returncode, found.stdout) == (0, "[]\n"), found.stderr


def test_the_base_plans_every_example(base):
    code = (
        "import sys; from isobatch import cli; print([cli.run(['plan', f, '--batch-size=64']) for f in sys.argv[1:]])"
    )
    found = call(base, "-c", code, *map(str, EXAMPLES))
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout.splitlines()[-1]) == [0] * len(EXAMPLES)


@pytest.mark.parametrize(("words", "said"), [
    (["verify", "run", "examples/digits.toml", "--batch-size", "64"], ALL),
    (["verify", "characteristic", "examples/digits.toml", "--batch-size", "64"], ALL),
    (["noise", "measure", "examples/digits.toml"], ALL),
    (["noise", "sweep", "examples/digits.toml", "--batches", "4,8", "--goals", "0.5,0.3"], ALL),
    (["noise", "branch", "examples/digits.toml", "--span", "4000"], ALL),
    (["noise", "advise", "examples/digits.toml", "--devices", "2"], ALL),
    (["train", "examples/digits.toml", "--out", "out/never"], TORCH),
    (["study"], "no studies are installed; they are a distribution of their own: pip install isobatch-studies"),
])  # fmt: skip
def test_a_command_that_needs_more_exits_with_2_and_the_line_that_installs_it(base, words, said):
    found = call(base, "-m", "isobatch", *words)
    assert (found.returncode, found.stdout, found.stderr) == (2, "", f"isobatch: {said}\n")
    assert not (ROOT / "out" / "never").exists()


@pytest.mark.parametrize(("code", "said"), [
    ("import isobatch as ib; ib.ModelEMA", TORCH),
    ("from isobatch import NoiseScale", TORCH),
    ("import isobatch as ib; ib.rescale", TORCH),
    ("import isobatch.average", TORCH),
    ("from isobatch.tasks import Run", TORCH),
    ("import isobatch as ib; ib.verify", ALL),
    ("import isobatch.critical", ALL),
    ("from isobatch.report import render", 'numpy, scipy, matplotlib, jinja2; pip install "isobatch[verify]"'),
])  # fmt: skip
def test_a_name_that_needs_more_says_the_line_that_installs_it(base, code, said):
    found = call(base, "-c", code)
    assert found.returncode == 1
    assert found.stderr.strip().endswith(said)


def test_with_torch_alone_a_run_is_trained_averaged_and_measured(torch, tmp_path):
    found = call(torch, "-c", ABSENT.format(["scipy", "sklearn", "matplotlib", "pytorch_optimizer"]))
    assert found.stdout == "[]\n"
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        'task = "quadratic"\n[batch]\nsize = 8\n[optimizer]\nname = "sgd"\nlr = 0.05\n'
        '[schedule]\nlength = "512 samples"\n[ema]\ndecay = 0.9\n[noise]\nevery = 8\n'
    )
    found = call(torch, "-m", "isobatch", "train", str(recipe), "--out", str(tmp_path / "out"))
    assert found.returncode == 0, found.stderr
    code = "import isobatch as ib; print(ib.NoiseScale.__name__, ib.ModelEMA.__name__)"
    assert call(torch, "-c", code).stdout == "NoiseScale ModelEMA\n"


@pytest.mark.parametrize(("task", "extra"), [("digits", "tasks")])
def test_with_torch_alone_a_task_names_its_own_extra(torch, tmp_path, task, extra):
    recipe = (ROOT / "examples" / f"{task}.toml").read_text()
    (tmp_path / "recipe.toml").write_text(recipe)
    found = call(torch, "-m", "isobatch", "train", str(tmp_path / "recipe.toml"), "--out", str(tmp_path / "out"))
    assert found.returncode == 2
    assert found.stderr.endswith(f'not installed: sklearn; pip install "isobatch[{extra}]"\n')


@pytest.mark.parametrize("name", ["lars", "lamb", "adamp"])
def test_with_torch_alone_an_optimizer_of_another_package_names_its_extra(torch, name):
    code = (
        "import torch; from isobatch.optimizers import build; "
        f"build({name!r}, [torch.nn.Parameter(torch.ones(2))], lr=0.1)"
    )
    found = call(torch, "-c", code)
    assert found.returncode == 1
    assert 'not installed: pytorch_optimizer; pip install "isobatch[optimizers]"' in found.stderr


@pytest.mark.slow
def test_a_plan_starts_within_four_times_what_the_base_alone_takes_to_load(base):
    """0.4 s where pydantic and rich load in 0.1 s; benchmarks/start.py gives the figures."""
    from benchmarks.start import ratio

    assert ratio(str(base), EXAMPLES[0], rounds=8)["ratio"] < 4


@pytest.mark.slow
def test_pip_installs_the_base_from_the_source(tmp_path):
    """Needs a package index."""
    import subprocess
    import venv

    venv.create(tmp_path / "env", with_pip=True)
    python = str(tmp_path / "env" / "bin" / "python")
    words = [python, "-m", "pip", "install", "-q", "-c", str(ROOT / "constraints.txt"), str(ROOT)]
    subprocess.run(words, check=True, capture_output=True)
    found = call(python, "-c", ABSENT.format(HEAVY))
    assert found.stdout == "[]\n"
    assert call(python, "-m", "isobatch", "plan", "examples/digits.toml", "--batch-size", "64").returncode == 0
