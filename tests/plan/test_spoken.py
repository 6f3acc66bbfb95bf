"""What recipes say beyond one number each: curves, groups, ramps, spans, tokens, sums; and what they must not say."""

import pytest
from tests.recipes import recipe, values

from isobatch import InputError, Recipe

RISE = {"span": "80 samples", "by": "linear", "start": 0.0, "to": 1.0}
FALL = {"by": "cosine", "to": 0.1}
OPEN = {"warmup": None, "shape": None}

REFUSED = [
    ({"curves": {"lr": [RISE]}}, r'curves\.lr covers 80 of the 10,000 samples .*"80 samples".*by = "hold"'),
    ({"curves": {"lr": []}}, r"curves\.lr=\[\] has no segment"),
    ({"curves": {"lr": [{**RISE, "to": -0.1}, FALL]}}, r"curves\.lr\.0\.to=-0\.1.*greater than or equal to 0"),
    ({"curves": {"lr": [{**RISE, "start": -1.0}, FALL]}}, r"curves\.lr\.0\.start=-1\.0.*greater than or equal to 0"),
    ({"curves": {"lr": [{"by": "linear", "to": 1.0}]}}, r"curves\.lr\.0 goes from 1 to 1 .*start = 0\.0"),
    ({"curves": {"lr": [{"by": "linear", "to": 0.5}, FALL]}}, r"curves\.lr\.0\.span is missing"),
    ({"curves": {"lr": [{"by": "sine", "to": 0.5}]}}, r"by='sine' of a segment must be one of 'linear', .*'inverse'"),
    ({"curves": {"lr": [{"by": "cosine"}]}}, r'by = "cosine" needs to'),
    ({"curves": {"lr": [{"by": "hold", "to": 0.5}]}}, r'to=0\.5 has no meaning in a segment by = "hold"'),
    ({"curves": {"lr": [{"by": "exp", "to": 0.0}]}}, r"curves\.lr\.0 goes from 1 to 0 by exp.*both positive"),
    ({"curves": {"lr": [{"by": "step"}]}}, r'by = "step" takes to = 0\.1'),
    ({"curves": {"lr": [{"by": "step", "every": "0 steps", "gamma": 0.9}]}},
     r'lr\.0\.every="0 steps" must be positive'),
    ({"curves": {"lr": [{"by": "inverse"}]}}, r'by = "inverse" begins the curve, so it needs scale'),
    ({"curves": {"lr": [{"bye": "hold"}]}}, r"unknown key curves\.lr\.0\.bye; did you mean 'by'\?"),
    ({"curves": {"wd": [{"by": "hold"}]}}, r"unknown key curves\.wd; did you mean curves\.weight_decay\?"),
    ({"curves": {"weight_decay": [FALL]}}, r"curves\.weight_decay moves optimizer\.weight_decay, which is 0"),
    ({"curves": {"momentum": [FALL]}}, r"curves\.momentum moves optimizer\.momentum, which is 0"),
    ({"curves": {"ema": [{"by": "cosine", "to": 200.0}]}}, r"curves\.ema reaches 200 times 1 - 0\.99.*at most 100"),
    ({"curves": {"ema": [FALL]}, "ema": {"final": 1.0}}, r"curves\.ema and ema\.final both move"),
    ({"curves": {"lr": [FALL]}, "schedule": {"shape": "linear"}}, r"curves\.lr and schedule\.shape.* both move"),
    ({"ema": {"final": 1.0, "ramp": {"by": "tensorflow"}}}, r'ema\.final=1 and ema\.ramp by = "tensorflow" both move'),
    ({"ema": {"ramp": {"by": "exp"}}}, r"ema\.ramp\.tau is missing"),
    ({"ema": {"ramp": {"by": "exp", "tau": "5 steps", "power": 1.0}}}, r"ema\.ramp\.power=1\.0 has no meaning"),
    ({"ema": {"ramp": {"by": "post-hoc", "std": 0.1}}}, r"drop ema\.decay and ema\.half_life"),
    ({"ema": {"decay": None, "ramp": {"by": "post-hoc", "std": 0.3}}}, r"ema\.ramp\.std=0\.3 must be in \(0, 0\.288"),
    ({"groups": [{"name": "a", "lr_scale": 0.1}]}, r"groups\.a has neither match nor dims"),
    ({"groups": [{"name": "a", "match": "x"}]}, r"groups\.a changes nothing"),
    ({"groups": [{"name": "a", "match": "(", "lr_scale": 0.1}]}, r"match='\(' is no regular expression"),
    ({"groups": [{"name": "a", "match": "x", "lr": 0.1, "lr_scale": 0.1}]}, r"groups\.a has both lr=0\.1 and lr_scale"),
    ({"groups": [{"name": "a", "match": "x", "optimizer": "muon"}]}, r"groups\.a\.lr is missing"),
    ({"groups": [{"name": "a", "match": "x", "optimizer": "moun", "lr": 0.1}]}, r"did you mean 'muon'\?"),
    ({"groups": [{"name": "a", "match": "x", "betas": [0.9, 0.99]}]}, r"groups\.a\.betas=.* has no meaning for sgd"),
    ({"groups": [{"name": "a", "match": "x", "layer_decay": 0.9}]}, r"layer_decay and layers together"),
    ({"groups": [{"name": "a", "match": "x", "layer_decay": 0.9, "layers": 3}]}, r"captures the layer's number"),
    ({"groups": [{"name": "a", "match": "x", "lr_scale": 0.1}, {"name": "a", "match": "y", "lr_scale": 0.1}]},
     r"two groups are called 'a'"),
    ({"groups": [{"name": "a", "match": "head", "lr_scale": 0.1},
                 {"name": "b", "match": "head.bias", "lr_scale": 2.0}]},
     r"groups\.a and groups\.b both take 'head\.bias'.*narrow one"),
    ({"groups": [{"name": "a", "match": "^enc\\..*weight$", "lr_scale": 0.1},
                 {"name": "b", "match": ["dec", "enc"], "lr_scale": 2.0}]}, r"groups\.a and groups\.b both take"),
    ({"groups": [{"name": "a", "dims": "matrices", "lr_scale": 0.1},
                 {"name": "b", "dims": "matrices", "optimizer": "muon", "lr": 0.02}]}, r"under two optimizers"),
    ({"groups": [{"name": "a", "lrr": 0.1}]}, r"unknown key groups\.0\.lrr; did you mean 'lr'\?"),
    ({"schedule": {"length": "1000 tokens"}}, r"schedule\.length=\"1000 tokens\" is in tokens.*batch\.sequence"),
    ({"batch": {"schedule_lr": "keep"}}, r'batch\.schedule_lr = "keep" needs batch\.schedule'),
    ({"batch": {"reduction": "summed"}}, r"batch\.reduction='summed'.*'mean', 'sum' or 'times batch'"),
    ({"optimizer": {"clip_by": "value"}}, r'optimizer\.clip_by = "value" needs optimizer\.clip'),
    ({"optimizer": {"eps_inside": True}}, r"optimizer\.eps_inside has no meaning for sgd"),
    ({"spans": {"freeze": "soon"}}, r"spans\.freeze='soon' is not a quantity"),
]  # fmt: skip


@pytest.mark.parametrize(("parts", "message"), REFUSED, ids=[str(parts) for parts, _ in REFUSED])
def test_what_cannot_be_meant_is_refused(parts, message):
    parts = {**parts, "schedule": {**OPEN, **parts.get("schedule", {})}}
    with pytest.raises(InputError, match=message):
        Recipe.parse(values(**parts))


def test_groups_that_may_meet_in_a_model_are_left_to_the_model():
    Recipe.parse(values(groups=[
        {"name": "trunk", "match": "backbone", "dims": "matrices", "lr_scale": 0.1},
        {"name": "norms", "match": "norm", "dims": "vectors", "weight_decay": 0.0},
    ]))  # fmt: skip


def test_tokens_and_samples_are_one_clock_once_the_sequence_is_known():
    one = recipe(batch={"size": 4096, "unit": "tokens", "sequence": 512}, data_size=None,
                 schedule={"length": "1000 samples", "warmup": "10 steps"})  # fmt: skip
    assert one.staircase().length == 512_000
    assert one.staircase().warmup == 40_960
    other = recipe(batch={"size": 8, "sequence": 512}, data_size=None,
                   schedule={"length": "512_000 tokens", "warmup": "10 steps"})  # fmt: skip
    assert other.staircase().length == 1000


def test_a_token_recipe_needs_no_sample_of_a_default():
    assert recipe(batch={"unit": "tokens"}, schedule={"length": "8000 tokens", "warmup": None}).at(16).kappa == 2
