"""What is refused: exit code 2, a sentence with a way out, nothing written, nothing run."""

import pytest
from tests.formats.shelf import FILES

from isobatch import cli
from isobatch.errors import InputError
from isobatch.formats import Unanswered, load

HF = "per_device_train_batch_size: 8\nlearning_rate: 1.0e-4\nmax_steps: 1000\n"
NANO = "batch_size = 12\nblock_size = 1024\nmax_iters = 600\nlr_decay_iters = 600\ngradient_accumulation_steps = 8\n"
BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n" for old, new in ("ab", "bc", "cd", "de")
)


@pytest.mark.parametrize(("name", "text", "said"), [
    ("a.yaml", HF + "x: !!python/object/apply:os.system ['touch RUN']\n", "line 4: a YAML tag is not read"),
    ("b.yaml", HF + "y: !mine 3\n", "a YAML tag is not read"),
    ("c.yaml", HF + "a: &x [1, *x]\n", "line 4: an anchor holds its own alias"),
    ("ca.yaml", HF + "a: &x {b: {c: *x}}\n", "line 4: an anchor holds its own alias"),
    ("cb.yaml", HF + "a: &x 1\nb: &x 2\nc: *x\n", "line 5: the anchor 'x' stands twice"),
    ("cc.yaml", HF + "a: *x\nb: &x 2\n", "undefined alias"),
    ("cd.yaml", HF + "a: &x b\n*x : 2\n", "a key must be a plain word"),
    ("d.yaml", HF + BOMB, "its aliases stand for over 100,000 values"),
    ("e.yaml", HF + "<<: 3\n", "line 4: << takes a table or a list of them"),
    ("ea.yaml", HF + "a: &x 3\n<<: [{b: 1}, *x]\n", "line 5: << takes a table or a list of them"),
    ("eb.yaml", HF + "<<: {a: 1}\n<<: {b: 1}\n", "line 5: << takes a table or a list of them"),
    ("ec.yaml", HF + "? [a, b]\n: 3\n", "a key must be a plain word"),
    ("f.yaml", HF + HF, "stands twice"),
    ("g.yaml", HF + "---\na: 1\n", "another document"),
    ("h.yaml", "[" * 300 + "]" * 300, "nested deeper than 60 levels"),
    ("i.yaml", "- 1\n- 2\n", "holds no keys at its top level"),
    ("j.yaml", HF + "a: [1,\n", "is not YAML"),
    ("k.yaml", "name: x\ncolour: blue\n", "looks like none of the known formats; say which with --format"),
    ("l.yaml", HF.replace("1.0e-4", "fast"), "learning_rate='fast' must be a number"),
    ("m.yaml", HF.replace("8", "8.5"), "per_device_train_batch_size=8.5 must be a whole number"),
    ("n.yaml", HF.replace("8", "-8"), "must be a whole number of at least 1"),
    ("o.json", '{"per_device_train_batch_size": 8,', "is not JSON: line 1"),
    ("p.json", '{"learning_rate": 1, "learning_rate": 2, "per_device_train_batch_size": 8}', "stands twice"),
    ("q.json", "[" * 5000, "nested deeper than"),
    ("r.json", '{"per_device_train_batch_size": 8, "learning_rate": NaN}', "not a finite number"),
    ("s.toml", "[a\n", "is not TOML"),
    ("t.py", "def (:\n", "is not Python: line 1"),
    ("u.py", NANO + "max_iters += 5\n", "max_iters: the file computes it"),
    ("v.sh", "echo hello\n", "holds no training command"),
    ("w.sh", 'python train.py --lr "1\n', "a quote is never closed"),
    ("wa.sh", "python t.py --per_device_train_batch_size 4 \\\n # --max_steps 9 \\\n --learning_rate 1e-4\n",
     "line 2: a comment inside a command ends it there"),
    ("x.yaml", HF + "adam_beta2: 1.5\n", "optimizer.betas"),
    ("y.yaml", HF.replace("1000", "10") + "warmup_steps: 400\n", "the warm-up (400 steps) is longer than the run"),
    ("z.yaml", "__include__: ['../../../etc/passwd']\nepoches: 3\n", "leaves the folder"),
    ("za.yaml", "__include__: ['gone.yml']\nepoches: 3\n", "is missing"),
    ("zb.yaml", "__include__: ['zb.yaml']\nepoches: 3\n", "includes itself"),
    ("zc.yaml", "epoches: 3\n__include__: [3]\n", "which is no file name"),
])  # fmt: skip
def test_bad_files(name, text, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / name
    file.write_text(text)
    before = sorted(tmp_path.iterdir())
    named = ["--format", "hf"] if name[0] in "lmnxy" else []
    code = cli.run(["plan", name, "--devices", "1", "--batch-size", "16", "--patch", *named])
    error = capsys.readouterr().err
    assert code == 2
    assert said in error, error
    assert sorted(tmp_path.iterdir()) == before
    assert file.read_text() == text


def test_a_file_of_fifty_megabytes_is_not_read(tmp_path):
    file = tmp_path / "large.yaml"
    with file.open("wb") as out:
        out.truncate(50_000_000)
    with pytest.raises(InputError, match="50,000,000 bytes; a recipe has at most"):
        load(file)


def test_bytes_a_folder_and_nothing(tmp_path):
    (tmp_path / "a.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not a text file"):
        load(tmp_path / "a.yaml")
    with pytest.raises(InputError, match="is not a file"):
        load(tmp_path)
    with pytest.raises(InputError, match="cannot read the recipe"):
        load(tmp_path / "gone.yaml")


def test_a_link_does_not_lead_an_include_out_of_the_folder(tmp_path):
    inside, outside = tmp_path / "configs", tmp_path / "elsewhere.yml"
    inside.mkdir()
    outside.write_text("epoches: 3\n")
    (inside / "link.yml").symlink_to(outside)
    (inside / "a.yml").write_text("__include__: ['link.yml']\n")
    with pytest.raises(InputError, match="leaves the folder"):
        load(inside / "a.yml")


def test_a_python_config_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.py").write_text(
        NANO + "warmup_iters = 0\nopen('RUN', 'w').write('x')\n__import__('os').system('touch RUN')\n"
    )
    made = load("evil.py").at(12 * 1024 * 16)
    made.patch()
    assert not (tmp_path / "RUN").exists()


def test_all_questions_come_at_once():
    with pytest.raises(Unanswered) as error:
        load(FILES / "hf/axolotl.yml")
    assert [question.name for question in error.value.questions] == ["devices", "data_size"]
    assert "2 things" in str(error.value)
    assert "--set data_size=" in str(error.value)


@pytest.mark.parametrize(("key", "value"), [("learning_rate", "auto"), ("gradient_accumulation_steps", "auto")])
def test_auto_is_a_question(key, value, tmp_path):
    (tmp_path / "a.yaml").write_text(HF.replace("learning_rate: 1.0e-4\n", "") + f"{key}: {value}\n")
    with pytest.raises(Unanswered, match='says "auto"'):
        load(tmp_path / "a.yaml", devices=1, format="hf")


def test_a_batch_that_does_not_fit(tmp_path):
    (tmp_path / "a.yaml").write_text(HF)
    found = load(tmp_path / "a.yaml", devices=4)
    with pytest.raises(InputError, match="does not lie evenly on 4 devices; nearest: 32 or 36"):
        found.at(33)
    with pytest.raises(InputError, match="keeps 32; drop --batch-size"):
        found.at(16, keep_batch=True)


def test_an_answer_to_no_question(tmp_path):
    (tmp_path / "a.yaml").write_text(HF)
    with pytest.raises(InputError, match="--set colour answers nothing"):
        load(tmp_path / "a.yaml", devices=1, set={"colour": 3})


def test_without_the_extra_the_line_that_installs_it_is_said(monkeypatch):
    from isobatch import installed

    monkeypatch.setattr(installed, "_found", lambda module: module not in ("ruamel.yaml", "tomlkit"))
    with pytest.raises(InputError, match=r'pip install "isobatch\[formats\]"'):
        load(FILES / "hf/axolotl.yml")
    assert load(FILES / "nanogpt/train_gpt2.py").at(491520 * 2).text()  # Python, JSON and commands need nothing
    assert load(FILES / "hf/arguments.json", devices=1)


def test_what_is_missing_is_asked_even_where_other_numbers_rest_on_it(tmp_path):
    text = (FILES / "mmengine/faster_rcnn_8xb2.py").read_text()
    (tmp_path / "a_8xb2.py").write_text("\n".join(text.splitlines()[1:]))  # without train_cfg
    with pytest.raises(Unanswered, match="the length of the run"):
        load(tmp_path / "a_8xb2.py", data_size=100)


def test_a_file_that_exists_is_overwritten_only_when_asked(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.yaml").write_text(HF)
    for out in ("b.yaml", "b.html"):
        (tmp_path / out).write_text("precious")
        option = "--patch" if out.endswith("yaml") else "--plot"
        words = ["plan", "a.yaml", "--devices", "1", "--batch-size", "16", option, out]
        assert cli.run(words) == 2
        assert f"{out} exists; give another name, or overwrite it (--overwrite)" in capsys.readouterr().err
        assert (tmp_path / out).read_text() == "precious"
        assert cli.run([*words, "--overwrite"]) == 0
        assert (tmp_path / out).read_text() != "precious"
    assert cli.run(["plan", "a.yaml", "--devices", "1", "--batch-size", "16", "--patch", "none/b.yaml"]) == 2
    assert capsys.readouterr().err.count("cannot write") == 1
    assert cli.run(["plan", "a.yaml", "--devices", "1", "--batch-size", "16", "--patch", "./a.yaml"]) == 0
