"""Every page that the commands write, made from kept results where a run would take minutes."""

import importlib
import json
from pathlib import Path

from tests.docs.blocks import ROOT
from tests.recipes import recipe

from isobatch import Recipe, cli, formats
from isobatch.critical import pages
from isobatch.export import plan_page
from isobatch.published import load
from isobatch.verify import page as verify_page

RESULTS = ROOT / "docs" / "results"
HF = ROOT / "tests" / "formats" / "files" / "hf" / "qwen_full_sft.yaml"
STUDIES = {
    "adam": "adam", "adaptive": "adaptive", "autowu": "autowu", "batch-augmentation": "batch_augmentation",
    "concurrent-adversarial": "concurrent_adversarial", "decentlam": "decentlam", "legw": "legw",
    "noise-scale": "noise_scale", "progressive": "progressive", "pseudo-label": "pseudo_label",
}  # fmt: skip
"""Folder of a kept result -> the package whose page shows it."""
NAMES = [
    "plan", "plan-noise", "plan-teacher", "plan-ramp", "plan-yaml", "plan-published", "verify", "verify-switch",
    "verify-mended", "sweep", "branch", "fit", "advise", "noise", "split", "plan-plot",
    *(f"study-{name}" for name in STUDIES),
]  # fmt: skip
ADAMW = {"name": "adamw", "lr": 1e-3, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.1}
TEACHER = {
    "data_size": 1281167,
    "batch": {"size": 1024},
    "optimizer": {"name": "adamw", "lr": 5e-4, "weight_decay": 0.04},
    "schedule": {"length": "100 epochs", "warmup": "10 epochs", "shape": "cosine"},
    "ema": {"decay": 0.996, "final": 1.0},
}

QUADRATIC = """task = "quadratic"
data_size = 256
batch = { size = 8 }
optimizer = { name = "sgd", lr = 0.01 }
schedule = { length = "2048 samples" }
"""
DIGITS = str(ROOT / "examples" / "digits.toml")
COMMANDS = {
    "fit": ["noise", "fit", "runs.csv"],
    "advise": ["noise", "advise", DIGITS, "--critical", "21,29,40", "--devices", "1,8,64", "--throughput", "steps.csv",
               "--gradient-bytes", "1e8"],
    "noise": ["noise", "measure", "q.toml"],
    "split": ["verify", "split", f"{ROOT / 'tests' / 'split' / 'targets.py'}:bad"],
}  # fmt: skip
"""Page -> the command that writes it."""


def products(folder: Path) -> dict[str, str]:
    """Return each page by name.

    Args:
        folder: an empty one, for what is written on the way.

    Returns:
        Name -> HTML.
    """
    kept = {path.parent.name: json.loads(path.read_text()) for path in RESULTS.glob("*/result.json")}
    power = {"decay": 0.999, "ramp": {"by": "power", "power": 0.75}}
    found = {
        "plan": plan_page(recipe(optimizer=ADAMW), 64, source="r.toml"),
        "plan-noise": plan_page(recipe(optimizer=ADAMW), 64, noise_scale=48.0, source="r.toml"),
        "plan-teacher": plan_page(Recipe.parse(TEACHER), 256, source="teacher.toml"),
        "plan-ramp": plan_page(Recipe.parse(TEACHER | {"ema": power}), 256, source="ramped.toml"),
        "plan-yaml": plan_page(formats.load(HF, data_size=1000, devices=8), source="qwen_full_sft.yaml"),
        "plan-published": plan_page(load("llama31-8b").recipe(128), 512, source="llama31-8b.toml"),
        "verify": verify_page.html(json.loads((ROOT / "docs" / "demo" / "result.json").read_text())),
        "verify-switch": verify_page.html(kept["digits-switch"]),
        "verify-mended": verify_page.html(kept["wine-mended"]),
    }
    written = (("sweep", pages.write_sweep, "critical-digits"), ("branch", pages.write_branch, "branch-digits"))
    for name, write, result in written:
        place = folder / name
        place.mkdir()
        write(place, kept[result])
        found[name] = (place / "report.html").read_text()
    (folder / "runs.csv").write_text("batch,samples\n16,108\n64,131\n256,227\n1024,610\n4096,2150\n")
    (folder / "steps.csv").write_text("batch,seconds_per_step\n8,0.018\n64,0.074\n256,0.266\n")
    (folder / "q.toml").write_text(QUADRATIC)
    for name, words in COMMANDS.items():
        place = folder / name
        cli.run([str(folder / word) if (folder / word).is_file() else word for word in words] + ["--out", str(place)])
        found[name] = (place / "report.html").read_text()
    schedules = folder / "schedules.html"
    cli.run(
        ["plan", str(HF), "--batch-size", "64", "--set", "data_size=1000", "--devices", "8", "--plot", str(schedules)]
    )
    found["plan-plot"] = schedules.read_text()
    for name, package in STUDIES.items():
        found[f"study-{name}"] = importlib.import_module(f"isobatch_studies.{package}.page").html(kept[name])
    return found
