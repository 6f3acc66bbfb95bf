"""Plans of files: units, questions, the trainer's own rule, stamps, checks, lint, objects, the command line."""

import argparse
import dataclasses
import json
import shutil

import pytest
from tests.formats.shelf import FILES, read

from isobatch import cli
from isobatch.errors import InputError
from isobatch.formats import check, lint, load, scale_config

HF = "per_device_train_batch_size: 8\nlearning_rate: 1.0e-4\nmax_steps: 1000\nwarmup_steps: 100\nadam_beta2: 0.98\n"


def rows(made):
    return {row.key: row.becomes for row in made.rows}


@pytest.mark.parametrize(("name", "size", "unit", "lr"), [
    ("hf/arguments.json", 4 * 8 * 8, "samples", 2e-5),
    ("nanogpt/train_gpt2.py", 12 * 1024 * 40, "tokens", 6e-4),
    ("megatron/wsd.sh", 256, "samples", 3e-4),
    ("timm/args.yaml", 1024, "samples", 0.001 * (1024 / 512) ** 0.5),
    ("dino/vits16.sh", 512, "samples", 0.0005 * 2),
    ("dinov2/vitl16_short.yaml", 512, "samples", 0.004 * (512 / 1024) ** 0.5),
    ("dinov3/im1k.yaml", 512, "samples", 0.001 * 4 * (512 / 1024) ** 0.5),
    ("dinov3/cosine.yaml", 256, "samples", 1e-4),
    ("mae/pretrain.sh", 4096, "samples", 1.5e-4 * 16),
    ("mocov3/vits.sh", 1024, "samples", 1.5e-4 * 4),
    ("ultralytics/train.py", 64, "samples", 0.01 * 64),
    ("mmengine/faster_rcnn_8xb2.py", 16, "samples", 0.02),
    ("diffusers/scaled.sh", 16, "samples", 5e-7 * 16),
    ("verl/grpo.sh", 256 * 5, "samples", 1e-6),
    ("hf/grpo.yaml", 16 * 8 * 4, "samples", 1e-6),
    ("torchtitan/llama3_8b.toml", 2 * 8192 * 8, "tokens", 3e-4),
    ("torchtitan/stable.toml", 256 * 2048, "tokens", 6e-4),
    ("torchtitan/config_registry.py", 4194304, "tokens", 8e-5),
    ("olmo-core/train_1b.py", 512 * 4096, "tokens", 4e-4),
    ("nanochat/speedrun.sh", 1048576, "tokens", 0.02 * 2**0.5),
    ("lerobot/pi05.sh", 8 * 32, "samples", 2.5e-5),
])  # fmt: skip
def test_scopes_of_the_batch_and_rates_before_scaling(name, size, unit, lr):
    recipe = read(name).recipe
    assert (recipe.batch.size, recipe.batch.unit) == (size, unit)
    assert recipe.optimizer.lr == pytest.approx(lr, rel=1e-12)


@pytest.mark.parametrize(("name", "decay"), [
    ("mmengine/configs/rtmdet.py", 1 - 0.0002),
    ("dfine/configs/dfine_l.yml", 0.9999),
    ("composer/tokens.yaml", 0.5 ** (1 / 100)),
    ("edm/cifar.sh", 0.5 ** (512 / 0.5e6)),
    ("dino/vanilla.sh", 0.996),
])  # fmt: skip
def test_conventions_of_the_average(name, decay):
    assert read(name).recipe.ema.decay == pytest.approx(decay, rel=1e-12)


@pytest.mark.parametrize("name", ["dinov2/vitl16_short.yaml", "dino/vits16.sh", "mae/pretrain.sh", "timm/args.yaml",
                                  "mocov3/vits.sh", "diffusers/scaled.sh", "nanochat/base_train.py"])  # fmt: skip
def test_the_trainers_own_rule_stays_on_and_nothing_is_scaled_twice(name):
    found = read(name)
    rate = next(link for link in found.ledger.links if link.path == "optimizer.lr")
    made = found.at(found.recipe.batch.size * 4)
    assert rate.name not in rows(made)
    power = 0.5 if found.ledger.own_rule.word == "sqrt" else 1
    assert made.recipe.optimizer.lr == pytest.approx(found.recipe.optimizer.lr * 4**power, rel=1e-12)
    assert "own rule stays on" in str(made)


def test_the_plans_own_rule_on_request():
    found = read("mae/pretrain.sh", **{"rules.lr": "auto"})
    assert rows(found.at(found.recipe.batch.size * 4))["blr"] == pytest.approx(1.5e-4 / 2)


def test_iteration_epochs_carry_the_batch():
    made = read("dinov2/vitl14.yaml").at(devices=2)
    assert rows(made)["train.OFFICIAL_EPOCH_LENGTH"] == 5000
    assert not {"optim.epochs", "optim.warmup_epochs"} & rows(made).keys()


def test_keeping_the_batch_changes_the_accumulation_alone(tmp_path):
    (tmp_path / "a.yaml").write_text(HF)
    found = load(tmp_path / "a.yaml", devices=8)
    assert rows(found.at(devices=2, keep_batch=True)) == {"gradient_accumulation_steps": 4}
    assert {c.link.name: c.becomes for c in found.at(devices=2).kept} == {"gradient_accumulation_steps": 4}
    with pytest.raises(InputError, match="cannot accumulate"):
        read("dinov2/vitl14.yaml").at(devices=2, keep_batch=True)


def test_a_launcher_follows_the_devices():
    assert rows(read("hf/trl_sft.sh").at(devices=4))["launcher.num_processes"] == 4


def test_a_plan_of_a_plan_is_known_by_its_stamp(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copy(FILES / "dinov2/vitl16_short.yaml", "a.yaml")
    assert cli.run(["plan", "a.yaml", "--devices", "32->4", "--patch"]) == 0
    once = (tmp_path / "a.yaml").read_text()
    capsys.readouterr()
    assert cli.run(["plan", "a.yaml", "--devices", "32->4", "--patch"]) == 2
    assert "is a plan: batch 2048 -> 256 on 4 devices" in capsys.readouterr().err
    assert cli.run(["plan", "a.yaml", "--devices", "4->4", "--patch"]) == 0
    assert (tmp_path / "a.yaml").read_text() == once
    assert cli.run(["plan", "a.yaml", "--devices", "32", "--patch"]) == 0
    assert load("a.yaml").recipe.ema.decay == pytest.approx(0.992, rel=1e-12)


def test_json_is_stamped_beside_the_file(tmp_path):
    shutil.copy(FILES / "hf/arguments.json", tmp_path / "a.json")
    load(tmp_path / "a.json", devices=8).at(devices=2).patch()
    assert (tmp_path / "a.json.isobatch.json").exists()
    assert load(tmp_path / "a.json").recipe.batch.devices == 2
    (tmp_path / "a.json.isobatch.json").write_text("# isobatch-plan: {}\n")
    with pytest.raises(InputError, match="damaged"):
        load(tmp_path / "a.json", devices=2)


def test_check(tmp_path, capsys):
    (tmp_path / "a.yaml").write_text(HF)
    (tmp_path / "good.yaml").write_text(load(tmp_path / "a.yaml", devices=1).at(32).text())
    (tmp_path / "bad.yaml").write_text(HF + "gradient_accumulation_steps: 4\n")
    words = ["--check", "--reference", str(tmp_path / "a.yaml"), "--devices", "1"]
    assert cli.run(["plan", str(tmp_path / "good.yaml"), *words]) == 0
    assert cli.run(["plan", str(tmp_path / "a.yaml"), *words]) == 0
    capsys.readouterr()
    assert cli.run(["plan", str(tmp_path / "bad.yaml"), *words]) == 4
    out = capsys.readouterr().out
    assert "learning_rate = 0.0001, planned 0.0002" in out
    assert "max_steps = 1000, planned 250" in out
    assert cli.run(["plan", str(tmp_path / "bad.yaml"), *words, "--json"]) == 4
    assert {one["key"] for one in json.loads(capsys.readouterr().out)["departs"]} >= {"learning_rate", "warmup_steps"}
    per_device = ["--check", "--reference", str(tmp_path / "a.yaml"), "--devices", "1->4"]
    (tmp_path / "four.yaml").write_text(load(tmp_path / "a.yaml", devices=1).at(devices=4).text())
    assert cli.run(["plan", str(tmp_path / "four.yaml"), *per_device]) == 0
    assert cli.run(["plan", str(tmp_path / "a.yaml"), *per_device]) == 4  # the same words on other devices
    with pytest.raises(InputError, match="check files of one format"):
        check(read("timm/args.yaml"), read("mae/pretrain.sh"))


@pytest.mark.parametrize(("name", "change", "kind"), [
    ("hf/arguments.json", ('"warmup_steps": 600', '"warmup_steps": 6000'), "warmup"),
    ("nanogpt/shakespeare_char.py", ("lr_decay_iters = 5000", "lr_decay_iters = 2000"), "minimum"),
    ("diffusers/t2i.sh", ("15000", "1500"), "average"),
    ("dino/vits16.sh", ("--batch_size_per_gpu 64", "--batch_size_per_gpu 4"), "reference"),
    ("diffusers/scaled.sh", ("800", "900"), "double"),
    ("megatron/wsd.sh", ("--lr=3e-4", "--lr=3e-4 --rampup-batch-size 16 16 1000"), "ramp"),
])  # fmt: skip
def test_lint(name, change, kind, tmp_path):
    text = (FILES / name).read_text()
    assert change[0] in text
    file = tmp_path / name.rsplit("/", 1)[1]
    file.write_text(text.replace(*change))
    before = read(name)
    found = load(file, devices=8 if before.ledger.devices_said else None, data_size=before.recipe.data_size)
    assert kind in {item.name for item in lint(found.recipe, found.ledger)}
    if kind not in ("double", "reference", "average"):
        assert kind not in {item.name for item in lint(before.recipe, before.ledger)}


def test_config_objects_come_back_as_new_ones_of_the_same_kind():
    values = {"per_device_train_batch_size": 8, "learning_rate": 1e-4, "max_steps": 1000, "weight_decay": 0.1}
    values |= {"gradient_accumulation_steps": 1, "adam_beta1": 0.9, "adam_beta2": 0.98, "adam_epsilon": 1e-8}

    frozen = dataclasses.make_dataclass("Arguments", list(values), frozen=True)(**values)
    for config, get in ((dict(values), dict.get), (argparse.Namespace(**values), getattr), (frozen, getattr)):
        new = scale_config(config, 32, devices=1)
        assert type(new) is type(config)
        assert get(new, "learning_rate") == pytest.approx(2e-4)
        assert (get(new, "max_steps"), get(config, "max_steps")) == (250, 1000)
    nested = {"optim": {"base_lr": 0.004}, "train": {"batch_size_per_gpu": 64}, "teacher": {"momentum_teacher": 0.992}}
    new = scale_config(nested, devices=32, new_devices=4)
    assert new["train"]["OFFICIAL_EPOCH_LENGTH"] == 10000
    assert "OFFICIAL_EPOCH_LENGTH" not in nested["train"]


def test_explain_diff_plot_and_the_line_to_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(FILES)
    words = ["plan", "dfine/configs/dfine_l.yml", "--batch-size", "64", "--set", "data_size=117266"]
    assert cli.run([*words, "--explain", "ema.decay"]) == 0
    assert "include ./include/optimizer.yml" in capsys.readouterr().out
    assert cli.run([*words, "--explain", "colour"]) == 2
    assert cli.run([*words, "--diff"]) == 0
    assert "+    ema_restart_decay: 0.99980001" in capsys.readouterr().out
    assert cli.run([*words, "--plot", str(tmp_path / "a.png"), "--markdown"]) == 0
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
    assert cli.run([*words, "--plot", str(tmp_path / "a.html"), "--json"]) == 0
    assert "schedules, old and new" in (page := (tmp_path / "a.html").read_text())
    assert "<svg" in page
    capsys.readouterr()
    assert cli.run(["plan", "megatron/wsd.sh", "--batch-size", "128"]) == 0
    assert "run: python -m torch.distributed.run" in capsys.readouterr().out
    assert cli.run(["plan", "megatron/wsd.sh", "--devices", "x"]) == 2
    assert cli.run(["plan", "megatron/wsd.sh", "--set", "x"]) == 2


def test_a_groups_rate_says_the_rule_of_the_rate():
    made = read("dfine/configs/dfine_l.yml").at(64)
    reasons = {row.key: row.rule for row in made.rows}
    assert reasons["optimizer.params[0].lr"] == reasons["optimizer.lr"] == "sqrt(kappa)*eta"
    assert reasons["lr_warmup_scheduler.warmup_duration"] != "sqrt(kappa)*eta"


@pytest.mark.parametrize(("name", "size", "want"), [
    # 4 updates use a generation before and after; a group has 16 completions
    ("hf/grpo.yaml", 256, {"gradient_accumulation_steps": 2, "steps_per_generation": 8}),
    ("hf/grpo.yaml", 1024, {"gradient_accumulation_steps": 8, "steps_per_generation": 32}),
    ("hf/grpo.sh", 32, {"gradient_accumulation_steps": 1, "generation_batch_size": 64}),
])  # fmt: skip
def test_generations_of_grpo_follow_the_batch(name, size, want):
    found = read(name)
    changed = rows(found.at(size))
    assert {key: changed[key] for key in want} == want
    assert "num_generations" not in changed


def test_an_epoch_of_grpo_has_a_groups_completions_for_each_prompt():
    found = read("hf/grpo.yaml", data_size=1000)
    assert found.recipe.samples(found.recipe.schedule.length, "length") == 1000 * 16


def test_a_generation_holds_whole_groups(tmp_path):
    text = HF + "num_generations: 6\nreward_funcs: [accuracy]\n"
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(
        InputError, match=r"32 completions does not hold whole groups of num_generations = 6; take .* 30 or 36"
    ):
        load(tmp_path / "a.yaml", devices=4)
    (tmp_path / "a.yaml").write_text(text.replace("6", "8"))
    with pytest.raises(InputError, match=r"12 completions .* take a batch with 8 or 16"):
        load(tmp_path / "a.yaml", devices=4).at(12)


@pytest.mark.parametrize(("name", "size", "key"), [("hf/trl_sft.sh", 16384, "eval_steps")])
def test_a_count_of_less_than_one_step_is_one_step_and_no_share(name, size, key):
    made = read(name).at(size)
    text = made.text()
    assert f"--{key} 1 " in text
    back = made.again(text, made.stamp).at(128)
    assert {change.link.name: change.becomes for change in back.changes}[key] == 100


def test_a_registry_asks_which_config_and_keeps_the_others():
    file = FILES / "torchtitan/config_registry.py"
    made = load(file, devices=64, set={"config": "large"}).at(2097152)
    assert rows(made)["large.training.num_tokens_per_train_step"] == 2097152
    assert "lr=8e-4" in made.text()
    with pytest.raises(InputError, match="none of tiny, large"):
        load(file, devices=64, set={"config": "huge"})


def test_a_batch_that_follows_the_devices_goes_on_doing_so():
    found = read("torchtitan/llama3_8b.toml")
    assert "training.global_batch_size" not in rows(found.at(devices=2))
    assert rows(found.at(devices=2, keep_batch=True)) == {"training.global_batch_size": 16}


def test_a_config_that_a_function_lacks_is_built_as_the_file_builds_it_elsewhere():
    text = read("torchtitan/registry_sequences.py").at(devices=16).text()
    assert "lr_scheduler=LRSchedulersContainer.Config(warmup_steps=400)" in text


class Keyed:
    """A config that is no Mapping and hides its values, as ml_collections' ConfigDict and mmengine's Config do."""

    def __init__(self, **values):
        object.__setattr__(self, "_fields", values)

    def keys(self):
        return self._fields.keys()

    def __getitem__(self, name):
        return self._fields[name]

    def __setitem__(self, name, value):
        if name not in self._fields:
            raise KeyError(name)
        self._fields[name] = value


def test_configs_that_are_read_by_their_keys():
    inner = Keyed(lr=0.004, weight_decay=0.1, betas=(0.9, 0.95), eps=1e-8)
    module = Keyed(rank_microbatch_size=8, optim=inner, max_grad_norm=1.0)
    length = {"max_duration": {"value": 640, "unit": "tokens"}}
    config = Keyed(train_module=module, data_loader={"global_batch_size": 64}, trainer=length)
    new = scale_config(config, 32)
    assert type(new) is Keyed
    assert new["train_module"]["optim"]["lr"] == pytest.approx(0.004 * 0.5**0.5)
    assert new["train_module"]["optim"]["betas"] == pytest.approx((0.9**0.5, 0.95**0.5))
    assert (new["data_loader"]["global_batch_size"], config["data_loader"]["global_batch_size"]) == (32, 64)
    assert config["train_module"]["optim"]["lr"] == 0.004
    del config["train_module"]["optim"]._fields["eps"]
    with pytest.raises(InputError, match="Keyed has no eps"):
        scale_config(config, 32)


@pytest.mark.slow
def test_training_arguments_of_transformers():
    transformers = pytest.importorskip("transformers")
    config = transformers.TrainingArguments(
        output_dir="out", per_device_train_batch_size=8, learning_rate=1e-4, max_steps=1000, adam_beta2=0.98,
        save_strategy="no", report_to=[], use_cpu=True,
    )  # fmt: skip
    new = scale_config(config, 32, devices=1)
    assert isinstance(new, transformers.TrainingArguments)
    assert (new.gradient_accumulation_steps, new.max_steps, config.max_steps) == (4, 250, 1000)
    assert new.learning_rate == pytest.approx(2e-4)


@pytest.mark.parametrize(("name", "change", "kind"), [
    ("hf/grpo.yaml", ("warmup_ratio: 0.1", "warmup_ratio: 0.3"), "warmup"),
    ("torchtitan/stable.toml", ("warmup_steps = 100", "warmup_steps = 2000"), "warmup"),
    ("megatron/wsd.sh", ("--lr-decay-iters=20000", "--lr-decay-iters=8000"), "minimum"),
    ("dfine/deim_l.yml", ("decay: 0.9999", "decay: 0.999999"), "average"),
    ("mmengine/faster_rcnn_8xb2.py", ("batch_size=2", "batch_size=16"), "reference"),
    ("nanochat/explicit.sh", ("524288", "4194304"), "reference"),
    ("dinov2/vitl14.yaml", ("base_lr: ", "lr: 0.001\n  base_lr: "), "double"),
])  # fmt: skip
def test_lint_in_other_words(name, change, kind, tmp_path):
    """Each kind of finding, in formats that say it by other keys; a file that is fine has none."""
    text = (FILES / name).read_text()
    assert change[0] in text
    file = tmp_path / name.rsplit("/", 1)[1]
    file.write_text(text.replace(*change, 1))
    before = read(name)
    more = {} if name.split("/")[0] in ("torchtitan", "megatron", "nanochat") else {"data_size": 117266}
    more |= {"devices": 8} if name.split("/")[0] in ("hf", "dinov2") else {}
    found = load(file, **more)
    new = {item.name for item in lint(found.recipe, found.ledger)} - {
        item.name for item in lint(before.recipe, before.ledger)
    }
    assert new == {kind}


@pytest.mark.parametrize(("span", "planned"), [("96ba", "6ba"), ("100ba", "6ba"), ("1_000ba", "62ba"), ("3ba", "1ba"),
                                               ("0ba", "0ba"), ("1ep", "1ep"), ("0.5dur", "0.5dur")])  # fmt: skip
def test_a_time_in_batches_is_made_whole_and_comes_back(tmp_path, span, planned):
    text = (FILES / "composer/adamw.yaml").read_text()
    assert "t_warmup: 100ba," in text
    (tmp_path / "a.yaml").write_text(text.replace("100ba", span))
    found = load(tmp_path / "a.yaml", devices=8, data_size=1_000_000)
    made = found.at(found.recipe.batch.size * 16)
    assert f"t_warmup: {planned}," in made.text()
    back = made.again(made.text(), made.stamp).at(found.recipe.batch.size)
    assert f"t_warmup: {span.replace('_', '')}," in back.text().replace("1_000ba", "1000ba")


@pytest.mark.parametrize("mini", [256, 64])
def test_verls_warmup_counts_rollouts_not_their_updates(tmp_path, mini):
    """The actor's scheduler steps once a rollout, however many updates it is used for."""
    (tmp_path / "a.sh").write_text(
        "python3 -m verl.trainer.main_ppo algorithm.adv_estimator=grpo data.train_batch_size=256 "
        f"actor_rollout_ref.actor.ppo_mini_batch_size={mini} actor_rollout_ref.rollout.n=5 "
        "actor_rollout_ref.actor.optim.lr=1e-6 actor_rollout_ref.actor.optim.lr_warmup_steps=10 "
        "trainer.n_gpus_per_node=8 trainer.total_training_steps=100\n"
    )
    found = load(tmp_path / "a.sh")
    assert found.recipe.staircase().warmup == 10 * 256 * 5
    planned = rows(found.at(found.recipe.batch.size // 2))
    assert planned["actor_rollout_ref.actor.optim.lr_warmup_steps"] == 20
    assert planned["trainer.total_training_steps"] == 200
