"""The page of a plan: each number is a plan's, texts are what --write or --patch writes, nothing is loaded."""

import json
import math
import re
import shlex
import tomllib

import pytest
from tests.formats.shelf import FILES, SHELF, read
from tests.recipes import TEXT, recipe

from isobatch import cli, formats
from isobatch.export import plan_page
from isobatch.plan import Recipe

ADAMW = {"name": "adamw", "lr": 1e-3, "weight_decay": 0.1}
TOKENS = recipe(batch={"size": 4096, "unit": "tokens", "sequence": 128}, optimizer=ADAMW, data_size=1_000_000)
OWN = {
    "sgd": (recipe(), {}),
    "adamw and a noise scale": (recipe(optimizer=ADAMW), {"noise_scale": 48.0}),
    "micro and devices": (recipe(batch={"size": 32, "micro": 8, "devices": 2}), {}),
    "tokens": (TOKENS, {}),
    "invariant": (recipe(optimizer=ADAMW), {"optimizer": "invariant"}),
    "legw": (recipe(), {"rule": "legw"}),
    "speed": (recipe(critical={"batch": 40.0}), {"goal": "speed"}),
    "moving average": (recipe(ema={"decay": 0.99, "final": 1.0}), {}),
}
QUICK = ("micro and devices", "adamw and a noise scale")
FOREIGN = {
    "hf/qwen_full_sft.yaml": {"data_size": 1000, "devices": 8},
    "hf/arguments.json": {"data_size": 100_000, "devices": 8},
    "nanogpt/train_gpt2.py": {},
    "timm/resnet50.sh": {"data_size": 1_281_167},
}


def data_of(page):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1])


def points(data):
    """Every point of a page: batch, second value, and its texts in place of their numbers."""

    def texts(value):
        return [texts(one) for one in value] if isinstance(value, list) else data["texts"][value]

    for size, row in zip(data["sizes"], data["points"], strict=True):
        for place, point in enumerate(row):
            second = data["second"]["values"][place] if data["second"] else None
            yield size, second, {name: texts(value) for name, value in point.items() if name != "curves"}, point


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in OWN]
)
def test_every_number_is_a_plans_and_the_text_is_what_write_writes(name, tmp_path):
    made, ways = OWN[name]
    data = data_of(plan_page(made, source="r.toml", **ways))
    file = tmp_path / "r.toml"
    from isobatch.recipe import toml_text

    file.write_text(toml_text(made.model_dump(mode="json", exclude_none=True)))
    seen = list(points(data))
    assert len({size for size, *_ in seen}) >= 6
    assert data["sizes"] == sorted(data["sizes"])
    assert made.batch.size in data["sizes"]
    for size, _, point, _ in seen[:: max(1, len(seen) // 4)]:
        words = dict(point)["copies"][2]
        assert words[0] == "command line"
        command = shlex.split(words[1])
        assert command[:3] == ["isobatch", "plan", "r.toml"]
        asked = [str(file) if word == "r.toml" else word for word in command[1:]]
        asked[asked.index("--write") + 1] = str(tmp_path / "new.toml")
        assert cli.run([*asked, "--overwrite"]) == 0
        assert "\n".join(point["copies"][0][1:]) == (tmp_path / "new.toml").read_text()
        options = dict(zip(command[3::2], command[4::2], strict=True))
        plan = made.at(size, micro=int(options["--micro"]) if "--micro" in options else None, devices=None,
                       noise_scale=float(options["--noise-scale"]) if "--noise-scale" in options else None,
                       **{key: value for key, value in ways.items() if key != "noise_scale"})  # fmt: skip
        assert point["rows"] == [[r.key, *r.text, r.rule, r.because, str(r.confidence), r.note] for r in plan.rows]
        assert [one[0] for one in point["cautions"]] == [w.condition for w in plan.warnings]


@pytest.mark.parametrize(
    "name", [name if name.endswith("t.yaml") else pytest.param(name, marks=pytest.mark.slow) for name in FOREIGN]
)
def test_a_file_of_another_stack_is_copied_as_patch_writes_it(name, tmp_path, capsys):
    pytest.importorskip("ruamel.yaml")
    words = [word for key, value in FOREIGN[name].items() for word in ("--set", f"{key}={value}")]
    data = data_of(plan_page(formats.load(FILES / name, **FOREIGN[name]), source=str(FILES / name), words=words))
    seen = list(points(data))
    assert len(seen) >= 6
    for size, _, point, _ in seen[:: len(seen) // 3]:
        command = shlex.split(point["copies"][2][1])
        assert (command[-1], f"{size}" in command) == ("--patch", True)
        assert cli.run([*command[1:], str(tmp_path / "out"), "--overwrite"]) == 0
        assert "\n".join(point["copies"][0][1:]) == (tmp_path / "out").read_text()
        assert tomllib.loads("\n".join(point["copies"][1][1:]))["batch"]["size"] == size


@pytest.mark.slow
@pytest.mark.parametrize("name", SHELF)
def test_every_format_slides(name):
    data = data_of(plan_page(read(name), source=name))
    assert len(data["sizes"]) >= 10
    assert data["sizes"][data["start"]] == data["was"]
    texts = ["\n".join(point["copies"][0][1:]) for *_, point, _ in points(data)]
    assert len(set(texts)) == len(texts)


def test_the_yaml_says_what_the_toml_says():
    yaml = pytest.importorskip("ruamel.yaml").YAML(typ="safe", pure=True)
    made = recipe(optimizer={**ADAMW, "eps": 1e-8}, groups=[{"name": "heads", "match": ["head.*"], "lr": 1e-5}])
    for _, _, point, _ in points(data_of(plan_page(made))):
        toml, text, _ = ("\n".join(lines[1:]) for lines in point["copies"])
        assert yaml.load(text) == tomllib.loads(toml)


def test_curves_are_the_settings_of_whole_steps():
    """Against a slow sum over the reference's own steps, rho**kappa and eta times the mean."""
    made = recipe(ema={"decay": 0.99}, schedule={"length": "4 epochs", "warmup": "1 epoch", "shape": "cosine"})
    data, b = data_of(plan_page(made)), made.batch.size
    length, warm = 4 * made.data_size, made.data_size

    def eta(k):
        at = k * b
        return (at + b) / warm if at < warm else (1 + math.cos(math.pi * min(1.0, (at - warm) / (length - warm)))) / 2

    for size, _, _, point in points(data):
        if size % b:
            continue
        kappa, last = size // b, math.ceil(length / b) - 1
        lr, decay, half_life = ([data["arrays"][i] for i in curve[1:]] for curve in point["curves"])
        peak = made.at(size).recipe.optimizer.lr
        for samples, step, value in list(zip(*lr, strict=True))[::16]:
            assert samples == step * size
            mean = sum(min(1.0, eta(min(step * kappa + k, last))) for k in range(kappa)) / kappa
            assert value == pytest.approx(peak * mean, rel=1e-4, abs=1e-12)
        assert decay[2] == pytest.approx([0.99**kappa] * len(decay[0]), rel=1e-5)
        assert half_life[2] == pytest.approx([b * math.log(0.5) / math.log(0.99)] * len(decay[0]), rel=1e-5)


AVERAGES = {
    "to one": ({"decay": 0.99, "final": 1.0}, lambda j, n: 1 - 0.01 * (1 + math.cos(math.pi * j / n)) / 2),
    "power": ({"decay": 0.99, "ramp": {"by": "power", "power": 0.75}}, lambda j, n: min(0.99, 1 - (1 + j) ** -0.75)),
    "exp": ({"decay": 0.99, "ramp": {"by": "exp", "tau": "200 steps"}},
            lambda j, n: 0.99 * (1 - math.exp(-(j + 1) / 200))),
    "tensorflow": ({"decay": 0.99, "ramp": {"by": "tensorflow"}}, lambda j, n: min(0.99, (2 + j) / (11 + j))),
    "ratio": ({"decay": 0.99, "ramp": {"by": "ratio", "ratio": 0.1}},
              lambda j, n: 0.99 if j > 1000 else None if j * 0.1 > 68 else (j / (j + 1)) ** (math.log(2) / 0.1)),
    "start": ({"decay": 0.99, "start": "50 steps"}, lambda j, n: 0.99 if j >= 50 else 0.0),
    "post-hoc": ({"ramp": {"by": "post-hoc", "std": 0.1}}, lambda j, n: (j / (j + 1)) ** (6.9372 + 1)),
}  # fmt: skip


@pytest.mark.parametrize("name", AVERAGES)
def test_the_average_is_drawn_as_it_rises(name):
    """Decay j of the reference by its law as printed; at kappa times the batch the product of its kappa decays."""
    ema, law = AVERAGES[name]
    values = recipe(schedule={"length": "4 epochs"}).model_dump(exclude_none=True) | {"ema": ema}
    made = Recipe.parse(values)
    data, b = data_of(plan_page(made)), made.batch.size
    n = math.ceil(4 * made.data_size / b)
    for size, _, _, point in points(data):
        if size % b:
            continue
        decay, half_life = ([data["arrays"][i] for i in curve[1:]] for curve in point["curves"][-2:])
        for (_, step, value), life in list(zip(zip(*decay, strict=True), half_life[2], strict=True))[::7]:
            own = [law(j, n) for j in range(step * size // b, (step + 1) * size // b)]
            if step * size // b + len(own) > n or None in own:
                continue
            assert value == pytest.approx(math.prod(own), rel=2e-4, abs=1e-9)
            if 0 < value < 1 - 1e-4:
                assert life == pytest.approx(size * math.log(0.5) / math.log(value), rel=2e-2)


@pytest.mark.parametrize(("change", "words"), [
    ({"schedule": None}, "no [schedule]"),
    ({"batch": {"size": 8, "schedule": [["0 samples", 8], ["800 samples", 16]]}}, "batch moves over the run"),
])  # fmt: skip
def test_what_has_no_curves_says_why(change, words):
    values = recipe().model_dump(exclude_none=True) | change
    data = data_of(plan_page(Recipe.parse({key: value for key, value in values.items() if value is not None})))
    assert words in data["unread"]
    assert all(not point["curves"] for *_, point in points(data))


def test_nothing_comes_from_outside_and_no_text_becomes_code():
    page = plan_page(recipe(task="</script><script>alert(1)</script>", optimizer=ADAMW), source="<b>&.toml")
    assert set(re.findall(r"https?://[^\s\"'<]*", page)) <= {"http://www.w3.org/2000/svg"}
    assert not re.search(r"<(link|img|iframe|object)\b|@import|url\(", page)
    assert page.count("<script") == page.count("</script>") == 2
    assert "<b>&.toml" not in page.split('<script type="application/json"')[0]


@pytest.fixture
def path(tmp_path):
    (tmp_path / "r.toml").write_text(TEXT)
    return tmp_path / "r.toml"


def test_the_command_writes_the_page_alone_unless_a_batch_is_asked_for(path, capsys):
    page = path.with_suffix(".html")
    assert cli.run(["plan", str(path), "--html", str(page)]) == 0
    told = capsys.readouterr()
    assert told.out == ""
    assert f"written {page}" in told.err
    before = page.read_text()
    assert cli.run(["plan", str(path), "--html", str(page)]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert page.read_text() == before
    assert cli.run(["plan", str(path), "--batch-size", "64", "--html", str(page), "--overwrite", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["recipe"]["batch"]["size"] == 64
    data = data_of(page.read_text())
    assert data["sizes"][data["start"]] == 64


def test_a_published_recipe_slides_from_the_batch_of_its_authors(tmp_path, capsys):
    page = tmp_path / "p.html"
    assert cli.run(["plan", "--like", "llama31-8b", "--batch-size", "512", "--html", str(page), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    data = data_of(page.read_text())
    assert (data["name"], data["was"], data["sizes"][data["start"]]) == ("llama31-8b@128", 128, 512)
    for size, _, _, point in points(data):
        [line] = [copy[1] for copy in point["copies"] if data["texts"][copy[0]] == "command line"]
        words = data["texts"][line].split()
        assert words[:4] == ["isobatch", "plan", "--like", "llama31-8b@128"]
        if size == 512:
            assert cli.run([*words[1:-1], str(tmp_path / "new.toml")]) == 0
            assert Recipe.load(tmp_path / "new.toml").optimizer.lr == told["recipe"]["optimizer"]["lr"]


def test_a_picture_beside_a_page_is_made_as_well(tmp_path):
    words = ["plan", str(FILES / "hf" / "qwen_full_sft.yaml"), "--set", "data_size=1000", "--devices", "8"]
    assert cli.run([*words, "--html", str(tmp_path / "p.html"), "--plot", str(tmp_path / "s.png")]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"p.html", "s.png"}


@pytest.mark.parametrize(("words", "message"), [
    (["--html", "page.html", "--check", "--reference", "r.toml"], "writes no page; leave --html out"),
    (["--html", "page.html", "--length", "2x"], "--length moves no slider; plan the length with --write"),
    (["--html", "page.png"], "ends with .html"),
    (["--html", "no/such/page.html"], "cannot write"),
    (["--html", "page.html", "--batch-size", "0"], "batch size=0"),
    (["--html", "page.html", "--noise-scale", "-1"], "noise scale=-1"),
    (["--html", "page.html", "--optimizer", "invariant"], "has no invariant form"),
])  # fmt: skip
def test_a_page_that_cannot_be_made_is_refused_in_a_line(words, message, path, monkeypatch, capsys):
    monkeypatch.chdir(path.parent)
    assert cli.run(["plan", str(path), *words]) == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    assert message in line
    assert not (path.parent / "page.html").exists()
