"""Kinds of files that real stacks have: each line is one that was once read or written wrongly."""

import pytest
from tests.formats.answering import loaded

from isobatch.errors import InputError
from isobatch.formats import load

HF = "per_device_train_batch_size: 8\nlearning_rate: 1.0e-4\nmax_steps: 1000\n"


def rows(made):
    return {row.key: row.becomes for row in made.rows}


@pytest.mark.parametrize(("name", "text", "want"), [
    # rates beside learning_rate are rates
    ("a.sh", "deepspeed t.py --per_device_train_batch_size 16 --learning_rate 2e-4 --mm_projector_lr 2e-5 "
             "--max_steps 9", {"groups[0].lr": 2e-5, "batch.size": 128}),
    # a script that trains a probe by LARS, whatever its sisters do
    ("b.sh", "python submitit_linprobe.py --nodes 4 --batch_size 512 --blr 0.1 --epochs 90",
     {"optimizer.name": "lars", "batch.size": 16384, "optimizer.lr": 6.4}),
    ("c.sh", "python run_with_submitit.py --nodes 2 --ngpus 8 --arch vit_small --batch_size_per_gpu 64 "
             "--warmup_teacher_temp_epochs 30 --epochs 800", {"batch.size": 1024}),
    # each example script has defaults of its own
    ("d.sh", "accelerate launch --num_processes 2 train_unconditional.py --train_batch_size=16 "
             "--num_epochs=9 --use_ema",
     {"optimizer.betas[0]": 0.95, "optimizer.weight_decay": 1e-6, "ema.ramp.power": 0.75}),
    ("e.sh", "torchrun --nproc_per_node=8 train.py --outdir=o --data=cifar10.zip --cond=1 --arch=ddpmpp",
     {"batch.size": 512, "optimizer.lr": 1e-3}),
    # an optimizer that the project adds to the solver
    ("f.yaml", "SOLVER:\n  IMS_PER_BATCH: 16\n  BASE_LR: 0.0001\n  OPTIMIZER: ADAMW\n  BACKBONE_MULTIPLIER: 0.1\n"
               "  MAX_ITER: 9000\n", {"optimizer.name": "adamw", "groups[0].lr_scale": 0.1}),
    ("g.yaml", "trainer:\n  devices: 4\n  max_epochs: 5\n  accumulate_grad_batches: 2\n  callbacks:\n"
               "  - class_path: lightning.pytorch.callbacks.EMAWeightAveraging\n    init_args: {decay: 0.99}\n"
               "data: {init_args: {batch_size: 32}}\noptimizer: {class_path: torch.optim.SGD, init_args: {lr: 0.1}}\n",
     {"ema.decay": 0.99, "batch.size": 256}),
    # OmegaConf's references, and counts that stand before a command
    ("h.yaml", "variables: {rate: 2.0e-5}\noptimizer: {_component_: torch.optim.AdamW, lr: '${variables.rate}'}\n"
               "batch_size: 2\nmax_steps_per_epoch: 10\nepochs: 1\n", {"optimizer.lr": 2e-5}),
    ("i.sh", "NPROC_PER_NODE=4 llamafactory-cli train --learning_rate 1e-4 --per_device_train_batch_size 2 "
             "--max_steps 9",
     {"batch.size": 8}),
    ("j.sh", "accelerate launch --num_processes=8 $(which lerobot-train) --policy.type=act --batch_size=8 --steps=99",
     {"batch.size": 64}),
    ("k.json", '{"train_batch_size": 64, "optimizer": {"type": "Adam", "params": {"lr": 0.001}}, "scheduler": {}}',
     {"batch.micro": 8}),
])  # fmt: skip
def test_what_is_read(name, text, want, tmp_path):
    recipe = loaded(tmp_path, name, text).recipe
    for path, value in want.items():
        found = recipe
        for part in path.replace("[", ".").replace("]", "").split("."):
            found = found[int(part)] if part.isdigit() else getattr(found, part)
        assert found == (pytest.approx(value, rel=1e-12) if isinstance(value, float) else value), path


@pytest.mark.parametrize(("text", "end"), [
    ("DIR=$1\nA=(--save-interval 10 --save $DIR)\ntorchrun --nproc_per_node 8 pretrain_gpt.py --micro-batch-size 1 "
     "--global-batch-size 64 --lr 1e-4 --train-iters 100 --seq-length 64 ${A[@]}\n", "${A[@]} --weight-decay"),
    ("torchrun --nproc_per_node 8 pretrain_gpt.py --micro-batch-size 1 --global-batch-size 64 --lr 1e-4 "
     "--train-iters 100 --seq-length 64 2>&1 | tee log.txt\n", " 2>&1 | tee log.txt"),
])  # fmt: skip
def test_flags_are_added_to_the_command_itself(text, end, tmp_path):
    planned = loaded(tmp_path, "a.sh", text).at(32).text()
    assert end in planned
    assert "--save-interval 10 --save $DIR" not in text or "--save $DIR)" in planned


def test_a_key_without_a_value_gets_one(tmp_path):
    planned = loaded(tmp_path, "a.yaml", HF + "adam_beta1:\noptim: adamw_torch\nadam_beta2:\n").at(32).text()
    assert "adam_beta1: 0.9" in planned
    assert planned.endswith("\nadam_beta2: 0.999499874937461\nadam_epsilon: 1.4142135623731e-08\n")


def test_what_only_an_included_file_has_is_laid_over_it(tmp_path):
    folder = tmp_path / "configs"
    folder.mkdir()
    (folder / "base.yml").write_text(
        "epoches: 72\ntrain_dataloader:\n  total_batch_size: 16\noptimizer:\n  type: AdamW\n  params:\n"
        "    - params: '^(?=.*backbone).*$'\n      lr: 0.00001\n    - params: 'norm'\n      weight_decay: 0.\n"
        "  lr: 0.0001\n  betas: [0.9, 0.999]\n  weight_decay: 0.0001\nlr_scheduler:\n  type: MultiStepLR\n"
        "  milestones: [1000]\n  gamma: 0.1\n"
    )
    planned = loaded(folder, "a.yml", "__include__: ['./base.yml']\n").at(8).text()
    assert 'params: [{params: "^(?=.*backbone).*$", lr: 7.07106781186548e-06}, {params: norm, weight_decay' in planned
    (folder / "base.py").write_text(
        "train_dataloader = dict(batch_size=2)\ntrain_cfg = dict(type='EpochBasedTrainLoop', max_epochs=12)\n"
        "param_scheduler = [dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=500)]\n"
        "optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.02, momentum=0.9))\n"
    )
    planned = loaded(folder, "b.py", "_base_ = ['./base.py']\n").at(8).text()
    assert "train_dataloader = dict(batch_size=1)\n" in planned
    assert "start_factor=0.001, by_epoch=False, begin=0, end=1000)]" in planned
    assert "optim_wrapper = dict(optimizer=dict(lr=0.005131670194948" in planned


def test_the_critic_of_a_ppo_moves_with_the_actor(tmp_path):
    text = (
        "python3 -m verl.trainer.main_ppo data.train_batch_size=256 actor_rollout_ref.actor.ppo_mini_batch_size=64 "
        "actor_rollout_ref.actor.optim.lr=1e-6 critic.optim.lr=1e-5 critic.ppo_mini_batch_size=32 "
        "trainer.n_gpus_per_node=1 trainer.total_epochs=15"
    )
    changed = rows(loaded(tmp_path, "a.sh", text).at(16))
    assert changed["critic.optim.lr"] == pytest.approx(5e-6)
    assert changed["critic.ppo_mini_batch_size"] == 8


@pytest.mark.parametrize(("name", "text", "said"), [
    ("a.yaml", "optimizer:\n  learning_rate_scheduler: {learning_rate: 3.0e-4}\ntokens: {train_steps: 9}\n",
     "nanotron"),
    ("b.yml", "per_device_batch_size: 12\nlearning_rate: 3.0e-5\nwarmup_steps_fraction: 0.1\n", "MaxText"),
    ("c.yaml", "optimization: {max_update: 9, lr: [0.1]}\nlr_scheduler: {warmup_updates: 3}\n", "fairseq"),
    ("d.sh", "accelerate launch train_network.py --network_module=networks.lora --train_batch_size=2 "
             "--pretrained_model_name_or_path=x --learning_rate=1e-4 --max_train_steps=9", "kohya"),
    ("e.yaml", "steps: 9\noptim: {lr: 3.0e-3, lr_min_ratio: 1.0e-6}\ndata: {batch_size: 4, seq_len: 4096}\n", "lingua"),
    ("f.sh", "llamafactory-cli train examples/sft.yaml\n", "reads its recipe from examples/sft.yaml; plan that file"),
    ("g.json", '{"train_batch_size": "auto", "train_micro_batch_size_per_gpu": "auto", "zero_optimization": {},'
               ' "gradient_accumulation_steps": "auto"}', "the Hugging Face Trainer fills them in"),
])  # fmt: skip
def test_what_is_refused_by_name(name, text, said, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=said):
        load(tmp_path / name, devices=8)


YOLO = "lr0: 0.01\nmomentum: 0.937\nweight_decay: 0.0005\nepochs: 100\nbatch: 16\nnbs: 64\noptimizer: {}\n"


@pytest.mark.parametrize(("optimizer", "decay", "code"), [
    # the gradient is a sum over the batch: what is compared with it moves by kappa more than beside a mean
    ("SGD", 0.0005 * 4, {"optimizer.clip": 10 * 4}),
    ("Adam", 0.0005 * 4, {"optimizer.clip": 10 * 4, "optimizer.eps": 1e-8 * 2}),
    ("NAdam", 0.0005 * 4, {"optimizer.clip": 10 * 4, "optimizer.eps": 1e-8 * 2}),
    ("RMSProp", 0.0005 * 4, {"optimizer.clip": 10 * 4, "optimizer.alpha": 0.99**4}),
    ("AdamW", 0.0005 * 2, {"optimizer.clip": 10 * 4, "optimizer.eps": 1e-8 * 2}),  # of the weights, not beside it
])  # fmt: skip
def test_a_loss_times_the_batch_says_clip_eps_and_l2_in_its_own_unit(optimizer, decay, code, tmp_path):
    made = loaded(tmp_path, "yolo.yaml", YOLO.format(optimizer)).at(256)
    assert rows(made)["weight_decay"] == pytest.approx(decay)
    unsaid = {row.key: row.becomes for row in made.unsaid}
    assert {key: unsaid[key] for key in code} == pytest.approx(code)


@pytest.mark.parametrize(("name", "text", "coupling"), [
    # torch's Adam holds the decay as L2 in its gradient; AdamW, and the fused Adams unless told otherwise, do not
    ("a.yaml", "optimizer: {{class_path: torch.optim.{}, init_args: {{lr: 1.0e-3, weight_decay: 0.1}}}}\n"
               "trainer: {{max_steps: 100, devices: 2}}\ndata: {{init_args: {{batch_size: 8}}}}\n",
     {"Adam": "L2", "AdamW": "apart", "NAdam": "L2", "FusedAdam": "apart"}),
    ("b.yaml", "opt: {}\nlr: 1.0e-3\nweight_decay: 0.1\nepochs: 9\nbatch_size: 8\nsched: cosine\nmodel: resnet50\n",
     {"adam": "L2", "adamw": "apart", "nadam": "L2", "nadamw": "apart", "fusedadam": "L2", "sgd": "L2",
      "sgdw": "apart"}),
    ("c.py", "optim_wrapper = dict(optimizer=dict(type='{}', lr=0.001, weight_decay=0.1))\n"
             "train_cfg = dict(max_epochs=12)\ntrain_dataloader = dict(batch_size=2)\n",
     {"Adam": "L2", "AdamW": "apart"}),
    ("d.toml", "[optimizer]\nname = '{}'\nlr = 3e-4\nweight_decay = 0.1\n[training]\nlocal_batch_size = 1\n"
               "seq_len = 2048\nsteps = 100\n[lr_scheduler]\nwarmup_steps = 5\n", {"Adam": "L2", "AdamW": "apart"}),
    ("e.json", '{{"train_batch_size": 64, "optimizer": {{"type": "{}", "params": {{"lr": 1e-3, "weight_decay": 0.1}}}},'
               '"gradient_clipping": 1.0}}', {"Adam": "apart", "AdamW": "apart"}),
])  # fmt: skip
def test_whether_a_decay_is_l2_is_what_the_stack_means_by_the_name(name, text, coupling, tmp_path):
    for optimizer, how in coupling.items():
        found = loaded(tmp_path, name, text.format(optimizer))
        made = found.at(found.recipe.batch.size * 4)
        old, new = found.recipe.optimizer, made.recipe.optimizer
        want = 0.1 if how == "L2" else 0.1 * 4 * old.lr / new.lr
        assert new.weight_decay == pytest.approx(want), optimizer


@pytest.mark.parametrize(("name", "text", "counts"), [
    ("a.yaml", HF.replace("1000", "1001") + "warmup_steps: 33\nsave_steps: 500\n", {"max_steps", "warmup_steps"}),
    ("b.yaml", "train:\n  batch_size_per_gpu: 64\n  OFFICIAL_EPOCH_LENGTH: 1250\noptim:\n  base_lr: 0.004\n"
               "  epochs: 90\nteacher:\n  momentum_teacher: 0.992\n", {"train.OFFICIAL_EPOCH_LENGTH"}),
    ("c.py", "batch_size = 12\nblock_size = 1024\ngradient_accumulation_steps = 40\nmax_iters = 6001\n"
             "lr_decay_iters = 6001\nlearning_rate = 6e-4\nwarmup_iters = 715\n", {"max_iters", "warmup_iters"}),
])  # fmt: skip
def test_a_count_that_was_made_whole_comes_back_as_a_whole_number(name, text, counts, tmp_path):
    found = loaded(tmp_path, name, text)
    size = found.recipe.batch.size
    there = tmp_path / f"there{name}"
    there.write_text(found.at(size * 4).text())
    home = load(there).at(size)
    stated = {link.name: link.value for link in found.ledger.links}
    for row in home.rows:
        if row.key in counts:
            assert (row.becomes, type(row.becomes)) == (stated[row.key], int)
    assert counts <= rows(home).keys()


@pytest.mark.parametrize(("kappa", "first", "second"), [(2, "beta**kappa", "beta**kappa"), (4, "beta**kappa", "0.95"),
                                                        (16, "0.5", "0.95")])  # fmt: skip
def test_each_of_two_moments_has_the_reason_of_its_own(kappa, first, second, tmp_path):
    made = loaded(tmp_path, "a.yaml", HF + "adam_beta2: 0.98\n").at(64 * kappa)
    rules = {row.key: row.rule for row in made.rows}
    assert first in rules["adam_beta1"]
    assert second in rules["adam_beta2"]


@pytest.mark.parametrize(("name", "text", "line"), [
    ("a.yaml", YOLO.format("SGD"), "lr0 0.01937, momentum 0.877969, weight_decay 0.001"),
    ("b.yaml", "opt: sgd\nlr: null\nlr_base: 0.1\nlr_base_size: 256\nmomentum: 0.9\nepochs: 9\nbatch_size: 128\n"
               "sched: cosine\nmodel: resnet50\n", "lr_base 0.19, momentum 0.81, weight_decay 2e-05"),
])  # fmt: skip
def test_the_other_form_is_in_the_words_of_the_file(name, text, line, tmp_path):
    found = loaded(tmp_path, name, text)
    told = str(found.at(found.recipe.batch.size * 2))
    assert line in " ".join(told.split())


def test_reasons_are_those_of_the_number_itself(tmp_path):
    text = "SOLVER:\n  IMS_PER_BATCH: 16\n  BASE_LR: 0.02\n  STEPS: (60000, 80000)\n  MAX_ITER: 90000\n"
    marks = {row.key: row.rule for row in loaded(tmp_path, "a.yaml", text).at(32).rows}
    assert marks["SOLVER.STEPS"] == "steps/kappa"
    line = (
        "torchrun --nproc_per_node=8 -m scripts.base_train --depth=20 --total-batch-size=524288 --num-iterations=9000"
    )
    for row in loaded(tmp_path, "b.sh", line).at(1048576).unsaid:
        if row.path.endswith("betas"):
            assert row.rule.startswith(("beta**kappa", "max(beta**kappa"))
