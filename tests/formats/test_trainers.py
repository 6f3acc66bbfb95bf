"""What a trainer makes of its flags: the length of a run, an average that it scales itself, words of its own."""

import json

import pytest
from tests.formats.answering import loaded

from isobatch import cli
from isobatch.errors import InputError
from isobatch.formats import Unanswered, check, load

RUN = "torchrun --nproc_per_node 8 {}"
TIMM = RUN.format("train.py --data-dir /data --model resnet50 -b 128 --lr 0.5 --opt adamw ")
VISION = RUN.format("train.py --model resnet50 --batch-size 128 --lr 0.5 --epochs 600 --lr-warmup-epochs 5 ")
ACTOR = "actor_rollout_ref.actor"
VERL = (
    f"python3 -m verl.trainer.main_ppo data.train_batch_size=512 {ACTOR}.ppo_mini_batch_size=128 "
    f"{ACTOR}.optim.lr=1e-6 trainer.n_gpus_per_node=8 trainer.total_training_steps=2000 "
)
MEGATRON = RUN.format("pretrain_gpt.py --micro-batch-size 4 --global-batch-size 256 --lr 1e-3 --train-iters 1000 "
                      "--seq-length 64 --adam-beta1 0.9 --adam-eps 1e-8 ")  # fmt: skip
ROOT = 2**0.5


def becomes(made):
    return {row.key: row.becomes for row in made.rows}


def rates(recipe, epochs):
    """Shares of the peak at the middle of some epochs of 1000 samples."""
    stairs = recipe.staircase()
    return [stairs.at(1000 * (epoch + 0.5)) for epoch in epochs]


@pytest.mark.parametrize(("flags", "epochs", "shares"), [
    # three cycles of 10, 20 and 40 epochs, the peak halved each: the middle of each is half of its peak
    ("--epochs 10 --warmup-epochs 0 --lr-cycle-limit 3 --lr-cycle-mul 2 --lr-cycle-decay 0.5", 70,
     {0: 1.0, 5: 0.5, 10: 0.5, 20: 0.25, 30: 0.25, 50: 0.125}),
    ("--epochs 10 --warmup-epochs 0 --lr-cycle-limit 2", 20, {0: 1.0, 5: 0.5, 10: 0.5, 15: 0.25}),
    # a warm-up before the epochs makes the run longer, a cooldown behind them too
    ("--epochs 10 --warmup-epochs 4 --warmup-prefix --cooldown-epochs 3", 17, {4: 1.0, 9: 0.5, 14: 0.0, 16: 0.0}),
    ("--epochs 10 --warmup-epochs 0 --cooldown-epochs 3", 13, {0: 1.0, 5: 0.5, 11: 0.0}),
    # steps have no cooldown: timm adds it to schedules with cycles alone
    ("--epochs 10 --warmup-epochs 0 --cooldown-epochs 3 --sched step --decay-epochs 4", 10, {3: 1.0, 4: 0.1, 9: 0.01}),
    ("--epochs 10 --warmup-epochs 2 --warmup-prefix --sched step --decay-epochs 4", 12, {5: 1.0, 6: 0.1, 11: 0.01}),
    ("--epochs 9 --warmup-epochs 2 --warmup-prefix --sched multistep --decay-milestones 3 6", 11,
     {4: 1.0, 5: 0.1, 7: 0.1, 8: 0.01}),
    ("--epochs 10 --warmup-epochs 0 --sched poly --decay-rate 2", 10, {0: 1.0, 5: 0.25}),  # its power
    # flat, then 1 - sqrt over the last fifth of what the warm-up leaves
    ("--epochs 12 --warmup-epochs 2 --sched wsd", 12, {2: 1.0, 9: 1.0, 11: 1 - 0.5**0.5}),
])  # fmt: skip
def test_a_run_of_timm_is_as_long_as_its_schedule(flags, epochs, shares, tmp_path):
    found = loaded(tmp_path, "a.sh", TIMM + flags, set={"data_size": 1000})
    assert found.recipe.schedule.length == f"{epochs} epochs"
    assert rates(found.recipe, shares) == pytest.approx(list(shares.values()), abs=1e-9)
    made = found.at(2048)
    assert "epochs" not in becomes(made)
    assert rates(made.recipe, shares) == pytest.approx(list(shares.values()), abs=0.3)  # steps of two epochs
    with pytest.raises(InputError, match="lr_cycle_limit=101"):
        loaded(tmp_path, "b.sh", TIMM + "--lr-cycle-limit 101")


@pytest.mark.parametrize(("flags", "want"), [
    ("--opt-kwargs betas=0.9,0.98 eps=1e-6 --amp",
     {"opt_kwargs.betas[0]": 0.81, "opt_kwargs.betas[1]": 0.9604, "opt_kwargs.eps": 1e-6 / ROOT}),
    ("--opt-kwargs eps=1e-6 --opt-betas 0.9 0.98",
     {"opt_betas[0]": 0.81, "opt_betas[1]": 0.9604, "opt_kwargs.eps": 1e-6 / ROOT}),
])  # fmt: skip
def test_arguments_of_timms_optimizer_go_past_its_flags(flags, want, tmp_path):
    found = loaded(tmp_path, "a.sh", TIMM + flags)
    made = found.at(2048)
    changed = becomes(made)
    assert {key: changed[key] for key in want} == pytest.approx(want)
    assert not {"opt_eps", "opt_kwargs"} & changed.keys()
    assert not found.ledger.unread
    assert "betas=0.81,0.9604 eps=7.07" in made.text() or "--opt-betas 0.81 0.9604" in made.text()


def test_a_script_that_only_shares_its_name_with_timms_is_asked_about(tmp_path):
    (tmp_path / "a.sh").write_text(RUN.format("train.py --opt adamw --lr 1e-3 --batch-size 8 --epochs 9"))
    with pytest.raises(Unanswered, match="trainer=timm"):
        load(tmp_path / "a.sh", data_size=100)


@pytest.mark.parametrize(("flags", "kappa", "want"), [
    # 1 - 0.99998 times 1024 x 32 / 600 = 54.6 is 1 - decay; twice the batch doubles it by itself, nearly decay**2
    ("--model-ema", 2, 1 - (1 - (1 - 2e-5 * 1024 * 32 / 600) ** 2) * 600 / (2048 * 32)),
    ("--model-ema --model-ema-decay 0.9999 --model-ema-steps 16", 0.5,
     1 - (1 - (1 - 1e-4 * 1024 * 16 / 600) ** 0.5) * 600 / (512 * 16)),
])  # fmt: skip
def test_torchvisions_average_is_scaled_once(flags, kappa, want, tmp_path):
    found = loaded(tmp_path, "a.sh", VISION + flags)
    stated = 0.9999 if "0.9999 " in flags else 0.99998
    assert becomes(found.at(int(1024 * kappa)))["model_ema_decay"] == pytest.approx(want, abs=1e-12)
    assert abs(want - stated) < 0.02 * (1 - stated)  # the script's own scaling does the rest
    assert found.recipe.ema.every == int(flags.split()[-1] if "steps" in flags else 32)
    assert found.recipe.ema.start == "5 epochs"
    with pytest.raises(InputError, match="leaves a decay of 0"):
        loaded(tmp_path, "b.sh", VISION + "--model-ema --model-ema-decay 0.9")


@pytest.mark.parametrize(("text", "lr", "shares"), [
    # StepLR counts behind the warm-up
    (VISION + "--lr-warmup-method linear --lr-step-size 200", 0.5, {5: 1, 204: 1, 205: 0.1, 405: 0.01}),
    (VISION + "--lr-scheduler cosineannealinglr", 0.5, {5: 1, 302: 0.5021}),
    (VISION + "--lr-scheduler exponentiallr --lr-gamma 0.99", 0.5, {105: 0.99**100}),
    (RUN.format("references/detection/train.py --lr-steps 16 22"), 0.02, {15: 1, 16: 0.1, 22: 0.01}),
    (RUN.format("references/segmentation/train.py --aux-loss -b 4"), 0.01, {0: 1, 15: 0.5**0.9}),
])  # fmt: skip
def test_what_torchvisions_references_take_where_they_are_silent(text, lr, shares, tmp_path):
    found = loaded(tmp_path, "a.sh", text, set={"data_size": 1000})
    assert (found.ledger.format, found.recipe.optimizer.lr) == ("torchvision", lr)
    assert rates(found.recipe, shares) == pytest.approx(list(shares.values()), rel=0.04)


def test_detection_warms_up_by_a_constant_of_its_code(tmp_path):
    text = RUN.format("references/detection/train.py --lr-steps 16 22")
    made = loaded(tmp_path, "a.sh", text, set={"data_size": 117266}).at(32)
    assert {row.key: (row.was, row.becomes) for row in made.unsaid}["schedule.warmup"] == (1000, 500)


@pytest.mark.parametrize(("flags", "want", "unsaid"), [
    (f"{ACTOR}.megatron.pipeline_model_parallel_size=2 {ACTOR}.optim.lr_decay_steps=1000 "
     f"{ACTOR}.optim.lr_decay_style=cosine {ACTOR}.optim.min_lr=1e-7 {ACTOR}.optim.lr_warmup_init=1e-8 "
     f"{ACTOR}.optim.lr_warmup_steps=10 {ACTOR}.optim.betas=[0.9,0.95] {ACTOR}.optim.clip_grad=1.0",
     {"lr": 1e-6 * ROOT, "min_lr": 1e-7 * ROOT, "lr_warmup_init": 1e-8 * ROOT, "lr_decay_steps": 500,
      "lr_warmup_steps": 5}, {"optimizer.betas[0]", "optimizer.betas[1]", "optimizer.eps"}),
    (f"{ACTOR}.strategy=megatron +{ACTOR}.optim.override_optimizer_config.adam_beta2=0.99",
     {"override_optimizer_config.adam_beta2": 0.9801}, {"optimizer.betas[0]", "optimizer.eps"}),
    (f"{ACTOR}.strategy=megatron {ACTOR}.optim.optimizer=muon", {"lr": 1e-6 * ROOT}, set()),
    (f"{ACTOR}.optim.lr_scheduler_type=wsd {ACTOR}.optim.min_lr_ratio=0.1 {ACTOR}.optim.betas=[0.9,0.98]",
     {"betas[0]": 0.81, "betas[1]": 0.9604}, {"optimizer.eps"}),
])  # fmt: skip
def test_verls_optimizer_by_the_words_of_its_backend(flags, want, unsaid, tmp_path):
    found = loaded(tmp_path, "a.sh", VERL + flags)
    made = found.at(256)
    changed = becomes(made)
    head = f"{ACTOR}.optim."
    assert {key: changed[head + key] for key in want} == pytest.approx(want)
    assert {row.key for row in made.unsaid} == unsaid
    assert not [item for item in found.ledger.unread if item.key != f"{head}weight_decay"]
    assert (f"{head}betas[0]" in changed) == ("betas[0]" in want)


def test_verls_courses_are_megatrons_and_its_own(tmp_path):
    text = VERL + f"{ACTOR}.optim.lr_decay_steps=1000 {ACTOR}.optim.lr_decay_style=linear {ACTOR}.optim.min_lr=2e-7"
    stairs = loaded(tmp_path, "a.sh", text).recipe.staircase()
    assert [stairs.at(at * 512) for at in (0, 500, 1500)] == pytest.approx([1, 0.6, 0.2], abs=1e-3)
    text = VERL + f"{ACTOR}.optim.lr_scheduler_type=wsd {ACTOR}.optim.lr_wsd_stable_steps_ratio=0.5"
    stairs = loaded(tmp_path, "b.sh", text).recipe.staircase()
    assert [stairs.at(at * 512) for at in (0, 999, 1500)] == pytest.approx([1, 1, 0.5], abs=1e-3)


def test_verls_critic_moves_whole(tmp_path):
    text = VERL + "critic.optim.lr=1e-5 critic.optim.weight_decay=0.05 critic.optim.lr_warmup_steps=20"
    found = loaded(tmp_path, "a.sh", text)
    changed = becomes(found.at(256))
    want = {"lr": 1e-5 * ROOT, "weight_decay": 0.05 * ROOT, "lr_warmup_steps": 10}
    assert {key: changed[f"critic.optim.{key}"] for key in want} == pytest.approx(want)
    assert not found.ledger.unread


def test_a_decay_that_rises_moves_at_both_ends(tmp_path):
    flags = "--start-weight-decay 0.01 --end-weight-decay 0.1 --weight-decay-incr-style {} --weight-decay 0.5"
    for style in ("linear", "cosine"):
        found = loaded(tmp_path, "a.sh", MEGATRON + flags.format(style))
        changed = becomes(found.at(512))
        assert changed["start_weight_decay"] == pytest.approx(0.01 * ROOT)
        assert changed["end_weight_decay"] == pytest.approx(0.1 * ROOT)
        assert "weight_decay" not in changed
        assert not found.ledger.unread
        (tmp_path / "b.sh").write_text(MEGATRON.replace("256", "512") + flags.format(style))
        assert {item.key for item in check(load(tmp_path / "b.sh"), found)} > {"start_weight_decay", "end_weight_decay"}
    alone = loaded(tmp_path, "c.sh", MEGATRON + "--start-weight-decay 0.01 --weight-decay 0.5")
    assert becomes(alone.at(512))["weight_decay"] == pytest.approx(0.5 * ROOT)
    assert [item.key for item in alone.ledger.unread] == ["start_weight_decay"]


def test_adam_beside_muon_takes_the_one_rate_and_moves_its_own_moments(tmp_path):
    changed = becomes(loaded(tmp_path, "a.sh", MEGATRON + "--optimizer dist_muon --adam-beta2 0.98").at(512))
    want = {"lr": 1e-3 * ROOT, "adam_beta1": 0.81, "adam_beta2": 0.9604, "adam_eps": 1e-8 / ROOT}
    assert {key: changed[key] for key in want} == pytest.approx(want)
    assert "muon_momentum" not in changed


CONVNEXT = RUN.format("main_{}.py --model convnextv2_base --batch_size 32 --update_freq 4 --blr 6.25e-4 {}")


def test_convnext_v2_accumulates_under_a_name_of_its_own(tmp_path):
    found = loaded(tmp_path, "a.sh", CONVNEXT.format("finetune", "--model_ema True --opt_betas 0.9 0.98"))
    assert found.recipe.batch.size == 1024
    assert found.recipe.optimizer.lr == pytest.approx(6.25e-4 * 1024 / 256)
    assert (found.recipe.schedule.length, found.recipe.schedule.warmup) == ("100 epochs", "20 epochs")
    changed = becomes(found.at(2048))
    want = {"update_freq": 8, "model_ema_decay": 0.9999**2, "opt_betas[0]": 0.81, "opt_betas[1]": 0.9604}
    assert {key: changed[key] for key in want} == pytest.approx(want)
    assert not {"blr", "accum_iter"} & changed.keys()  # the trainer scales the rate by itself
    (tmp_path / "b.sh").write_text(CONVNEXT.format("pretrain", "--epochs 800"))
    with pytest.raises(Unanswered) as asked:
        load(tmp_path / "b.sh", data_size=1000)
    assert {question.name for question in asked.value.questions} == {"weight_decay", "warmup_epochs"}


@pytest.mark.parametrize(("name", "text", "key"), [
    ("a.sh", TIMM + "--update-freq 8", "update_freq"),
    ("b.yaml", "per_device_train_batch_size: 4\nlearning_rate: 1.0e-4\nmax_steps: 9\ngrad_accum_steps: 8\n",
     "grad_accum_steps"),
    ("c.toml", "[training]\nlocal_batch_size = 1\nseq_len = 8\nsteps = 900\ngradient_accumulation = 8\n"
               "[optimizer]\nname = 'AdamW'\nlr = 3e-4\n", "training.gradient_accumulation"),
    ("d.yaml", "optimizer: {_component_: torch.optim.AdamW, lr: 1.0e-4}\nbatch_size: 2\nmax_steps_per_epoch: 9\n"
               "epochs: 1\niters_to_accumulate: 8\n", "iters_to_accumulate"),
])  # fmt: skip
def test_passes_that_a_format_does_not_know_are_asked_about(name, text, key, tmp_path):
    (tmp_path / name).write_text(text)
    told = {"devices": 8, "data_size": 1000}
    with pytest.raises(Unanswered, match=f"{key} = 8 looks like passes of an update"):
        load(tmp_path / name, **told)
    with pytest.raises(InputError, match="must be 1"):
        load(tmp_path / name, **told, set={key: 8})
    found = load(tmp_path / name, **told, set={key: 1})
    found.at(found.recipe.batch.size * 2).patch(tmp_path / f"x{name}")
    assert load(tmp_path / f"x{name}").recipe.batch.size == found.recipe.batch.size * 2


@pytest.mark.parametrize(("name", "text", "said"), [
    ("a.yaml", "trainer: {devices: 8, max_steps: 9, accumulate_grad_batches: 1}\nmodel:\n  global_batch_size: 256\n"
               "  optim: {name: fused_adam, lr: 2.0e-4, sched: {warmup_steps: 5}}\n", "NeMo"),
    ("b.yaml", "trainer: {_target_: lightning.Trainer, max_epochs: 10, devices: 4}\nmodel:\n  optimizer: "
               "{_target_: torch.optim.Adam, lr: 0.001}\ndata: {batch_size: 128}\n", "Hydra's _target_"),
    ("c.py", "data = dict(samples_per_gpu=2)\nlr_config = dict(policy='step', step=[8])\noptimizer = dict(lr=0.02)\n",
     "mmcv 1.x"),
    ("d.py", "dataloader.train.total_batch_size = 64\ntrain.max_iter = 9\nlr_multiplier = L(W)(warmup_length=1)\n",
     "detectron2's lazy configs"),
])  # fmt: skip
def test_what_resembles_a_format_is_named(name, text, said, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=said):
        load(tmp_path / name, devices=8)


SHORT = "per_device_train_batch_size: {}\nlearning_rate: {}\nmax_steps: {}\nwarmup_steps: {}\nadam_beta1: {}\n" + (
    "adam_beta2: {}\nadam_epsilon: {}\nteacher_momentum: 0.99\n"
)


@pytest.mark.parametrize(("warm", "found"), [(1, []), (2, ["warmup_steps"]), (0, ["warmup_steps"])])
def test_a_count_that_is_one_more_is_no_rounding_where_it_is_short(warm, found, tmp_path, capsys):
    (tmp_path / "a.yaml").write_text(SHORT.format(4, 1e-4, 1000, 4, 0.9, 0.999, "1.0e-8"))
    (tmp_path / "b.yaml").write_text(SHORT.format(16, 2e-4, 250, warm, 0.9**4, 0.999**4, "5.0e-9"))
    words = ["plan", str(tmp_path / "b.yaml"), "--check", "--reference", str(tmp_path / "a.yaml"), "--devices", "1"]
    assert cli.run([*words, "--json"]) == (4 if found else 0)
    told = json.loads(capsys.readouterr().out)
    assert [one["key"] for one in told["departs"] if one["key"] != "curves.lr"] == found
    assert told["unjudged"] == ["teacher_momentum"]
    cli.run(words)
    assert "not judged, because no plan knows what they do: teacher_momentum" in capsys.readouterr().out


MODULE = (
    "trainer: {{devices: 4, max_steps: 1000}}\nmodel:\n  class_path: m.M\n  init_args: {}\n"
    "data: {{init_args: {{batch_size: 32}}}}\n"
)


@pytest.mark.parametrize(("held", "told", "want", "unsaid"), [
    # a module that is given its rate builds the optimizer itself: which one is asked, and no section is made up for it
    ("{lr: 1.0e-3, weight_decay: 0.01, betas: [0.9, 0.98]}", {"optimizer": "adamw"},
     {"lr": 1e-3 * ROOT, "weight_decay": 0.01 * ROOT, "betas[0]": 0.81, "betas[1]": 0.9604}, {"eps"}),
    ("{learning_rate: 1.0e-3, beta1: 0.9, beta2: 0.98, eps: 1.0e-8}", {"optimizer": "adamw"},
     {"learning_rate": 1e-3 * ROOT, "beta1": 0.81, "beta2": 0.9604, "eps": 1e-8 / ROOT}, {"weight_decay"}),
    ("{lr: 0.1, momentum: 0.9, optimizer: sgd}", {}, {"lr": 0.38, "momentum": 0.81}, set()),
    ("{lr: 0.1}", {"optimizer": "sgd", "momentum": 0.9}, {"lr": 0.2}, set()),  # a momentum that no key says stays
    ("{optimizer: {class_path: torch.optim.AdamW, init_args: {lr: 1.0e-3, betas: [0.9, 0.98]}}}", {},
     {"optimizer.init_args.lr": 1e-3 * ROOT, "optimizer.init_args.betas[1]": 0.9604,
      "optimizer.init_args.weight_decay": 0.01 * ROOT}, set()),
])  # fmt: skip
def test_an_optimizer_that_the_module_builds(held, told, want, unsaid, tmp_path):
    (tmp_path / "a.yaml").write_text(MODULE.format(held))
    if told:
        with pytest.raises(Unanswered, match=next(iter(told))):
            load(tmp_path / "a.yaml")
    found = load(tmp_path / "a.yaml", set=told)
    made = found.at(256)
    changed = becomes(made)
    assert {key: changed[f"model.init_args.{key}"] for key in want} == pytest.approx(want)
    assert {row.key.split(".")[1].split("[")[0] for row in made.unsaid} == unsaid
    assert "\noptimizer:" not in made.text()
    made.patch(tmp_path / "b.yaml")
    back = load(tmp_path / "b.yaml").at(128)
    assert back.recipe.optimizer.lr == pytest.approx(found.recipe.optimizer.lr)


def test_axolotls_groups_of_completions_stay_whole(tmp_path):
    text = (
        "base_model: x\nrl: grpo\ntrl: {num_generations: 6, beta: 0.04}\nmicro_batch_size: 3\nnum_epochs: 1\n"
        "gradient_accumulation_steps: 2\nlearning_rate: 1.0e-6\nwarmup_steps: 0\n"
    )
    found = loaded(tmp_path, "a.yaml", text)
    assert not found.ledger.unread
    with pytest.raises(InputError, match="whole groups of num_generations = 6"):
        found.at(40, micro=5)
