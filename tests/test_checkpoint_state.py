import math
from collections import OrderedDict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from isobatch.checkpoint import Checkpoints
from isobatch.checkpoint.tensors import DTYPES, Arena, chunks, describe, header, read
from isobatch.checkpoint.tree import check_finite, join, split
from isobatch.errors import InputError, NonFiniteError


def bits(tensor):
    return tensor.contiguous().reshape(-1).view(torch.uint8).tolist()


def same(a, b):
    """Equal types, keys in order, and tensors bit for bit."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and (a.dtype, a.shape, bits(a)) == (b.dtype, b.shape, bits(b))
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return type(a) is type(b) and repr(a) == repr(b)  # -0.0 is not 0.0


def through_disk(state, path, **options):
    with Checkpoints(path, **options) as store:
        store.save(state, seen=0)
        store.wait()
        return store.load().state


SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
KINDS = sorted(DTYPES.values(), key=str)
TENSORS = st.builds(lambda size, dtype: torch.arange(size).to(dtype), st.integers(0, 4), st.sampled_from(KINDS))
KEYS = st.text() | st.integers() | st.sampled_from(["$tensor", "$dict", "0", "a/b", "__metadata__"])
HONOURED = {
    "complex64": (torch.tensor([1 + 2j, -0.0j]), None),
    "complex128": (torch.randn(2, 3, dtype=torch.complex128), None),
    "a conjugate": (torch.tensor([1 + 2j, 3j]).conj(), None),
    "a negative view": (torch.tensor([1 + 2j]).conj().imag, torch.tensor([-2.0])),
    "a complex parameter": (torch.nn.Parameter(torch.tensor([1 + 2j])), torch.tensor([1 + 2j])),
    "an empty complex one": (torch.zeros(0, 2, dtype=torch.complex64), None),
    "a complex number": (torch.tensor(1j), None),
    "float8": (torch.ones(3).to(torch.float8_e4m3fn), None),
    "bfloat16 without a dimension": (torch.tensor(1.5, dtype=torch.bfloat16), None),
    "a transposed one": (torch.arange(6.0).view(2, 3).T, None),
    "numpy's int": (np.int64(8), 8),
    "numpy's unsigned": (np.uint8(200), 200),
    "numpy's float": (np.float32(0.5), 0.5),
    "numpy's bool": (np.bool_(True), True),
    "numpy's string": (np.str_("a"), "a"),
    "numpy's keys": ({np.int64(1): 2}, {1: 2}),
    "a pair of them": ((np.int64(1), [np.float64(2.0)]), (1, [2.0])),
}


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("name", HONOURED)
def test_what_people_keep_comes_back(name, asynchronous, tmp_path):
    value, wanted = HONOURED[name]
    found = through_disk({"x": value}, tmp_path, asynchronous=asynchronous)["x"]
    wanted = value if wanted is None else wanted
    if isinstance(wanted, torch.Tensor):
        assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape)
        assert bits(whole(found)) == bits(whole(wanted))
    else:
        assert same(found, wanted)


def whole(tensor):
    plain = tensor.detach().resolve_conj().resolve_neg()
    return torch.view_as_real(plain) if plain.is_complex() else plain


def test_complex_tensors_that_are_one_stay_one_and_are_checked(tmp_path):
    one = torch.tensor([1 + 2j, 3j])
    back = through_disk({"a": one, "b": one, "c": torch.view_as_real(one)}, tmp_path)
    assert back["a"] is back["b"]
    back["c"][0, 0] = 7
    assert back["a"][0] == 7 + 2j
    with pytest.raises(NonFiniteError, match="'a'"):
        through_disk({"a": torch.tensor([complex(0, math.inf)])}, tmp_path)


def test_a_save_and_a_load_in_inference_mode_poison_nothing(tmp_path):
    with torch.inference_mode(), Checkpoints(tmp_path, asynchronous=True) as store:
        store.save({"w": torch.ones(3)}, seen=1)
        back = store.load().state["w"]
    back.add_(1)
    with Checkpoints(tmp_path, asynchronous=True) as store:
        with torch.inference_mode():
            store.save({"w": back}, seen=2)
        store.save({"w": back + 1}, seen=3)
        assert store.load().state["w"].tolist() == [3.0] * 3


STATES = st.dictionaries(
    KEYS,
    st.recursive(
        SCALARS | TENSORS,
        lambda inner: st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(KEYS, inner, max_size=3),
        max_leaves=8,
    ),
    max_size=4,
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(state=STATES)
def test_any_state_comes_back_as_it_was(state):
    tree, tensors = split(state)
    entries = describe(tensors)
    data = header(entries) + b"".join(chunks(Arena().copy(tensors), entries))
    assert len(data) == len(header(entries)) + sum(tensor.nbytes for tensor in tensors.values())
    assert same(join(tree, tensors), state)


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("dtype", KINDS)
def test_every_dtype_bit_for_bit(tmp_path, dtype, asynchronous):  # fault 28: the dtype
    raw = torch.randint(0, 256, (8 * dtype.itemsize,), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    raw = raw % 2 if dtype is torch.bool else raw
    state = {"any": raw.view(dtype).view(2, 4, -1), "scalar": raw[: dtype.itemsize].view(dtype)[0]}
    state["cut"] = state["any"][:, 1:3]
    state["turned"] = state["any"].transpose(0, 2)
    assert same(through_disk(state, tmp_path, allow_nonfinite=["*"], asynchronous=asynchronous), state)


def test_our_files_equal_those_of_the_library(tmp_path):
    tensors = {"b": torch.ones(3), "a": torch.zeros(2, 2), "c": torch.ones(3, dtype=torch.int8), "e": torch.empty(0)}
    entries = describe(tensors)
    (tmp_path / "ours").write_bytes(header(entries) + b"".join(chunks(tensors, entries)))
    save_file(tensors, tmp_path / "theirs", metadata={"format": "pt"})
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    assert same(read(tmp_path / "theirs", entries), dict(sorted(tensors.items())))


def test_tied_tensors_are_kept_once_and_tied_again(tmp_path):
    weight = torch.randn(3, 3)
    state = {"a": weight, "b": [weight, weight.view(3, 3)], "other": weight.T, "part": weight[0]}
    tensors = split(state)[1]
    assert list(tensors) == ["a", "other", "part"]
    back = through_disk(state, tmp_path)
    assert same(back, state)
    assert back["a"] is back["b"][0] is back["b"][1]
    assert back["a"].data_ptr() != back["part"].data_ptr()


def test_a_model_and_its_optimizer_come_back(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    back = through_disk(state, tmp_path)
    assert same(back["model"], OrderedDict(state["model"]))
    assert same(back["optimizer"], state["optimizer"])
    optimizer.load_state_dict(back["optimizer"])


def test_raw_and_averaged_weights_are_two_names(tmp_path):  # fault 27: the names
    raw, average = torch.randn(4), torch.randn(4)
    back = through_disk({"model": {"w": raw}, "average": {"w": average, "updates": 7}}, tmp_path)
    assert same(back, {"model": {"w": raw}, "average": {"w": average, "updates": 7}})


def cyclic():
    state = {}
    state["self"] = state
    return state


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"a": {"b": object()}}, "'a/b' is a object; a checkpoint holds"),
        ({"a": [torch.float32]}, "'a/0' is a dtype"),
        ({"a": torch.Size([1])}, "'a' is a Size"),
        ({"a": {(1, 2): 3}}, r"'a' has the key \(1, 2\)"),
        ({"a": {True: 3}}, "has the key True"),
        ({"a": {3.0}}, "'a' is a set"),
        ({"a": torch.ones(2).to(torch.float8_e4m3fnuz)}, "'a' has dtype torch.float8_e4m3fnuz; a checkpoint holds"),
        ({"a": torch.nn.UninitializedParameter()}, "'a' is a UninitializedParameter"),
        ({"a": torch.nn.utils.rnn.pack_sequence([torch.ones(2)])}, "'a' is a PackedSequence"),
        ({"a": 1 + 2j}, "'a' is a complex"),
        ({"a": np.ones(2)}, "'a' is a ndarray"),
        ({"a": np.datetime64("2020-01-01")}, "'a' is a date"),
        ({np.float64(1.5): 1}, "has the key 1.5"),
        ({"a": torch.ones(2, device="meta")}, "'a' is a Tensor .*meta"),
        ({"a": torch.eye(2).to_sparse()}, r"sparse_coo.*to_dense\(\)"),
        (cyclic(), "nested too deeply"),
    ],
)
def test_what_cannot_be_kept_is_refused_by_path(tmp_path, state, message):
    with Checkpoints(tmp_path) as store, pytest.raises(InputError, match=message):
        store.save(state, seen=0)
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


@pytest.mark.parametrize("dtype", [torch.float8_e5m2, torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_non_finite_values_are_found_in_any_type(dtype, value):
    tensor = torch.zeros(5, 7).to(dtype)
    tensor[4, 6] = value
    with pytest.raises(NonFiniteError):
        check_finite({"x": tensor}, ())
    check_finite({"x": tensor, "y": torch.empty(0)}, ["x"])
    check_finite({"y": torch.full((3,), torch.finfo(dtype).max, dtype=torch.float64).to(dtype)}, ())


def test_an_arena_is_used_again():
    arena, first, second = Arena(), {"a": torch.ones(5), "b": torch.ones(3).int()}, {"a": torch.zeros(2).double()}
    before = arena.copy(first)
    place = before["a"].data_ptr()
    assert same(before, {"a": first["a"], "b": first["b"]})
    after = arena.copy(second)
    assert after["a"].data_ptr() == place
    assert same(after, second)
    assert same(arena.copy({"a": torch.ones(100)}), {"a": torch.ones(100)})


@pytest.mark.filterwarnings("ignore")  # torch calls all of these kinds unfinished
@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.quint8),
        lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
        lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged),
        lambda: torch.eye(2).to_sparse_csr(),
        lambda: torch.eye(2).to_sparse_bsr((1, 1)),
        lambda: torch.eye(2).to_mkldnn(),
    ],
)
def test_tensors_that_are_not_dense_are_refused_in_words(make):
    with pytest.raises(InputError, match=r"'a' is a .*give a dense tensor"):
        split({"a": make()})
