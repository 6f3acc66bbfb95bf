"""Keys that once passed in silence while they changed the batch, the clock or an average; a line a key."""

import pytest
from tests.formats.answering import loaded

from isobatch import cli
from isobatch.errors import InputError
from isobatch.formats import Unanswered, check, load

HF = "per_device_train_batch_size: 64\nlearning_rate: 1.0e-4\nmax_steps: 1000\n"
AXOLOTL = "base_model: x\nmicro_batch_size: 2\nnum_epochs: 3\nlearning_rate: 0.0002\nwarmup_steps: 100\n"
TUNE = "batch_size: 4\nepochs: 3\noptimizer: {_component_: torch.optim.AdamW, lr: 2.0e-5}\n"
TITAN = (
    "[training]\nlocal_batch_size = 1\nseq_len = 2048\nsteps = 1000\n[optimizer]\nname = 'AdamW'\nlr = 3e-4\n"
    "[lr_scheduler]\nwarmup_steps = 100\n"
)
RUN = "torchrun --nproc_per_node 8 {}"
MEGATRON = RUN.format("pretrain_gpt.py --micro-batch-size 4 --lr 1e-4 --train-iters 1000 --seq-length 64 ")
VERL = (
    "python3 -m verl.trainer.main_ppo data.train_batch_size=256 actor_rollout_ref.actor.ppo_mini_batch_size=64 "
    "actor_rollout_ref.actor.optim.lr=1e-6 trainer.n_gpus_per_node=8 trainer.total_epochs=15 "
)
CLI = (
    "trainer: {{devices: 4, max_epochs: 10, {}}}\nmodel: {{class_path: m.M}}\n"
    "optimizer: {{class_path: torch.optim.AdamW, init_args: {{lr: 1.0e-3}}}}\n"
    "lr_scheduler: {{class_path: torch.optim.lr_scheduler.{}}}\ndata: {{init_args: {{batch_size: 32}}}}\n"
)
COSINE = "CosineAnnealingLR, init_args: {T_max: 10}"
MM = (
    "train_dataloader = dict(batch_size=2, {})\ntrain_cfg = dict(by_epoch=True, max_epochs=12)\ncustom_hooks = [{}]\n"
    "optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.02, momentum=0.9, weight_decay=0.0001))\n"
    "model = dict({})\ndefault_hooks = dict({})\n"
)
OLMO = (
    "train_module:\n  rank_microbatch_size: 16384\n  optim: {{_CLASS_: x.AdamWConfig, lr: 4.0e-4}}\n"
    "  scheduler: {{_CLASS_: x.CosWithWarmup, warmup: 2000{}}}\ndata_loader: {{global_batch_size: 4194304}}\n"
    "trainer:\n  max_duration: {{value: 100000, unit: steps}}\n{}\n"
)
EDM2 = RUN.format("train_edm2.py --outdir=o --data=x.zip --preset={} ")
SOLVER = "SOLVER:\n  IMS_PER_BATCH: 16\n  BASE_LR: 0.02\n  STEPS: (60000, 80000)\n  MAX_ITER: 90000\n{}\n"


def becomes(made):
    return {row.key: row.becomes for row in made.rows}


@pytest.mark.parametrize(("name", "text", "devices", "batch"), [
    # devices that hold one model take the same samples: 8 processes of 2 are 4 models
    ("a.sh", RUN.format("t.py --per_device_train_batch_size 4 --learning_rate 1e-4 --max_steps 9 --tp_size 2"), 4, 16),
    ("b.sh", RUN.format("t.py --per_device_train_batch_size 4 --learning_rate 1e-4 --max_steps 9 "
                        "--context_parallel_size 2 --vllm_tensor_parallel_size 4"), 4, 16),
    ("c.yaml", CLI.format("strategy: {init_args: {tensor_parallel_size: 2}}", COSINE), 2, 64),
    ("d.sh", VERL + "actor_rollout_ref.actor.ulysses_sequence_parallel_size=2 "
                    "actor_rollout_ref.rollout.tensor_model_parallel_size=4", 4, 64),
    # Slurm's nodes, by flag or at the head of the script
    ("i.sh", "srun -N 2 --gpus-per-node=8 python t.py --per_device_train_batch_size 4 --learning_rate 1e-4 "
             "--max_steps 9", 16, 64),
    ("j.sh", "srun -N2 --gpus-per-node=8 python t.py --per_device_train_batch_size 4 --learning_rate 1e-4 "
             "--max_steps 9", 16, 64),
    ("k.sh", "#SBATCH --nodes=2\nsrun torchrun --nproc_per_node 8 t.py --per_device_train_batch_size 4 "
             "--learning_rate 1e-4 --max_steps 9", 16, 64),
    # a batch that is dealt out is that of all devices, whatever its name says
    ("e.yaml", HF + "accelerator_config: {split_batches: true}\n", 8, 64),
    ("f.yaml", HF + "accelerator_config: {split_batches: false}\n", 8, 512),
    ("l.sh", RUN.format("t.py --per_device_train_batch_size 64 --learning_rate 1e-4 --max_steps 9 "
                        "--accelerator_config '{\"split_batches\": true}'"), 8, 64),
    # what Megatron takes where nobody states a global batch; what DeepSpeed fills in between two
    ("g.sh", MEGATRON, 8, 32),
    ("h.json", '{"train_batch_size": 64, "train_micro_batch_size_per_gpu": 4, "optimizer": {"type": "Adam", '
               '"params": {"lr": 0.001}}}', 16, 64),
])  # fmt: skip
def test_the_batch_is_that_of_the_devices_that_see_samples_of_their_own(name, text, devices, batch, tmp_path):
    found = loaded(tmp_path, name, text).recipe.batch
    assert (found.devices, found.size) == (devices, batch)


@pytest.mark.parametrize(("text", "name"), [
    (AXOLOTL + "sequence_parallel_degree: 4\n", "a.yaml"), (TUNE + "tensor_parallel_dim: 4\n", "b.yaml"),
    (HF + "parallelism_config: {tp_size: 2, cp_size: 2}\n", "c.yaml"),
    (TITAN + "[experimental]\ncontext_parallel_degree = 2\npipeline_parallel_degree = 2\n", "d.toml"),
])  # fmt: skip
def test_whoever_is_asked_for_devices_is_told_which_of_them_count_once(text, name, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(Unanswered, match=r"GPUs / 4"):
        load(tmp_path / name, data_size=1000)


@pytest.mark.parametrize(("name", "text", "devices", "want"), [
    # an epoch of so many passes holds as many samples on other devices
    ("a.yaml", CLI.format("limit_train_batches: 500", COSINE), 8, {"trainer.limit_train_batches": 250}),
    ("b.yaml", CLI.format("limit_train_batches: 0.5", COSINE), 8, {}),
    ("c.py", MM.format("num_batch_per_epoch=1000", "", "", ""), 4, {"train_dataloader.num_batch_per_epoch": 2000}),
    # rates that stand beside the peak keep their share of it: here it moves by sqrt(2), 2 and sqrt(2)
    ("d.yaml", CLI.format("min_epochs: 1", "CosineAnnealingLR, init_args: {T_max: 10, eta_min: 1.0e-5}"), 8,
     {"lr_scheduler.init_args.eta_min": 1.41421356237e-5}),
    ("e.yaml", CLI.format("min_epochs: 1", "ReduceLROnPlateau, init_args: {patience: 3, min_lr: 1.0e-6}"), 8,
     {"lr_scheduler.init_args.min_lr": 1.41421356237e-6}),
    # periods in steps
    ("f.yaml", CLI.format("callbacks: [{class_path: l.ModelCheckpoint, init_args: {every_n_train_steps: 100}}]",
                          COSINE), 8, {"trainer.callbacks[0].init_args.every_n_train_steps": 50}),
    ("k.yaml", CLI.format("val_check_interval: 300", COSINE), 8, {"trainer.val_check_interval": 150}),
    # averages by other names: 1 - momentum is a decay, (1 - 0.001)**0.5
    ("g.yaml", CLI.format("callbacks: [{class_path: my.WeightEma, init_args: {decay: 0.99}}]", COSINE), 8,
     {"trainer.callbacks[0].init_args.decay": 0.9801}),
    ("h.py", MM.format("", "dict(type='MeanTeacherHook', momentum=0.001)", "", ""), 4,
     {"custom_hooks[0].momentum": 1 - 0.999**0.5}),
    ("i.py", MM.format("", "", "", "checkpoint=dict(type='CheckpointHook', interval=500, by_epoch=False)"), 4,
     {"default_hooks.checkpoint.interval": 1000}),
    # what a saved file says of its devices follows them
    ("j.yaml", "batch_size: 8\nlr: 0.1\nopt: sgd\nmodel: resnet50\nepochs: 9\nsched: cosine\nworld_size: 8\n", 16,
     {"world_size": 16}),
])  # fmt: skip
def test_what_counts_passes_steps_and_shares_moves_with_the_devices(name, text, devices, want, tmp_path):
    changed = becomes(loaded(tmp_path, name, text).at(devices=devices))
    assert {key: changed.get(key) for key in want} == pytest.approx(want)
    assert want or "trainer.limit_train_batches" not in changed


@pytest.mark.parametrize(("name", "text", "want"), [
    ("a.yaml", TUNE + "save_every_n_steps: 500\nrun_val_every_n_steps: 100\n",
     {"save_every_n_steps": 250, "run_val_every_n_steps": 50}),
    ("b.sh", VERL + "trainer.save_freq=20 trainer.test_freq=-1", {"trainer.save_freq": 10}),
    ("c.sh", "lerobot-train --policy.type=act --batch_size=8 --steps=1000 --eval_freq=200", {"eval_freq": 100}),
    ("d.sh", RUN.format("-m scripts.base_train --total-batch-size=524288 --num-iterations=9000 "
                        "--core-metric-every 2000"), {"core_metric_every": 1000}),
    ("e.sh", "accelerate launch --num_processes 4 train_text_to_image.py --pretrained_model_name_or_path=x "
             "--train_batch_size=8 --max_train_steps=900 --validation_steps 100", {"validation_steps": 50}),
    ("f.sh", MEGATRON + "--global-batch-size 64 --exit-interval 500", {"exit_interval": 250}),
    ("g.yaml", OLMO.format(", warmup_min_lr: 1.0e-5", "  hard_stop: {value: 5000, unit: steps}"),
     {"train_module.scheduler.warmup_min_lr": 1.41421356237e-5, "trainer.hard_stop.value": 2500}),
    ("k.sh", RUN.format("-m open_clip_train.main --train-num-samples 99999 --batch-size 320 --epochs 9 --warmup 20 "
                        "--lr-cooldown-end 1e-6 --lr-scheduler const-cooldown --epochs-cooldown 3"),
     {"lr_cooldown_end": 1.41421356237e-6}),
    # EDM2's presets hold rates and decays of their own; counts of images may be powers of two
    ("h.sh", EDM2.format("edm2-img512-m"), {"lr": 0.009 * 2**0.5, "decay": 35000}),
    ("i.sh", EDM2.format("edm2-img64-l") + "--batch=2Ki --duration 1Gi", {"batch": 4096, "decay": 17500}),
    ("j.yaml", "lr0: 0.001\nmomentum: 0.9\nepochs: 9\nbatch: 64\nnbs: 64\noptimizer: AdamW\nwarmup_bias_lr: 0.1\n",
     {"warmup_bias_lr": 0.141421356237}),
])  # fmt: skip
def test_what_counts_steps_moves_with_the_batch(name, text, want, tmp_path):
    found = loaded(tmp_path, name, text)
    changed = becomes(found.at(found.recipe.batch.size * 2))
    assert {key: changed.get(key) for key in want} == pytest.approx(want)


@pytest.mark.parametrize(("name", "text", "key"), [
    ("a.py", MM.format("", "dict(type='SwitchEMAHook', momentum=0.0002)", "", ""), "custom_hooks[0].momentum"),
    ("b.py", MM.format("", "", "type='BYOL', base_momentum=0.99", ""), "model.base_momentum"),
    ("c.py", MM.format("", "", "norm_cfg=dict(type='BN', momentum=0.03)", ""), "model.norm_cfg.momentum"),
    ("d.yaml", SOLVER.format("MODEL: {EMA: {DECAY: 0.999}}"), "MODEL.EMA.DECAY"),
    ("e.yaml", SOLVER.format("  IMG_PER_BATCH_LABEL: 4"), "SOLVER.IMG_PER_BATCH_LABEL"),
    ("f.yaml", CLI.format("callbacks: [{class_path: my.Warm, init_args: {warmup_steps: 99}}]", COSINE),
     "trainer.callbacks[0].init_args.warmup_steps"),
    ("g.yaml", CLI.format("overfit_batches: 10", COSINE), "trainer.overfit_batches"),
    ("h.yaml", OLMO.format("", "  callbacks: {b: {_CLASS_: x.EMACallback, decay: 0.99}}"), "trainer.callbacks.b"),
    ("i.yaml", "global_train_batch_size: 256\nmax_duration: 1000ba\noptimizer: {name: decoupled_adamw, lr: 6.0e-4}\n"
               "scheduler: {name: cosine_with_warmup, t_warmup: 100ba}\ntrain_subset_num_batches: 100\n",
     "train_subset_num_batches"),
    ("j.yaml", "global_train_batch_size: 256\nmax_duration: 1000ba\noptimizer: {name: decoupled_adamw, lr: 6.0e-4}\n"
               "scheduler: {name: cosine_with_warmup, t_warmup: 100ba}\ncallbacks: {early_stopper: {patience: 10ba}}\n",
     "callbacks.early_stopper.patience"),
])  # fmt: skip
def test_what_acts_and_is_not_read_is_named_wherever_it_stands(name, text, key, tmp_path):
    assert key in {item.key for item in loaded(tmp_path, name, text).ledger.unread}


def test_a_span_that_was_read_is_not_called_unread(tmp_path):
    text = MEGATRON + "--global-batch-size 64 --lr-decay-style WSD --lr-wsd-decay-samples 6400"
    assert loaded(tmp_path, "a.sh", text).ledger.lossless


def test_megatron_states_a_batch_that_no_longer_follows_from_the_devices(tmp_path):
    found = loaded(tmp_path, "a.sh", MEGATRON)
    assert "global_batch_size" not in becomes(found.at(devices=16))  # 4 on each of 16 devices
    assert found.at(devices=16).recipe.batch.size == 64
    assert becomes(found.at(128))["global_batch_size"] == 128  # 4 passes of 8 devices
    (tmp_path / "b.sh").write_text(found.at(128).text())
    assert load(tmp_path / "b.sh").recipe.batch.size == 128


@pytest.mark.parametrize(("more", "devices", "said"), [
    ('"gradient_accumulation_steps": 1, ', 8, "is not train_micro_batch_size_per_gpu=4 x gradient_accumulation"),
    ("", 12, "is no multiple of"),
])  # fmt: skip
def test_batches_that_contradict_each_other_are_refused(more, devices, said, tmp_path):
    text = '{"train_batch_size": 64, %s"train_micro_batch_size_per_gpu": 4, "optimizer": {"params": {"lr": 0.001}}}'
    (tmp_path / "a.json").write_text(text % more)
    with pytest.raises(InputError, match=said):
        load(tmp_path / "a.json", devices=devices, format="deepspeed")


def test_devices_that_contradict_the_file_are_named(tmp_path):
    text = RUN.format("t.py --per_device_train_batch_size 4 --learning_rate 1e-4 --max_steps 1000")
    found = loaded(tmp_path, "a.sh", text, devices=16)
    assert any("itself says 8 devices" in note for note in found.ledger.notes)
    assert not any("itself says" in note for note in loaded(tmp_path, "a.sh", text, devices=8).ledger.notes)


@pytest.mark.parametrize("text", [
    "torchrun --nproc_per_node=8 train.py -c args.yaml --lr 0.1 --batch-size 64 --sched cosine --epochs 90",
    "llamafactory-cli train a.yaml learning_rate=1e-5 per_device_train_batch_size=4 max_steps=100",
    "composer train.py yamls/mpt-7b.yaml global_train_batch_size=256 optimizer.lr=1e-4 max_duration=100ba",
    MEGATRON + "--yaml-cfg a.yaml",
    "torchrun --nproc_per_node=8 train.py config/train_gpt2.py --block_size=1024 --max_iters=900 --lr_decay_iters=900 "
    "--warmup_iters=90",
    VERL + "--config-name=mine",
])  # fmt: skip
def test_a_command_is_asked_what_it_takes_from_a_config(text, tmp_path):
    (tmp_path / "a.sh").write_text(text)
    with pytest.raises(Unanswered, match="rests_on: the command lays its flags over"):
        load(tmp_path / "a.sh", devices=8, data_size=1000)
    found = load(tmp_path / "a.sh", devices=8, data_size=1000, set={"rests_on": "nothing"})
    (tmp_path / "b.sh").write_text(found.at(found.recipe.batch.size * 2).text())
    assert load(tmp_path / "b.sh").recipe.batch.size == found.recipe.batch.size * 2  # answered once


def test_a_command_that_says_little_points_to_its_config(tmp_path):
    (tmp_path / "a.sh").write_text(
        "torchrun --nproc_per_node 8 tools/train.py configs/a.py --launcher pytorch --seed 3"
    )
    with pytest.raises(InputError, match=r"takes its recipe from configs/a.py"):
        load(tmp_path / "a.sh")


def test_a_program_that_only_speaks_like_timm_is_asked_about(tmp_path):
    text = RUN.format(
        "main.py --model deit_small --batch-size 256 --lr 5e-4 --sched cosine --opt adamw --drop-path 0.1"
    )
    (tmp_path / "a.sh").write_text(text)
    with pytest.raises(Unanswered, match=r"trainer: main.py is not timm's train.py"):
        load(tmp_path / "a.sh", data_size=1000)
    assert load(tmp_path / "a.sh", data_size=1000, set={"trainer": "timm"}).recipe.batch.size == 2048
    (tmp_path / "a.sh").write_text(text.replace("main.py", "train.py"))
    assert load(tmp_path / "a.sh", data_size=1000).recipe.batch.size == 2048


def test_a_config_of_the_launcher_or_of_the_data_is_not_the_recipe(tmp_path):
    for text in (
        "accelerate launch --num_processes 8 --config_file zero3.yaml t.py --per_device_train_batch_size 4 "
        "--learning_rate 1e-4 --max_steps 9",
        "yolo detect train data=coco.yaml model=yolo11s.yaml epochs=5 batch=64 optimizer=AdamW lr0=0.001",
    ):
        assert loaded(tmp_path, "a.sh", text).recipe.batch.size


def test_a_loop_of_accelerate_has_no_flags_of_the_trainer(tmp_path):
    text = (
        "accelerate launch --num_processes 8 run_clm_no_trainer.py --per_device_train_batch_size 4 "
        "--learning_rate 5e-5 --max_train_steps 1000 --num_warmup_steps 100 --lr_scheduler_type linear"
    )
    made = loaded(tmp_path, "a.sh", text).at(devices=16)
    assert made.ledger.lossless
    assert becomes(made) == pytest.approx({"launcher.num_processes": 16, "learning_rate": 7.0710678e-5,
                                           "max_train_steps": 500, "num_warmup_steps": 50})  # fmt: skip
    unsaid = {row.path: row.becomes for row in made.unsaid}
    assert unsaid["optimizer.betas[0]"] == pytest.approx(0.81)
    assert made.recipe.optimizer.clip is None


def test_swift_has_defaults_of_its_own(tmp_path):
    text = "NPROC_PER_NODE=4 swift sft --per_device_train_batch_size 1 --learning_rate 1e-4 --num_train_epochs 1 "
    found = loaded(tmp_path, "a.sh", text + "--gradient_accumulation_steps 4").recipe
    assert (found.batch.size, found.optimizer.betas, found.optimizer.weight_decay) == (16, (0.9, 0.95), 0.1)
    (tmp_path / "b.sh").write_text(text)
    with pytest.raises(Unanswered, match="gradient_accumulation_steps: swift takes"):
        load(tmp_path / "b.sh", data_size=1000)


SCRIPT = (
    "args = {}('out', per_device_train_batch_size=BS, max_steps=100, learning_rate={})\ntrainer = Trainer(m, args)\n"
)


def test_a_script_is_read_by_the_arguments_that_it_builds(tmp_path):
    text = "BS = 4\nlearning_rate = 9.0\n" + SCRIPT.format("transformers.TrainingArguments", "2e-5 * 2")
    found = loaded(tmp_path, "a.py", text)
    assert (found.recipe.batch.size, found.recipe.optimizer.lr) == (32, 4e-5)
    assert found.ledger.lossless, found.ledger.unread
    planned = found.at(devices=16).text()
    assert "learning_rate = 9.0\n" in planned  # another number of that name
    assert "max_steps=50, learning_rate=5.65685424949238e-05, adam_beta1=0.81, adam_beta2=0.998001" in planned


@pytest.mark.parametrize("text", [
    SCRIPT.format("SFTConfig", "rate"),
    "rate = 1.0\nfor rate in (1e-4, 2e-4):\n    pass\n" + SCRIPT.format("SFTConfig", "rate"),
])  # fmt: skip
def test_a_script_is_asked_for_what_it_computes(text, tmp_path):
    (tmp_path / "a.py").write_text("BS = 4\n" + text)
    with pytest.raises(Unanswered, match="learning_rate: the file computes it"):
        load(tmp_path / "a.py", devices=8)
    (tmp_path / "a.py").write_text("a = SFTConfig('x', per_device_train_batch_size=4, max_steps=9)\n")
    with pytest.raises(Unanswered, match="learning_rate: each trainer has a default of its own"):
        load(tmp_path / "a.py", devices=8)


@pytest.mark.parametrize("text", [
    "a = TrainingArguments('x', per_device_train_batch_size=4, max_steps=9, **more)\n",
    "a = TrainingArguments('x', per_device_train_batch_size=4)\nb = TrainingArguments('y', max_steps=8)\n",
])  # fmt: skip
def test_a_script_that_hides_or_doubles_its_arguments_is_not_guessed_at(text, tmp_path):
    (tmp_path / "a.py").write_text(text)
    with pytest.raises(InputError, match="looks like none"):
        load(tmp_path / "a.py", devices=8)


def test_an_answer_may_be_given_in_either_place(tmp_path):
    (tmp_path / "a.yaml").write_text(HF.replace("max_steps: 1000", "num_train_epochs: 1"))
    found = load(tmp_path / "a.yaml", set={"devices": 8, "data_size": 1000})
    assert (found.recipe.batch.size, found.recipe.data_size) == (512, 1000)


def test_milestones_that_were_made_whole_come_back(tmp_path):
    found = loaded(tmp_path, "a.yaml", SOLVER.format(""))
    there = found.at(48)  # 80000/3 is no whole iteration
    assert becomes(there)["SOLVER.STEPS"] == "(20000, 26667)"
    (tmp_path / "b.yaml").write_text(there.text())
    assert becomes(load(tmp_path / "b.yaml").at(16))["SOLVER.STEPS"] == "(60000, 80000)"
    (tmp_path / "b.yaml").write_text(there.text().replace("26667", "27000"))  # edited since
    assert becomes(load(tmp_path / "b.yaml").at(16))["SOLVER.STEPS"] == "(60000, 81000)"


@pytest.mark.parametrize(("name", "text", "want"), [
    # at twice the batch: the centre of a teacher is an average of 0.9 a step, a ramp of 2000 updates takes half of them
    ("a.sh", RUN.format("main_dino.py --arch vit_small --batch_size_per_gpu 64 --momentum_teacher 0.996"),
     {"centre": 0.81}),
    ("b.yaml", "lr0: 0.01\nepochs: 9\nbatch: 64\nnbs: 64\noptimizer: SGD\nimgsz: 640\n",
     {"ema.decay": 0.9999**2, "ema.ramp.tau": 1000}),
    ("c.yaml", HF + "optim: rmsprop\n", {"optimizer.alpha": 0.9801, "optimizer.eps": 7.0710678e-9}),
])  # fmt: skip
def test_a_constant_of_the_code_that_would_have_to_move_is_listed(name, text, want, tmp_path):
    found = loaded(tmp_path, name, text)
    devices = found.recipe.batch.devices if found.ledger.accumulates else found.recipe.batch.devices * 2
    unsaid = {row.path: row for row in found.at(found.recipe.batch.size * 2, devices=devices).unsaid}
    assert {key: unsaid[key].becomes for key in want} == pytest.approx(want)
    assert all(row.rule and row.because for row in unsaid.values())


@pytest.mark.parametrize(("name", "text", "want"), [
    # (moments, eps, decay) that the optimizer's own code takes
    ("a.yaml", "batch_size: 8\nlr: 0.1\nopt: {}\nmodel: resnet50\nepochs: 9\nsched: cosine\n",
     {"lamb": ((0.9, 0.999), 1e-6, 2e-5), "lion": ((0.9, 0.99), 1e-8, 2e-5), "adamw": ((0.9, 0.999), 1e-8, 2e-5)}),
    ("b.yaml", "trainer: {{devices: 4, max_steps: 10}}\nmodel: {{class_path: m.M}}\n"
               "data: {{init_args: {{batch_size: 32}}}}\noptimizer: {{class_path: x.{}, init_args: {{lr: 1.0e-3}}}}\n",
     {"Lamb": ((0.9, 0.999), 1e-6, 0.0), "Lion": ((0.9, 0.99), 1e-8, 0.0), "AdamW": ((0.9, 0.999), 1e-8, 0.01)}),
    ("c.yaml", "global_train_batch_size: 256\nmax_duration: 1000ba\noptimizer: {{name: {}, lr: 6.0e-4}}\n"
               "scheduler: {{name: cosine_with_warmup, t_warmup: 100ba}}\n",
     {"decoupled_adamw": ((0.9, 0.95), 1e-8, 1e-5), "decoupled_lionw": ((0.9, 0.99), 1e-8, 0.0)}),
    ("d.yaml", "batch_size: 4\nmax_steps_per_epoch: 10\noptimizer: {{_component_: x.{}, lr: 2.0e-5}}\n",
     {"AdamW": ((0.9, 0.999), 1e-8, 0.01), "Lion": ((0.9, 0.99), 1e-8, 0.0)}),
])  # fmt: skip
def test_what_a_silent_file_takes_is_what_its_optimizer_takes(name, text, want, tmp_path):
    for word, numbers in want.items():
        found = loaded(tmp_path, name, text.format(word)).recipe.optimizer
        assert (found.betas, found.eps, found.weight_decay) == numbers, word


TIMM = "batch_size: 128\nlr: 0.1\nopt: sgd\nmodel: resnet50\nepochs: 90\nsched: cosine\nmomentum: 0.9\n"
COMPOSER = (
    "global_train_batch_size: 256\nmax_duration: 1000ba\noptimizer: {name: decoupled_adamw, lr: 6.0e-4}\n"
    "scheduler: {name: cosine_with_warmup, t_warmup: 100ba}\n"
)


@pytest.mark.parametrize(("text", "change", "key"), [
    (TIMM, ("", ""), None), (COMPOSER, ("", ""), None), (HF.replace("1000", "12\nwarmup_steps: 3"), ("", ""), None),
    (COMPOSER, ("500ba", "900ba"), "max_duration"),
    (TIMM, ("cosine", "step"), "curves.lr"), (TIMM, ("opt: sgd", "opt: lion"), "optimizer.name"),
    (TIMM, ("opt: sgd", "opt: momentum"), "optimizer.nesterov"), (TIMM, ("sched", "clip_grad: 1.0\nsched"),
                                                                 "optimizer.clip"),
    (TIMM, ("sched", "model_ema: true\nsched"), "ema.decay"), (TIMM, ("epochs: 90", "epochs: 80"), "epochs"),
    (TIMM, ("sched", "bn_momentum: 0.05\nsched"), "batch_norm.momentum"),
    (HF + "lr_scheduler_type: cosine\n", ("cosine", "linear"), "curves.lr"),
    (HF, ("max_steps", "mm_projector_lr: 1.0e-5\nmax_steps"), "groups[0].lr"),
])  # fmt: skip
def test_a_check_sees_more_than_the_keys_that_the_reference_has(text, change, key, tmp_path):
    reference = loaded(tmp_path, "a.yaml", text)
    planned = reference.at(reference.recipe.batch.size * 2).text()
    (tmp_path / "b.yaml").write_text(planned.replace(*change))
    found = [departure.key for departure in check(load(tmp_path / "b.yaml"), reference)]
    assert (key in found) if key else found == []


@pytest.mark.parametrize(("options", "said"), [
    ("--reference REF --devices 8", "--reference is what --check compares with"),
    ("--check --reference REF --devices 8 --patch", "leave --patch out"),
    ("--check --reference REF --devices 8 --batch-size 4 --diff", "leave --batch-size and --diff out"),
])  # fmt: skip
def test_options_that_would_be_ignored_are_refused(options, said, tmp_path, capsys):
    (tmp_path / "a.yaml").write_text(HF)
    words = [str(tmp_path / "a.yaml"), *options.replace("REF", str(tmp_path / "a.yaml")).split()]
    assert cli.run(["plan", *words]) == 2
    assert said in capsys.readouterr().err
    assert (tmp_path / "a.yaml").read_text() == HF
