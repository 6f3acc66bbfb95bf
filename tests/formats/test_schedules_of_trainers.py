"""Schedules that a trainer repeats, cuts or steps in a count of its own, and averages that its loss sees."""

import pytest
from tests.formats.answering import loaded

from isobatch.errors import InputError

FOUR = "accelerate launch --num_processes 4 {}"
HF = "per_device_train_batch_size: 4\nlearning_rate: 3.0e-4\nmax_steps: 1000\nwarmup_steps: 100\n"
T2I = FOUR.format("train_text_to_image.py --pretrained_model_name_or_path=x --train_batch_size=8 "
                  "--max_train_steps=1000 --lr_warmup_steps=100 ")  # fmt: skip
PLAIN = FOUR.format("train_unconditional.py --train_batch_size=16 --num_epochs=100 --lr_warmup_steps=500 ")
LCM = FOUR.format(
    "train_lcm_distill_sd_wds.py --pretrained_teacher_model=x --train_batch_size=8 --max_train_steps=900 "
)
CLIP = "torchrun --nproc_per_node 8 -m open_clip_train.main --train-num-samples 1000 --batch-size 5 --epochs 32 "
ROOT = 2**0.5


def becomes(made):
    return {row.key: row.becomes for row in made.rows}


def shares(recipe, steps):
    stairs = recipe.staircase()
    return [stairs.at(step * recipe.batch.size) for step in steps]


@pytest.mark.parametrize(("name", "text", "want"), [
    # three cosines of 300 updates behind a warm-up of 100, each from the peak: the middle of one is half of it
    ("a.yaml", HF + "lr_scheduler_type: cosine_with_restarts\nlr_scheduler_kwargs: {num_cycles: 3}\n",
     {50: 0.5, 100: 1, 250: 0.5, 400: 1, 550: 0.5, 700: 1, 850: 0.5}),
    ("b.yaml", HF + "lr_scheduler_type: cosine_with_restarts\n", {100: 1, 550: 0.5}),
    ("c.sh", T2I + "--lr_scheduler cosine_with_restarts --lr_num_cycles 3", {250: 0.5, 400: 1, 850: 0.5}),
    ("d.sh", T2I + "--lr_scheduler polynomial --lr_power 2", {100: 1, 550: 0.25}),
    ("e.sh", T2I + "--lr_scheduler polynomial", {100: 1, 550: 0.5}),
    # flat, then down over the last 8 of 32 epochs of 25 updates
    ("f.sh", CLIP + "--warmup 0 --lr-scheduler const-cooldown --epochs-cooldown 8", {0: 1, 599: 1, 700: 0.5}),
    ("g.sh", CLIP + "--warmup 0 --lr-scheduler const-cooldown --epochs-cooldown 8 --lr-cooldown-power 2",
     {0: 1, 599: 1, 700: 0.25}),
    ("ga.sh", CLIP + "--warmup 99 --skip-scheduler", {0: 1, 50: 1, 799: 1}),
    # 1000 steps of 32; the milestones are 300 and 600, in batches, samples and shares of the run
    ("h.yaml", "global_train_batch_size: 32\nmax_duration: 1000ba\noptimizer: {name: decoupled_sgdw, lr: 2.0}\n"
               "scheduler: {name: multistep_with_warmup, milestones: [300ba, 19200sp], t_warmup: 100ba, gamma: 0.5}\n",
     {50: 0.5, 299: 1, 301: 0.5, 599: 0.5, 601: 0.25}),
    ("i.py", "model.train(dataset_dir='x', epochs=10, batch_size=4, grad_accum_steps=4, lr=1e-4, ema_decay=0.997, "
             "lr_scheduler='cosine', lr_min_factor=0.2)\n", {0: 1, 400_000: 0.6}),
])  # fmt: skip
def test_a_schedule_runs_as_the_trainer_has_it(name, text, want, tmp_path):
    found = loaded(tmp_path, name, text)
    assert not found.ledger.unread
    assert shares(found.recipe, want) == pytest.approx(list(want.values()), abs=0.02)
    made = found.at(found.recipe.batch.size * 2)
    assert shares(made.recipe, [at / 2 for at in want]) == pytest.approx(list(want.values()), abs=0.02)


@pytest.mark.parametrize("count", [0, 101])
def test_cycles_without_end_are_refused(count, tmp_path):
    with pytest.raises(InputError, match="num_cycles"):
        loaded(tmp_path, "a.yaml", HF + f"lr_scheduler_type: cosine_with_restarts\nlr_scheduler_kwargs: "
                                        f"{{num_cycles: {count}}}\n")  # fmt: skip


@pytest.mark.parametrize(("flags", "kept", "steps"), [
    # 500 steps of the scheduler, four an update, are 125 updates; accumulation multiplies them again
    ("", {"devices": 4, "batch_size": 128}, 125 / 2 * 4 / 2), ("", {"devices": 8}, 125 / 2 * 8),
    ("--gradient_accumulation_steps=2", {"batch_size": 256}, 250 / 2 * 4 / 4),
])  # fmt: skip
def test_a_warm_up_that_accelerate_passes_faster(flags, kept, steps, tmp_path):
    found = loaded(tmp_path, "a.sh", PLAIN + flags, set={"data_size": 64000})
    warm = {"": 125, "--gradient_accumulation_steps=2": 250}[flags]
    assert shares(found.recipe, [warm / 2, warm]) == pytest.approx([0.5, 1], abs=0.02)
    changed = becomes(found.at(**kept))
    assert changed.get("lr_warmup_steps", 500) == pytest.approx(steps, abs=1)


def test_a_scheduler_of_passes_is_named_where_the_passes_change(tmp_path):
    found = loaded(tmp_path, "a.sh", PLAIN + "--gradient_accumulation_steps=2", set={"data_size": 64000})
    assert shares(found.recipe, [49_999]) == pytest.approx([0.5], abs=0.01)  # a cosine of twice the run
    unsaid = {row.key: (row.was, row.becomes) for row in found.at(256).unsaid}
    assert unsaid["schedule.passes"] == (2, 4)
    assert "schedule.passes" not in {row.key for row in found.at(256, micro=32).unsaid}


def test_the_target_of_a_distillation_is_an_average(tmp_path):
    found = loaded(tmp_path, "a.sh", LCM + "--ema_decay=0.9 --lr_warmup_steps=400 --lr_scheduler=constant_with_warmup")
    assert shares(found.recipe, [50, 100]) == pytest.approx([0.5, 1], abs=0.02)
    changed = becomes(found.at(64))
    assert changed["ema_decay"] == pytest.approx(0.81)
    assert (changed["lr_warmup_steps"], changed["max_train_steps"]) == (200, 450)
    falls = loaded(tmp_path, "b.sh", LCM + "--lr_scheduler=cosine")
    assert [item.key for item in falls.ledger.unread] == ["lr_scheduler"]


@pytest.mark.parametrize(("name", "text", "want"), [
    ("a.sh", T2I.replace("text_to_image", "dreambooth_lora_flux") + "--train_text_encoder --text_encoder_lr 5e-6 "
             "--adam_weight_decay_text_encoder 1e-3",
     {"text_encoder_lr": 5e-6 * ROOT, "adam_weight_decay_text_encoder": 1e-3 * ROOT}),
    ("b.yaml", "base_model: x\nmicro_batch_size: 2\nnum_epochs: 3\nlearning_rate: 2.0e-4\nwarmup_steps: 10\n"
               "lr_groups:\n"
               "  - {name: o_proj, modules: [self_attn.o_proj], lr: 1.0e-6}\n", {"lr_groups[0].lr": 1e-6 * ROOT}),
])  # fmt: skip
def test_rates_of_some_parameters_move(name, text, want, tmp_path):
    found = loaded(tmp_path, name, text)
    changed = becomes(found.at(found.recipe.batch.size * 2))
    assert {key: changed[key] for key in want} == pytest.approx(want)
    assert not found.ledger.unread


def test_what_a_preset_overwrites_does_not_count(tmp_path):
    text = "lerobot-train --policy.type=diffusion --batch_size=64 --steps=2000 --optimizer.lr 3e-4 {}"
    found = loaded(tmp_path, "a.sh", text.format(""))
    assert (found.recipe.optimizer.name, found.recipe.optimizer.lr) == ("adam", 1e-4)
    assert "overwrites" in " ".join(found.ledger.notes)
    own = loaded(tmp_path, "b.sh", text.format("--use_policy_training_preset=false --optimizer.type=adamw"))
    assert (own.recipe.optimizer.name, own.recipe.optimizer.lr) == ("adamw", 3e-4)


@pytest.mark.parametrize(("flags", "devices"), [
    ("--nproc_per_node 4 full_finetune_distributed", 4), ("--nnodes=2 --nproc_per_node=4 full_finetune_distributed", 8),
    ("lora_finetune_single_device", 1),
])  # fmt: skip
def test_tune_hands_on_the_flags_of_torchrun(flags, devices, tmp_path):
    text = (
        f"tune run {flags} --config llama3/8B_full batch_size=4 optimizer._component_=torch.optim.AdamW "
        "optimizer.lr=1e-5"
    )
    found = loaded(tmp_path, "a.sh", text, set={"rests_on": "nothing", "data_size": 100})
    assert found.recipe.batch.devices == devices


def test_auto_beside_both_factors_is_their_product(tmp_path):
    text = (
        '{"train_batch_size": "auto", "train_micro_batch_size_per_gpu": 4, "gradient_accumulation_steps": 2, '
        '"optimizer": {"type": "AdamW", "params": {"lr": 1e-4}}}'
    )
    found = loaded(tmp_path, "a.json", text)
    assert found.recipe.batch.size == 64
    assert '"auto"' in found.at(128).text()


def test_times_and_periods_of_callbacks_move(tmp_path):
    text = (
        "global_train_batch_size: 32\nmax_duration: 1000ba\noptimizer: {name: decoupled_sgdw, lr: 2.0}\n"
        "scheduler: {name: multistep_with_warmup, milestones: [300ba, 0.6dur], t_warmup: 100ba}\n"
    )
    changed = becomes(loaded(tmp_path, "a.yaml", text).at(64))
    assert (changed["scheduler.milestones[0]"], "scheduler.milestones[1]" in changed) == ("150ba", False)
    text = (
        "train_module: {rank_microbatch_size: 4096, optim: {_CLASS_: x.AdamWConfig, lr: 4.0e-4}}\n"
        "data_loader: {global_batch_size: 65536}\ntrainer:\n  max_duration: {value: 9000, unit: steps}\n"
        "  callbacks: {checkpointer: {save_interval: 1000, ephemeral_save_interval: 250}}\n"
    )
    changed = becomes(loaded(tmp_path, "b.yaml", text).at(131072))
    where = "trainer.callbacks.checkpointer"
    assert (changed[f"{where}.save_interval"], changed[f"{where}.ephemeral_save_interval"]) == (500, 125)


def test_an_average_of_mmengine_may_begin_with_an_epoch(tmp_path):
    text = (
        "train_dataloader = dict(batch_size=8)\noptim_wrapper = dict(optimizer=dict(type='SGD', lr=0.01))\n"
        "train_cfg = dict(max_epochs=12)\ncustom_hooks = [dict(type='EMAHook', momentum=0.001, begin_epoch=3)]\n"
    )
    found = loaded(tmp_path, "a.py", text, set={"data_size": 1000})
    assert found.recipe.samples(found.recipe.ema.start, "start") == 3000


def test_every_option_of_a_list_is_one(tmp_path):
    text = (
        "torchrun --nproc_per_node 4 tools/train.py --launcher pytorch --cfg-options optim_wrapper.optimizer.lr=0.01 "
        "train_dataloader.batch_size=4 train_cfg.max_epochs=12 optim_wrapper.optimizer.momentum=0.9"
    )
    found = loaded(tmp_path, "a.sh", text)
    assert (found.recipe.batch.micro, found.recipe.optimizer.lr, found.recipe.optimizer.momentum) == (4, 0.01, 0.9)
