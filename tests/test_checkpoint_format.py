import hashlib
import json
import pickle
import random
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import isobatch.checkpoint as ck
from isobatch.checkpoint import Checkpoints
from isobatch.errors import InputError

FILES = ["manifest.json", "rank-00000.json", "rank-00000.safetensors"]
FIXTURE = Path(__file__).parent / "fixtures" / "checkpoint-v1" / "000001-seen-96"


def state(seen):
    weight = torch.arange(12.0).view(3, 4) + seen
    return {"model": {"w": weight, "tied": weight}, "clock": {"seen": seen, "betas": (0.9, 0.999)}}


@pytest.fixture
def folder(tmp_path):
    with Checkpoints(tmp_path / "run") as store:
        store.save(state(10), seen=10, meta={"data": "A"})
        store.save(state(20), seen=20, meta={"data": "A"})
    return tmp_path / "run"


def newest(folder):
    return folder / "000002-seen-20"


def edit(path, change, name="manifest.json"):
    """Change a JSON file as its author would, hashes included."""
    content = json.loads((path / name).read_text())
    change(content)
    if name != "manifest.json":
        (path / name).write_text(json.dumps(content))
    else:
        seal(path, content)


def seal(path, content):
    content.pop("sha256", None)
    for name in content["files"]:
        if (path / name).is_file():
            data = (path / name).read_bytes()
            content["files"][name].update(sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))
    body = json.dumps(content, indent=1) + "\n"
    content["sha256"] = hashlib.sha256(body.encode()).hexdigest()
    (path / "manifest.json").write_text(json.dumps(content, indent=1) + "\n")


def reseal(path):
    edit(path, lambda content: None)


def damaged(folder, *words):
    """The newest is refused with these words; the fallback is the previous one, and says so."""
    store = Checkpoints(folder)
    with pytest.raises(InputError) as caught:
        store.latest()
    for word in (*words, "fallback=True"):
        assert word in str(caught.value)
    with pytest.raises(InputError):
        store.load()
    with pytest.warns(UserWarning, match="passed over"):
        assert store.latest(fallback=True).seen == 10
    with pytest.warns(UserWarning, match="passed over"):
        loaded = store.load(fallback=True)
    assert torch.equal(loaded.state["model"]["w"], state(10)["model"]["w"])


@pytest.mark.parametrize("name", FILES)
def test_any_flipped_bit_is_found(folder, name):  # fault 4
    path, rng = newest(folder) / name, random.Random(0)
    data = path.read_bytes()
    for bit in rng.sample(range(8 * len(data)), 60):
        broken = bytearray(data)
        broken[bit // 8] ^= 1 << bit % 8
        path.write_bytes(broken)
        with pytest.raises(InputError) as caught:
            Checkpoints(folder).latest()
        if name != "manifest.json":
            expected, actual = (hashlib.sha256(x).hexdigest() for x in (data, broken))
            assert all(word in str(caught.value) for word in (name, expected, actual))
        with pytest.raises(InputError):
            ck.load(path.parent)
    damaged(folder, str(newest(folder)))
    path.write_bytes(data)
    assert Checkpoints(folder).latest().seen == 20


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("keep", [0, 1, -1])
def test_truncated_and_empty_files_are_found(folder, name, keep):
    path = newest(folder) / name
    path.write_bytes(path.read_bytes()[:keep])
    damaged(folder, name)


@pytest.mark.parametrize("name", FILES)
def test_missing_and_extra_files_are_found(folder, name):
    (newest(folder) / name).rename(newest(folder) / "elsewhere")
    damaged(folder, name)
    shutil.copy(newest(folder) / "elsewhere", newest(folder) / name)
    damaged(folder, "elsewhere")


def test_a_folder_under_a_file_name_and_links_are_refused(folder, tmp_path):
    path = newest(folder) / FILES[2]
    shutil.copy(path, tmp_path / "outside")
    path.unlink()
    path.symlink_to(tmp_path / "outside")
    damaged(folder, "link")
    path.unlink()
    path.mkdir()
    damaged(folder, "link or folder")


def test_every_checkpoint_damaged_names_them_all(folder):
    for path in folder.glob("0*"):
        (path / FILES[2]).write_bytes(b"")
    store = Checkpoints(folder)
    with pytest.warns(UserWarning, match="passed over"), pytest.raises(InputError, match=r"every.*-20.*-10"):
        store.load(fallback=True)


class Bomb:
    def __reduce__(self):
        return Path.touch, (Path(Bomb.target),)


@pytest.mark.parametrize("name", FILES)
def test_a_pickle_under_our_names_does_not_run(folder, tmp_path, name):  # fault 5
    Bomb.target = str(tmp_path / "ran")
    (newest(folder) / name).write_bytes(pickle.dumps(Bomb()))
    if name != "manifest.json":
        reseal(newest(folder))  # the hashes are the attacker's own
        with pytest.raises(InputError, match=f"{name}: not a readable"):
            ck.load(newest(folder))
    else:
        damaged(folder, "not a readable JSON file")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("target", ["../000001-seen-10/rank-00000.json", "/etc/hostname", "rank-00001.json"])
def test_paths_out_of_the_folder_are_refused(folder, target):
    edit(newest(folder), lambda content: content["files"].update({target: {"bytes": 1, "sha256": "0" * 64}}))
    damaged(folder, "lists the files")


@pytest.mark.parametrize("name", FILES[:2])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.update(version=2), ("format version 2", "reads 1", "upgrade isobatch")),
        (lambda c: c.update(version=None), ("format version None", "reads 1")),
        (lambda c: c.update(format="other"), ("'other'", "'isobatch-checkpoint'")),
        (lambda c: c.update(extra=1), ("unknown field 'extra'", "version 1")),
        (lambda c: c.pop("seen"), ("missing field 'seen'", "version 1")),
    ],
)
def test_other_formats_are_refused(folder, name, change, words):  # fault 6
    edit(newest(folder), change, name)
    if name == "manifest.json":
        damaged(folder, name, *words)
        return
    reseal(newest(folder))
    with pytest.raises(InputError) as caught:
        ck.load(newest(folder))
    assert all(word in str(caught.value) for word in (name, *words))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (FILES[0], lambda c: c.update(world_size=0), "world_size=0 must be at least 1"),
        (FILES[0], lambda c: c["files"][FILES[2]].update(more=1), "must hold bytes and sha256"),
        (FILES[0], lambda c: c["tensors"][FILES[2]]["model/w"].update(shape=[4, 3]), r"model/w.*\[3, 4\].*\[4, 3\]"),
        (FILES[0], lambda c: c["tensors"][FILES[2]].update(x={"dtype": "F32", "shape": []}), "'x' is absent"),
        (FILES[1], lambda c: c.update(rank=3), "rank=3, the name says 0"),
        (FILES[1], lambda c: c["state"].update(x={"$tensor": "y"}), "names the tensor 'y', which is not in the file"),
        (FILES[1], lambda c: c["state"].pop("model"), r"does not name: \['model/w'\]"),
        (FILES[1], lambda c: c["state"].update(x={"$later": 1}), r"holds \['\$later'\].*upgrade isobatch"),
    ],
)  # fmt: skip
def test_contents_that_contradict_each_other_are_refused(folder, name, change, message):
    edit(newest(folder), change, name)
    if name != FILES[0]:
        reseal(newest(folder))
    with pytest.raises(InputError, match=message):
        ck.load(newest(folder))


JUNK = [None, True, -1, 1.5, "x", [], {}, [[1]], {"a": 1}, {"$tensor": []}, {"$tensor": 1}, {"$complex": "model/w"},
        {"$dict": 3}, {"$dict": [[1]]}, {"$dict": [[[], 1]]}, {"$tuple": 3}, {"$float": "z"}, {"$float": []},
        {"$shard": 1}, {"$shard": {}}, {"$shard": {"path": "a", "tensor": None, "shape": [2], "dtype": "z"}},
        {"$shard": {"path": "a", "tensor": "model/w", "shape": [2], "dtype": "float32", "offset": 1, "part": 2}},
        ]  # fmt: skip
PLACES = [(FILES[0], "meta"), (FILES[0], "seen"), (FILES[0], "versions"), (FILES[0], "files"), (FILES[0], "tensors"),
          (FILES[0], "files", FILES[2]), (FILES[0], "files", FILES[2], "bytes"), (FILES[0], "tensors", FILES[2]),
          (FILES[0], "world_size"), (FILES[1], "tensors"), (FILES[1], "file"), (FILES[1], "rank"),
          (FILES[1], "state", "model", "w"), (FILES[1], "state", "model", "tied")]  # fmt: skip


@pytest.mark.parametrize("place", PLACES, ids="/".join)
def test_right_hashes_of_what_is_no_checkpoint_end_in_no_traceback(folder, place):
    name, *keys, last = place
    path, before = newest(folder), {file: (newest(folder) / file).read_bytes() for file in FILES}
    refused = 0
    for junk in JUNK:
        content = json.loads(before[name])
        inside = content
        for key in keys:
            inside = inside[key]
        inside[last] = junk
        if name == FILES[0]:
            content.pop("sha256")
            body = json.dumps(content, indent=1) + "\n"
            content["sha256"] = hashlib.sha256(body.encode()).hexdigest()
            (path / name).write_text(json.dumps(content, indent=1) + "\n")
        else:
            (path / name).write_text(json.dumps(content))
            reseal(path)
        try:
            ck.load(path, expect={"data": "A"}, accept=["data"])
        except InputError:
            refused += 1
        for file, data in before.items():
            (path / file).write_bytes(data)
    assert refused  # what is left is a state or a word of the run like any other


@pytest.mark.parametrize("text", ['{"a": 1, "a": 2}', '{"a": NaN}', "[1]", "[" * 100_000, "\ud800", ""])
def test_strange_json_is_refused(folder, text):
    (newest(folder) / FILES[0]).write_bytes(text.encode("utf-8", "surrogatepass"))
    damaged(folder, FILES[0])


def test_meta_is_compared_field_by_field(folder):  # P5: field, both values, the option
    store = Checkpoints(folder)
    assert store.load(expect={"data": "A"}).meta == {"data": "A"}
    with pytest.raises(InputError, match=r"'data' is 'A' .*and 'B' in this run; give accept=\['data'\]"):
        store.load(expect={"data": "B"})
    with pytest.raises(InputError, match=r"'seed' is missing .* needs 3; give accept=\['seed'\]"):
        store.load(expect={"seed": 3})
    assert store.load(expect={"data": "B", "seed": 3}, accept=["data", "seed"]).seen == 20


@pytest.mark.parametrize("meta", [{"a": (1,)}, {1: 2}, {"a": float("nan")}, {"a": torch.ones(1)}])
def test_meta_that_would_come_back_changed_is_refused(tmp_path, meta):
    with Checkpoints(tmp_path) as store, pytest.raises(InputError, match="meta="):
        store.save({}, seen=0, meta=meta)


def test_an_empty_folder_has_no_latest(tmp_path):
    assert Checkpoints(tmp_path / "none").latest() is None
    assert not (tmp_path / "none").exists()
    with pytest.raises(InputError, match="holds no checkpoint; start the run without"):
        Checkpoints(tmp_path / "none").load()
    for rank, message in ((-1, "rank=-1 must be at least 0"), (1, r"rank=1 must be in \[0, 0\]")):
        with pytest.raises(InputError, match=message):
            ck.load(FIXTURE, rank=rank)
    with pytest.raises(InputError, match="cannot be read"):
        ck.load(tmp_path / "none")


def fixture_state():
    """What tests/fixtures/checkpoint-v1 holds; written once by version 1 and never again."""
    weight = (torch.arange(6, dtype=torch.float32).view(2, 3) - 2.5) / 3
    return {
        "model": {"weight": weight, "tied": weight, "half": torch.tensor([1.5, -0.0], dtype=torch.bfloat16)},
        "optimizer": {"state": {0: {"step": torch.tensor(12.0), "exp_avg": weight * 2}}, "betas": (0.9, 0.999)},
        "clock": {"seen": 96, "drawn": 104, "name": "é", "on": True, "none": None, "lr": 0.1 + 0.2},
        "rng": torch.arange(5, dtype=torch.uint8),
        "empty": [torch.empty(0, 3), {}, [], ()],
    }


def test_format_1_can_be_read_for_ever():  # fault 6: later versions keep this test
    loaded = ck.load(FIXTURE, expect={"data": "length=8/items=8/sha256=00", "batch_plan": {"size": 8, "micro": 4}})
    expected = fixture_state()
    assert (loaded.seen, loaded.world_size, loaded.meta["drawn"]) == (96, 1, 104)
    assert repr(loaded.state) == repr(expected)
    assert torch.equal(loaded.state["model"]["weight"], expected["model"]["weight"])
    assert loaded.state["model"]["tied"] is loaded.state["model"]["weight"]
    assert torch.signbit(loaded.state["model"]["half"][1])
    assert ck.verify(FIXTURE)["version"] == 1


def test_what_is_written_today_is_format_1_to_the_byte(tmp_path):
    with Checkpoints(tmp_path) as store:
        store.save(fixture_state(), seen=96, meta=ck.load(FIXTURE).meta)
    written = tmp_path / FIXTURE.name
    for name in FILES[1:]:
        assert (written / name).read_bytes() == (FIXTURE / name).read_bytes()
    assert ck.verify(written).keys() == ck.verify(FIXTURE).keys()


def test_tensor_files_are_plain_safetensors():
    tensors = load_file(FIXTURE / FILES[2])
    assert torch.equal(tensors["model/weight"], fixture_state()["model"]["weight"])
    assert "model/tied" not in tensors  # kept once
