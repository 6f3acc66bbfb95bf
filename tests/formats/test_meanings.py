"""Plans beside what the stacks' own documentation says of each key: expectations worked out by hand."""

import pytest
from tests.formats.answering import loaded

from isobatch import cli
from isobatch.errors import InputError
from isobatch.formats import load
from isobatch.plan import Recipe

HF = "torchrun --nproc_per_node 4 t.py --per_device_train_batch_size 4 --learning_rate 1e-4 --max_steps 1000 "
LEAST = "--lr_scheduler_type cosine_with_min_lr --lr_scheduler_kwargs"
YAML = (
    "per_device_train_batch_size: 4\nlearning_rate: 1.0e-4\nmax_steps: 1000\nlr_scheduler_type: cosine_with_min_lr\n"
    "lr_scheduler_kwargs: "
)
STABLE = "--lr_scheduler_type warmup_stable_decay --lr_scheduler_kwargs "
MM = (
    "train_dataloader = dict(batch_size=2)\ntrain_cfg = dict(by_epoch=True, max_epochs=12)\n"
    "optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.02, momentum=0.9))\n"
    "auto_scale_lr = dict(enable={}, base_batch_size={})\n"
    "param_scheduler = [dict(type='CosineAnnealingLR', eta_min=1e-4, begin=0, end=12, by_epoch=True)]\n"
)
ROOT = 2**0.5


def becomes(made):
    return {row.key: row.becomes for row in made.rows}


@pytest.mark.parametrize(("name", "text", "key", "planned", "said"), [
    ("a.sh", HF + LEAST + " '{\"min_lr\": 1e-6}'", "min_lr", 1e-6 * ROOT, "'{\"min_lr\": 1.4142135623"),
    ("b.sh", HF + LEAST + "='{\"num_cycles\": 0.5, \"min_lr\":1e-6}'", "min_lr", 1e-6 * ROOT, '"min_lr":1.4142135623'),
    ("c.sh", HF + LEAST + ' "{\\"min_lr\\": 1e-6}"', "min_lr", 1e-6 * ROOT, '"{\\"min_lr\\": 1.4142135623'),
    ("d.sh", HF + LEAST + " '{\"min_lr_rate\": 0.1}'", "min_lr_rate", None, "'{\"min_lr_rate\": 0.1}'"),
    ("e.sh", HF + STABLE + "'{\"num_decay_steps\": 200}'", "num_decay_steps", 100, "'{\"num_decay_steps\": 100}'"),
    ("f.yaml", YAML + "'{\"min_lr\": 1e-6}'\n", "min_lr", 1e-6 * ROOT, "'{\"min_lr\": 1.4142135623"),
    ("g.yaml", YAML + '"{\\"min_lr\\": 1e-6}"\n', "min_lr", 1e-6 * ROOT, '"{\\"min_lr\\": 1.4142135623'),
    ("h.yaml", YAML + '{"min_lr": 1e-6}\n', "min_lr", 1e-6 * ROOT, '{"min_lr": 1.4142135623'),
])  # fmt: skip
def test_json_in_a_flag_is_read_and_written(name, text, key, planned, said, tmp_path):
    found = loaded(tmp_path, name, text)
    assert found.ledger.lossless
    made = found.at(devices=2 * found.recipe.batch.devices)
    assert becomes(made).get(f"lr_scheduler_kwargs.{key}") == (None if planned is None else pytest.approx(planned))
    assert said in made.text()


@pytest.mark.parametrize(("more", "key"), [
    ("--adam_kwargs '{\"betas\": [0.9, 0.95]}'", "adam_kwargs.betas"),
    (LEAST + " '{\"min_lr\": '", "lr_scheduler_kwargs"),  # no JSON
    ("--accelerator_config accelerator.json", "accelerator_config"),
])  # fmt: skip
def test_json_that_no_reader_knows_is_named(more, key, tmp_path):
    assert key in {item.key for item in loaded(tmp_path, "a.sh", HF + more).ledger.unread}


@pytest.mark.parametrize(("switch", "base", "devices", "want"), [
    # off: the trainer scales by GPUs x batch_size / base only where it is started with --auto-scale-lr, by 1 as before
    ("False", 16, 4, {"base_batch_size": 8}),
    ("False", 32, 4, {"base_batch_size": 16}),  # by 1/2 as before
    # on: lr .02 is trained at .01 (16/32), so that half the batch has .005, which the trainer makes of .02 itself
    ("True", 32, 4, {"eta_min": 5e-5}),
    ("True", 16, 16, {"eta_min": 2e-4}),
])  # fmt: skip
def test_mmengine_trains_at_the_planned_rate_with_its_switch_and_without(switch, base, devices, want, tmp_path):
    found = loaded(tmp_path, "a_8xb2.py", MM.format(switch, base))
    made = found.at(devices=devices)
    changed = {key.rpartition(".")[2]: value for key, value in becomes(made).items()}
    assert {key: changed.get(key) for key in ("base_batch_size", "eta_min") if key in want} == pytest.approx(want)
    stated = changed.get("lr", 0.02)
    trained = stated * (2 * devices / base if switch == "True" else 1)
    assert trained == pytest.approx(made.recipe.optimizer.lr)
    least = made.recipe.schedule.final * trained  # the floor is no share of the rate that the file says
    assert changed["eta_min"] == pytest.approx(least)


def test_mmengines_switch_is_asked_about_where_it_would_scale(tmp_path):
    text = MM.format("False", 32)
    off = loaded(tmp_path, "a_8xb2.py", text)
    assert any("--set auto_scale_lr.enable=true" in note for note in off.ledger.notes)
    assert off.recipe.optimizer.lr == 0.02
    assert loaded(tmp_path, "a_8xb2.py", text, set={"auto_scale_lr.enable": True}).recipe.optimizer.lr == 0.01


OWN = '[batch]\nsize = 8\n[optimizer]\nname = "{}"\nlr = 0.01\n{}\n'


@pytest.mark.parametrize(("optimizer", "line"), [
    ("sgd", "betas = [0.9, 0.95]"), ("muon", "betas = [0.9, 0.99]"), ("rmsprop", "betas = [0.9, 0.95]"),
    ("lion", "eps = 1e-6"), ("sgd", "eps = 1e-6"), ("lars", "alpha = 0.9"), ("adamw", "alpha = 0.9"),
])  # fmt: skip
def test_a_number_that_an_optimizer_does_not_have_is_refused(optimizer, line, tmp_path, capsys):
    (tmp_path / "r.toml").write_text(OWN.format(optimizer, line))
    with pytest.raises(InputError, match=f"optimizer.{line.split()[0]}=.* has no meaning for {optimizer}; remove it"):
        Recipe.load(tmp_path / "r.toml")
    assert cli.run(["plan", str(tmp_path / "r.toml"), "--batch-size", "16"]) == 2
    assert "remove it" in capsys.readouterr().err


@pytest.mark.parametrize(("optimizer", "line"), [
    ("lion", "betas = [0.9, 0.99]"), ("adamw", "eps = 1e-6"), ("rmsprop", "alpha = 0.9\neps = 1e-6"),
    ("muon", 'betas = [0.8, 0.95]\n[[groups]]\nname = "e"\nmatch = "e"\noptimizer = "adamw"\nlr = 0.1'),  # the group's
])  # fmt: skip
def test_a_number_that_acts_is_taken(optimizer, line, tmp_path):
    (tmp_path / "r.toml").write_text(OWN.format(optimizer, line))
    assert Recipe.load(tmp_path / "r.toml").at(16).recipe.optimizer.name == optimizer


def test_no_moments_are_added_beside_an_optimizer_without_them(tmp_path):
    text = (
        "train: {global_batch_size: 64, micro_batch_size: 4, max_steps: 1000, lr_warmup_steps: 10}\ndevices: 4\n"
        "optimizer: {class_path: torch.optim.SGD, init_args: {lr: 1.0e-2, momentum: 0.9}}\n"
    )
    changed = becomes(loaded(tmp_path, "a.yaml", text).at(128))
    assert changed["optimizer.init_args.momentum"] == pytest.approx(0.81)
    assert not [key for key in changed if "betas" in key or key.endswith(".eps")]


def test_numbers_come_back_without_the_last_digits_of_the_way(tmp_path):
    text = (
        "trainer: {devices: 4, max_epochs: 10}\nmodel: {class_path: m.M}\ndata: {init_args: {batch_size: 32}}\n"
        "optimizer: {class_path: torch.optim.AdamW, init_args: {lr: 0.001, weight_decay: 0.01}}\n"
    )
    found = loaded(tmp_path, "a.yaml", text)
    (tmp_path / "b.yaml").write_text(found.at(devices=8).text())
    assert "weight_decay: 0.01," in load(tmp_path / "b.yaml").at(devices=4).text()


ITERS = (
    "train_dataloader = dict(batch_size=2)\n"
    "train_cfg = dict(type='IterBasedTrainLoop', max_iters=160000, val_interval=16000)\n"
    "optim_wrapper = dict(accumulative_counts=2, optimizer=dict(type='SGD', lr=0.01))\n"
    "param_scheduler=[dict(type='LinearLR', start_factor=1e-06, by_epoch=False, begin=0, end=1500),\n"
    "    dict(type='MultiStepLR', milestones=[80000, 120000], by_epoch=False)]\n"
    "custom_hooks=[dict(type='EMAHook', ema_type='ExpMomentumEMA', momentum=0.0002, begin_iter=100, gamma=2000)]\n"
)  # 160,000 passes of 4 x 2 images are 80,000 updates of 16


@pytest.mark.parametrize(("asked", "times", "passes"), [
    ({"devices": 8, "keep_batch": True}, 0.5, 1),  # as many updates, in half the passes
    ({"devices": 2, "keep_batch": True}, 2, 4),
    ({"devices": 8}, 0.5, 2),  # half the updates of twice the images
    ({"batch_size": 32}, 1, 4),  # the passes stay, an update holds more of them
])  # fmt: skip
def test_mmengines_iterations_are_passes(asked, times, passes, tmp_path):
    found = loaded(tmp_path, "s_4xb2.py", ITERS)
    assert found.ledger.spans["length"] == 160000 * 8
    made = found.at(asked.get("batch_size"), **{key: asked[key] for key in ("devices", "keep_batch") if key in asked})
    held = {link.name: link.value for link in found.ledger.links} | becomes(made)
    counts = {"train_cfg.max_iters": 160000, "train_cfg.val_interval": 16000, "param_scheduler[0].end": 1500,
              "param_scheduler[1].milestones[0]": 80000, "param_scheduler[1].milestones[1]": 120000,
              "custom_hooks[0].gamma": 2000, "custom_hooks[0].begin_iter": 100}  # fmt: skip
    assert {key: held[key] for key in counts} == {key: count * times for key, count in counts.items()}
    assert held["optim_wrapper.accumulative_counts"] == passes
    kept = (1 - 0.0002) ** (160000 / 1000)  # what the average keeps over a thousandth of the run's images
    assert (1 - held["custom_hooks[0].momentum"]) ** (160000 * times / 1000) == pytest.approx(kept, rel=1e-12)
    (tmp_path / "there.py").write_text(made.text())
    home = load(tmp_path / "there.py").at(16, devices=4, micro=2).text()
    assert home.split("\n", 1)[1] == ITERS


@pytest.mark.parametrize(("name", "text", "want"), [
    # TRL mixes the model into the reference every so many steps; an evaluation begins after so many
    ("a.yaml", YAML + "{min_lr: 0.00001}\nsync_ref_model: true\nref_model_sync_steps: 64\neval_strategy: steps\n"
               "eval_delay: 100\n", {"ref_model_sync_steps": 32, "eval_delay": 50}),
    ("b.yaml", "trainer: {devices: 4, max_epochs: 9, callbacks: [{class_path: l.EMAWeightAveraging, "
               "init_args: {decay: 0.9, update_starting_at_step: 100}}]}\n"
               "model: {class_path: m.M}\ndata: {init_args: {batch_size: 8}}\n"
               "optimizer: {class_path: torch.optim.AdamW, init_args: {lr: 0.001}}\n",
     {"trainer.callbacks[0].init_args.update_starting_at_step": 50, "trainer.callbacks[0].init_args.decay": 0.81}),
])  # fmt: skip
def test_steps_by_other_names_move(name, text, want, tmp_path):
    found = loaded(tmp_path, name, text)
    changed = becomes(found.at(devices=found.recipe.batch.devices * 2))
    assert {key: changed.get(key) for key in want} == pytest.approx(want)
    assert found.ledger.lossless


ARGS = " t.py --per_device_train_batch_size $MICRO --learning_rate 1e-4 --max_steps 1000 --gradient_accumulation_steps "
SUMS = "GLOBAL=256\nMICRO=4\nexport GPUS=8\n{}torchrun --nproc_per_node=$GPUS" + ARGS


@pytest.mark.parametrize("text", [
    SUMS.format("ACC=$((GLOBAL/MICRO/GPUS))\n") + "$ACC", SUMS.format("") + "$((GLOBAL / MICRO / GPUS))",
])  # fmt: skip
@pytest.mark.parametrize(("asked", "batch", "passes"), [
    ({"devices": 16}, 512, 8),  # the script itself would take 4 passes, at the rates of 8
    ({"devices": 16, "keep_batch": True}, 256, 4), ({"batch_size": 512}, 512, 16),
])  # fmt: skip
def test_what_a_script_computes_from_a_number_that_moves_is_written_out(text, asked, batch, passes, tmp_path):
    found = loaded(tmp_path, "a.sh", text)
    assert found.recipe.batch.size == 256
    (tmp_path / "b.sh").write_text(found.at(**asked).text())
    there = load(tmp_path / "b.sh").recipe.batch
    assert (there.size, there.accumulation) == (batch, passes)


@pytest.mark.parametrize(("text", "devices"), [
    ("export GPUS=4\ntorchrun --nproc_per_node $GPUS" + ARGS.replace("$MICRO", "4") + "1", 4),
    ("GPUS=${1:-4}\ntorchrun --nproc_per_node $GPUS" + ARGS.replace("$MICRO", "4") + "1", 4),
    ("trl sft --model_name_or_path x --dataset_name y --num_processes 4 --learning_rate 1e-5 --max_steps 9 "
     "--per_device_train_batch_size 4", 4),
])  # fmt: skip
def test_processes_are_read_where_a_script_says_them(text, devices, tmp_path):
    found = load_alone(tmp_path, text)
    assert found.recipe.batch.devices == devices
    assert [row.becomes for row in found.at(devices=8).rows if row.path == "batch.devices"] == [8]


def load_alone(folder, text):
    (folder / "a.sh").write_text(text)
    return load(folder / "a.sh")


def test_a_launcher_without_a_number_is_pointed_at(tmp_path):
    text = HF.replace("4 t.py", "$(nvidia-smi -L | wc -l) t.py")
    found = loaded(tmp_path, "a.sh", text)
    assert any("no number of the launcher says its GPUs" in note for note in found.ledger.notes)


@pytest.mark.parametrize(("name", "text", "flag"), [
    # timm knows no underscores, draccus no list of two words
    ("a.sh", "torchrun --nproc_per_node 8 train.py /d --model r --opt sgd --sched cosine --epochs 9 -b 64 --lr 0.1",
     " --warmup-lr 1.9e-05"),
    ("b.sh", "lerobot-train --policy.type=diffusion --batch_size=8 --steps=20000",
     " --policy.optimizer_betas '[0.9025,0.998001]'"),
])  # fmt: skip
def test_a_flag_is_added_as_its_program_takes_it(name, text, flag, tmp_path):
    found = loaded(tmp_path, name, text)
    planned = found.at(found.recipe.batch.size * 2, **({} if name == "b.sh" else {"devices": 16})).text()
    assert flag.replace("1.9e-05", "3.8e-05") in planned
    (tmp_path / "there.sh").write_text(planned)
    assert load(tmp_path / "there.sh").recipe.batch.size == found.recipe.batch.size * 2


def test_nanochat_without_a_decay_is_planned(tmp_path):
    text = (
        "torchrun --nproc_per_node=8 -m scripts.base_train -- --depth=20 --total-batch-size=524288 "
        "--num-iterations=21400 --weight-decay 0.0"
    )
    made = loaded(tmp_path, "a.sh", text).at(1048576)
    assert becomes(made)["num_iterations"] == 10700


def test_verls_rollouts_hold_what_was_drawn_for_them(tmp_path):
    text = (
        "python3 -m verl.trainer.main_ppo data.train_batch_size=1024 data.gen_batch_size=2048 "
        "actor_rollout_ref.actor.ppo_mini_batch_size=256 actor_rollout_ref.rollout.n=5 "
        "trainer.total_training_steps=600 actor_rollout_ref.actor.optim.lr=1e-6 trainer.n_gpus_per_node=8 "
        "trainer.critic_warmup=10 "
        "actor_rollout_ref.actor.optim.total_training_steps=300"
    )
    made = loaded(tmp_path, "a.sh", text).at(640)  # 128 prompts of 5 responses in one update, 4 updates of a rollout
    changed = becomes(made)
    wanted = {"data.train_batch_size": 512, "data.gen_batch_size": 1024, "trainer.critic_warmup": 20}
    wanted |= {"actor_rollout_ref.actor.optim.total_training_steps": 600, "trainer.total_training_steps": 1200}
    assert {key: changed.get(key) for key in wanted} == wanted


FIT = "python main.py fit --model m.M --trainer.devices 4 --trainer.max_steps 1000 --data.batch_size 32 "
HYDRA = (
    "defaults:\n  - {}\n  - _self_\ndata: {{train_batch_size: 1024}}\n"
    "trainer: {{n_gpus_per_node: 8, total_epochs: 15}}\n"
    "actor_rollout_ref: {{actor: {{ppo_mini_batch_size: 256, optim: {{lr: 1.0e-06}}}}, rollout: {{n: 5}}}}\n"
)
TITAN = (
    "NGPU=8 CONFIG_FILE=./c.toml ./run_train.sh --training.local_batch_size 2 --training.steps 900 --optimizer.lr 3e-4"
)


@pytest.mark.parametrize(("flags", "name", "head"), [
    ("--optimizer AdamW --optimizer.lr 0.001", "adamw", "optimizer"),  # jsonargparse fills init_args in
    ("--optimizer torch.optim.AdamW --optimizer.init_args.lr 0.001", "adamw", "optimizer.init_args"),
    ("--optimizer.lr=0.001 --optimizer=SGD", "sgd", "optimizer"),
])  # fmt: skip
def test_a_class_and_its_arguments_by_flags_of_their_own(flags, name, head, tmp_path):
    (tmp_path / "a.sh").write_text(FIT + flags)
    found = load(tmp_path / "a.sh")
    assert found.recipe.optimizer.name == name
    made = found.at(devices=16)
    assert becomes(made)[f"{head}.lr"] == pytest.approx(0.002 if name == "adamw" else 0.004)
    (tmp_path / "b.sh").write_text(made.text())
    assert load(tmp_path / "b.sh").recipe.optimizer.betas == made.recipe.optimizer.betas or name == "sgd"


@pytest.mark.parametrize(("name", "text", "asked"), [
    ("a.yaml", HYDRA.format("my_base"), "Hydra composes the file with my_base"),
    ("b.sh", TITAN, "the command lays its flags over ./c.toml"),
])  # fmt: skip
def test_a_config_below_the_file_is_asked_about(name, text, asked, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=asked):
        load(tmp_path / name, data_size=1000)
    assert load(tmp_path / name, data_size=1000, set={"rests_on": "nothing"}).recipe.batch.devices == 8


def test_verls_own_defaults_are_known(tmp_path):
    (tmp_path / "a.yaml").write_text(HYDRA.format("ppo_trainer"))
    assert load(tmp_path / "a.yaml", data_size=1000).recipe.batch.size == 1280


def test_a_switch_of_another_optimizer_is_read(tmp_path):
    text = "per_device_train_batch_size: 1\nlearning_rate: 1.0e-4\nmax_steps: 100\n{}: true\n"
    found = loaded(tmp_path, "a.yaml", text.format("use_muon"))
    assert found.recipe.optimizer.name == "muon"
    (tmp_path / "b.yaml").write_text(text.format("use_badam"))
    with pytest.raises(InputError, match="use_badam = 'badam' has no rules of its own here"):
        load(tmp_path / "b.yaml", devices=8)


@pytest.mark.parametrize("count", ["$SLURM_GPUS_ON_NODE", "gpu"])
def test_processes_for_every_card_are_those_that_slurm_gives(count, tmp_path):
    head = "#SBATCH --nodes=2 --ntasks-per-node=1\n#SBATCH --gres=gpu:8\nsrun torchrun --nnodes $SLURM_NNODES "
    (tmp_path / "a.sh").write_text(f"{head}--nproc_per_node {count}{ARGS.replace('$MICRO', '4')}1")
    found = load(tmp_path / "a.sh")
    assert found.recipe.batch.devices == 16
    assert becomes(found.at(devices=32))["sbatch.nodes"] == 4
