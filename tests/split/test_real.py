"""Real software as subject, where it is installed; docs/split-findings.md reports what is found."""

import re
from pathlib import Path

import pytest
from tests.split import real

from isobatch.split import split

PAGE = Path(__file__).resolve().parents[2] / "docs" / "split.md"
BLOCK = re.compile(r"^## ([^\n]*)\n(?:(?!^## ).)*?^```py\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NEEDS = {
    "Accelerate": ["accelerate"],
    "Lightning": ["lightning"],
    "Hugging Face Trainer": ["transformers", "accelerate"],
}
FOUND = [
    ("keras", "keras_ema", ["average-per-part"]),
    ("ema_pytorch", "ema_pytorch_per_step", []),
    ("ema_pytorch", "ema_pytorch_per_micro_batch", ["average-per-part"]),
    ("torch", "averaged_model", ["batch-norm"]),
    ("torch", "averaged_model_use_buffers", ["batch-norm"]),
    ("lightning", "lightning_ema", ["mean-of-means"]),
    ("transformers", "trainer_causal_lm", []),
    ("transformers", "trainer_label_smoothing", []),
    ("trl", "trl_sft", []),
    ("trl", "trl_dpo", ["mean-of-means"]),
    ("accelerate", "accelerate_loop", ["mean-of-means"]),
]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(("package", "name", "causes"), FOUND, ids=[name for _, name, _ in FOUND])
def test_what_is_found_in_it(package, name, causes, monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "torch")  # read when keras is imported
    pytest.importorskip(package, exc_type=ImportError)
    report = split(getattr(real, name))
    assert [cause.name for cause in report.causes] == causes, str(report)


ON_TWO = [
    ("accelerate", "accelerate_scheduler", ["mean-of-means", "scheduler-per-process"]),
    ("lightning", "lightning_ema", ["mean-of-means"]),
    ("transformers", "trainer_causal_lm", []),
]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(("package", "name", "causes"), ON_TWO, ids=[name for _, name, _ in ON_TWO])
def test_what_is_found_on_two_processes(package, name, causes):
    pytest.importorskip(package, exc_type=ImportError)
    report = split(getattr(real, name), 2, processes=2, timeout=300)
    assert [cause.name for cause in report.causes] == causes, str(report)
    assert "2 processes x 4" in report.layouts


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(("name", "code"), BLOCK.findall(PAGE.read_text()), ids=lambda value: value[:12])
def test_the_examples_of_frameworks_run(name, code):
    for package in NEEDS[name]:
        pytest.importorskip(package, exc_type=ImportError)
    exec(compile(code, str(PAGE), "exec"), {"__name__": "page"})


def test_every_framework_has_an_example():
    assert [name for name, _ in BLOCK.findall(PAGE.read_text())] == list(NEEDS)
