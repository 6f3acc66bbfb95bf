"""Devices of several nodes: which number of a launcher changes, and that all of its numbers still agree."""

import pytest
from tests.formats.answering import loaded

from isobatch.errors import InputError
from isobatch.formats import load

HF = " t.py --per_device_train_batch_size 4 --learning_rate 1e-4 --max_steps 1000\n"
JOB = "#SBATCH --nodes=2\n#SBATCH --ntasks-per-node=4\n#SBATCH --gres=gpu:a100:4\nsrun python" + HF
AROUND = "#SBATCH -N2 --ntasks-per-node=1\n#SBATCH --gpus-per-node=4\nsrun torchrun --nnodes=$SLURM_NNODES "
AROUND += "--nproc-per-node=4"
CLI = (
    "trainer: {devices: 4, num_nodes: 2, max_epochs: 10}\nmodel: {class_path: m.M}\n"
    "optimizer: {class_path: torch.optim.AdamW, init_args: {lr: 1.0e-3}}\ndata: {init_args: {batch_size: 4}}\n"
)
LITGPT = (
    "devices: 4\nnum_nodes: 2\n"
    "train: {global_batch_size: 32, micro_batch_size: 4, max_steps: 1000, lr_warmup_steps: 9}\n"
    "optimizer: {class_path: torch.optim.AdamW, init_args: {lr: 1.0e-4}}\n"
)
VERL = (
    "python3 -m verl.trainer.main_ppo data.train_batch_size=256 actor_rollout_ref.actor.ppo_mini_batch_size=64 "
    "actor_rollout_ref.actor.optim.lr=1e-6 trainer.n_gpus_per_node=4 trainer.nnodes=2 trainer.total_epochs=15 "
)


def launcher_of(made):
    """The rows of devices."""
    return {row.key.rpartition(".")[2]: row.becomes for row in made.rows if row.path == "batch.devices"}


@pytest.mark.parametrize(("name", "text", "devices", "want"), [
    # 2 nodes of 4 become 4 nodes of 4: torchrun, DeepSpeed, Accelerate (whose processes are those of all nodes)
    ("a.sh", "torchrun --nnodes 2 --nproc_per_node 4" + HF, 16, {"nnodes": 4}),
    ("b.sh", "deepspeed --num_nodes 2 --num_gpus 4" + HF, 16, {"num_nodes": 4}),
    ("c.sh", "accelerate launch --num_machines 2 --num_processes 8" + HF, 16, {"num_machines": 4, "num_processes": 16}),
    ("d.sh", "NNODES=2\nGPUS=4\naccelerate launch --num_machines $NNODES --num_processes $((NNODES*GPUS))" + HF, 16,
     {"num_machines": 4, "num_processes": 16}),
    # Slurm: tasks of a node, tasks in all, cards of a node, at the head of the script or on its line
    ("e.sh", JOB, 16, {"nodes": 4}),
    ("f.sh", AROUND + HF, 16, {"N": 4}),
    ("g.sh", "srun -N2 -n8 python" + HF, 16, {"N": 4, "n": 16}),
    ("h.sh", "#SBATCH --nodes 2\n#SBATCH --ntasks 8  # one a card\nsrun python" + HF, 4, {"nodes": 1, "ntasks": 4}),
    # what does not lie on full nodes lies on nodes as full as they can be, and cards follow tasks
    ("i.sh", "torchrun --nnodes 2 --nproc_per_node 4" + HF, 6, {"nproc_per_node": 3}),
    ("j.sh", "torchrun --nnodes 2 --nproc_per_node 4" + HF, 2, {"nnodes": 1, "nproc_per_node": 2}),
    ("k.sh", JOB, 6, {"ntasks_per_node": 3, "gres": "gpu:a100:3"}),
    ("l.sh", AROUND + HF, 6, {"nproc_per_node": 3, "gpus_per_node": 3}),  # the one task around torchrun stays one
    # one node stays one
    ("m.sh", "torchrun --nnodes 1 --nproc_per_node 4" + HF, 8, {"nproc_per_node": 8}),
    ("n.sh", "mpirun -np 4 python" + HF, 8, {"np": 8}),
    # configs
    ("o.yaml", CLI, 16, {"num_nodes": 4}),
    ("p.yaml", LITGPT, 16, {"num_nodes": 4}),
    ("q.sh", VERL, 16, {"nnodes": 4}),
    ("r.sh", VERL, 4, {"nnodes": 1}),
    ("s.sh", "python run_with_submitit.py --nodes 2 --ngpus 4 --arch vit_small --batch_size_per_gpu 4 --epochs 90", 16,
     {"nodes": 4}),
    # submitit_pretrain.py asks for two nodes of eight where nobody says them
    ("t.sh", "python submitit_pretrain.py --batch_size 64 --blr 1.5e-4 --mask_ratio 0.75 --epochs 800", 32,
     {"nodes": 4}),
    # devices that hold one model: 2 x 8 GPUs are 4 models of 4
    ("u.sh", "torchrun --nnodes 2 --nproc_per_node 8 pretrain_gpt.py --micro-batch-size 4 --global-batch-size 64 "
             "--lr 1e-4 --train-iters 1000 --seq-length 64 --tensor-model-parallel-size 4", 8, {"nnodes": 4}),
])  # fmt: skip
def test_other_devices_are_other_nodes_and_every_number_returns(name, text, devices, want, tmp_path):
    found = loaded(tmp_path, name, text)
    made = found.at(devices=devices)
    assert launcher_of(made) == want
    batch = found.recipe.batch
    (tmp_path / f"there{name}").write_text(made.text())
    there = load(tmp_path / f"there{name}")
    assert there.recipe.batch.devices == devices
    home = launcher_of(there.at(batch.size, devices=batch.devices))
    stated = {link.name.rpartition(".")[2]: link.value for link in found.ledger.links}
    assert home == {flag: stated[flag] for flag in want}


@pytest.mark.parametrize("text", [
    "torchrun --nnodes 1:4 --nproc_per_node 4" + HF,  # as many nodes as there are
    "torchrun --nnodes $NODES --nproc_per_node 4" + HF,
    "#SBATCH --nodes 2\n#SBATCH --ntasks-per-node 1\n#SBATCH --gpus-per-node=4\nsrun python" + HF,  # its own affair
])  # fmt: skip
def test_nodes_that_the_file_does_not_say_are_asked_for(text, tmp_path):
    (tmp_path / "a.sh").write_text(text)
    with pytest.raises(InputError, match="devices: its batch is that of one device"):
        load(tmp_path / "a.sh")


def test_a_node_can_be_said_to_be_full(tmp_path):
    text = "torchrun --nnodes 1 --nproc_per_node 8" + HF
    crowded = loaded(tmp_path, "a.sh", text).at(devices=16)
    assert "launcher.nproc_per_node: 16 GPUs on one node" in str(crowded)
    spread = loaded(tmp_path, "a.sh", text, set={"gpus_of_a_node": 8}).at(devices=16)
    assert launcher_of(spread) == {"nnodes": 2}
    assert "on one node" not in str(spread)
    silent = loaded(tmp_path, "b.sh", text.replace("--nnodes 1 ", ""), set={"gpus_of_a_node": 8}).at(devices=16)
    with pytest.raises(InputError, match="the launcher does not say nnodes; write --nnodes 1 there"):
        silent.text()


def test_cards_that_are_named_one_by_one_are_pointed_at(tmp_path):
    found = loaded(tmp_path, "a.sh", "CUDA_VISIBLE_DEVICES=0,1,2,3 torchrun --nproc_per_node 4" + HF)
    assert any("CUDA_VISIBLE_DEVICES=0,1,2,3 names the 4 GPUs" in note for note in found.ledger.notes)
