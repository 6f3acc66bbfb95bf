"""Every bad input is refused as an InputError that holds the key, the value and the way out."""

import math

import pytest
from tests.recipes import TEXT, recipe, values

from isobatch import InputError, Recipe

FILES = [
    ("size = 8", "size = 0", r"batch\.size=0.*greater than or equal to 1"),
    ("size = 8", "size = -8", r"batch\.size=-8.*greater than or equal to 1"),
    ("size = 8", "size = 8.5", r"batch\.size=8\.5.*integer"),
    ("size = 8", "size = true", r"batch\.size=True.*integer"),
    ("size = 8", 'size = "8"', r"batch\.size='8'.*integer"),
    ("size = 8", "sice = 8", r"unknown key batch\.sice; did you mean 'size'\?"),
    ("size = 8", "size = 8\nmicro = 3", r"batch\.size=8 is not a multiple of micro x devices = 3; nearest: 6 or 9"),
    ("size = 8", "size = 8\ndevices = 0", r"batch\.devices=0.*greater than or equal to 1"),
    ('"sgd"', '"sdg"', r"optimizer\.name='sdg' is not known; did you mean 'sgd'\? known: sgd, adam, adamw"),
    ("lr = 0.02", "lrr = 0.02", r"unknown key optimizer\.lrr; did you mean 'lr'\? known here: name, lr"),
    ("lr = 0.02", "", r"optimizer\.lr is missing; add it"),
    ("lr = 0.02", "lr = nan", r"optimizer\.lr=nan.*finite"),
    ("lr = 0.02", "lr = inf", r"optimizer\.lr=inf.*finite"),
    ("lr = 0.02", "lr = 0", r"optimizer\.lr=0.*greater than 0"),
    ("lr = 0.02", "lr = true", r"optimizer\.lr=True.*valid number"),
    ("lr = 0.02", 'lr = "0.02"', r"optimizer\.lr='0\.02'.*valid number"),
    ("lr = 0.02", "lr = 0.02\nmomentum = 1.0", r"optimizer\.momentum=1\.0.*less than 1"),
    ("lr = 0.02", "lr = 0.02\nnesterov = true", r"optimizer\.nesterov needs momentum > 0"),
    ("lr = 0.02", "lr = 0.02\nbetas = [0.9, 1.0]", r"optimizer\.betas=\[0\.9, 1\.0\] must each be in \[0, 1\)"),
    ("lr = 0.02", "lr = 0.02\nbetas = [0.9]", r"optimizer\.betas\.1 is missing"),
    ("lr = 0.02", "lr = 0.02\nclip = 0", r"optimizer\.clip=0.*greater than 0"),
    ("lr = 0.02", "lr = 0.02\nreference_batch = 8", r"optimizer\.reference_batch has no meaning for sgd"),
    ("data_size = 1437", "", r'schedule\.length="30 epochs" needs data_size'),
    ("data_size = 1437", "data_size = 0", r"data_size=0.*greater than or equal to 1"),
    ('"30 epochs"', '"30 parsecs"', r"schedule\.length='30 parsecs' is not a quantity"),
    ('"30 epochs"', '"30 tokens"', r'schedule\.length="30 tokens" is in tokens, but the clock counts samples'),
    ('"30 epochs"', '"0 epochs"', r"schedule length=0 must be in \(0, inf\]"),
    ('"1 epoch"', '"31 epochs"', r"schedule\.warmup=44547 samples must be in \[0, 43110\].*shorten the warm-up"),
    ('"1 epoch"', '"nan epochs"', r"schedule\.warmup='nan epochs' is not a quantity"),
    ('"cosine"', '"cosin"', r"schedule\.shape='cosin'.*'constant', 'linear', 'minus-sqrt', 'cosine' or 'autowu'"),
    ("decay = 0.999", "decay = 1.5", r"ema\.decay=1\.5.*less than or equal to 1"),
    ("decay = 0.999", "decay = -0.1", r"ema\.decay=-0\.1.*greater than or equal to 0"),
    ("decay = 0.999", "decay = nan", r"ema\.decay=nan.*finite"),
    ("decay = 0.999", "decay = true", r"ema\.decay=True.*valid number"),
    ("decay = 0.999", 'half_life = "0 samples"', r'ema\.half_life="0 samples" must be positive; use decay = 0'),
    ("decay = 0.999", 'half_life = "-5 samples"', r"ema\.half_life='-5 samples' is not a quantity"),
    ("decay = 0.999", 'decay = 0.9\nhalf_life = "5 samples"', r"\[ema\] takes decay .* or half_life"),
    ("decay = 0.999", "every = 2", r"\[ema\] takes decay .* or half_life"),
    ("decay = 0.999", "decay = 0.9\nfinal = 0.8", r"ema\.final .* must not be below"),
    ("[ema]", "[emma]", r"unknown key emma; did you mean 'ema'\?"),
    ("[ema]", "[batch_norm]\nmomentum = 2\n[ema]", r"batch_norm\.momentum=2.*less than or equal to 1"),
    ("[ema]", '[rules]\nlr = "linar"\n[ema]', r"rules\.lr='linar'.*'auto', 'linear'"),
    ("[ema]", '[rules]\nlr = "noise-aware"\n[ema]', r"needs rules\.noise_share"),
    ("[ema]", "[rules]\nfloors = [0.5, 1.0]\n[ema]", r"rules\.floors=\[0\.5, 1\.0\] must each be in \[0, 1\)"),
    ('task = "digits"', "options = { width = nan }", r"options\.width=nan must be a bool, a finite number or text$"),
    ("[batch]\nsize = 8", "batch = 8", r"batch=8 must be a table; write \[batch\] with its keys below"),
    ("size = 8", "size = = 8", "is not TOML: .*line 6"),
]


@pytest.mark.parametrize(("old", "new", "message"), FILES, ids=[new.replace("\n", " ") for _, new, _ in FILES])
def test_a_bad_file_is_refused(tmp_path, old, new, message):
    assert old in TEXT
    path = tmp_path / "bad.toml"
    path.write_text(TEXT.replace(old, new))
    with pytest.raises(InputError, match=message) as caught:
        Recipe.load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_whole_file_itself_is_good(tmp_path):
    path = tmp_path / "good.toml"
    path.write_text(TEXT)
    assert Recipe.load(path).at(128).recipe.optimizer.lr == 0.32


@pytest.mark.parametrize("batch", [0, -8, 8.5, 8.0, True, "8", math.nan, None])
def test_a_bad_batch_is_refused(batch):
    with pytest.raises(InputError, match=r"batch size=.*at least 1"):
        recipe().at(batch)


@pytest.mark.parametrize("more", [{"micro": 0}, {"micro": -1}, {"micro": True}, {"devices": 0}, {"devices": 2.0}])
def test_bad_micro_and_devices_are_refused(more):
    with pytest.raises(InputError, match=next(iter(more))):
        recipe().at(16, **more)


def test_a_batch_that_does_not_divide_names_its_neighbours():
    with pytest.raises(InputError, match=r"batch\.size=30 is not a multiple of micro x devices = 8; nearest: 24 or 32"):
        recipe().at(30, micro=4, devices=2)


def test_kappa_beyond_the_linear_beta_rule_is_refused():
    made = recipe(optimizer={"name": "adamw"}, rules={"betas": "linear"})
    with pytest.raises(InputError, match=r'kappa=16 is beyond .* beta=0\.9.*kappa=10; set rules\.betas = "power"'):
        made.at(128)
    assert made.at(72).recipe.optimizer.betas[0] == pytest.approx(0.1)


@pytest.mark.parametrize("noise_scale", [-1.0, math.nan, True])
def test_a_bad_noise_scale_is_refused(noise_scale):
    with pytest.raises(InputError, match=r"noise scale=.*must be"):
        recipe(optimizer={"name": "adamw"}).at(16, noise_scale=noise_scale)


def test_only_the_invariant_form_can_be_asked_for():
    with pytest.raises(InputError, match=r"optimizer='lion' must be \"invariant\""):
        recipe(optimizer={"name": "adamw"}).at(16, optimizer="lion")
    with pytest.raises(InputError, match=r"optimizer\.name='sgd' has no invariant form"):
        recipe().at(16, optimizer="invariant")


def test_momentum_has_no_meaning_for_adam():
    with pytest.raises(InputError, match=r"optimizer\.momentum=0\.9 has no meaning for adamw; remove it"):
        Recipe.parse(values(optimizer={"name": "adamw", "momentum": 0.9}))


@pytest.mark.parametrize(("name", "message"), [("nowhere.toml", "cannot read .*No such file"), ("", "Is a directory")])
def test_an_unreadable_file_is_refused(tmp_path, name, message):
    with pytest.raises(InputError, match=message):
        Recipe.load(tmp_path / name)


def test_what_is_not_text_is_refused(tmp_path):
    path = tmp_path / "binary.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not a text file in UTF-8; save it as text"):
        Recipe.load(path)


def test_several_complaints_come_together():
    with pytest.raises(InputError, match=r"optimizer\.lr is missing.*unknown key ema\.dekay"):
        Recipe.parse(values(optimizer={"name": "sgd", "lr": 0.1}, ema={"dekay": 1}) | {"optimizer": {"name": "sgd"}})


@pytest.mark.parametrize("parts", [
    {"optimizer": {"name": "adamp", "lr": 1.0}, "schedule": {"length": "30 epochs", "warmup": None, "shape": "autowu"}},
    {"optimizer": {"name": "invariant-adamw", "lr": 1e-3}},
])  # fmt: skip
def test_legw_is_refused_where_it_has_nothing_to_move(parts):
    with pytest.raises(InputError, match="drop --rule legw"):
        recipe(**parts).at(64, rule="legw")
