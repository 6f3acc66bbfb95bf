"""Windows' line ends and byte order marks: planned files are known again by their stamp, and no line end is mixed."""

import pytest

from isobatch.formats import check, load

TEXTS = {
    "a.yaml": "# c\nper_device_train_batch_size: 4\nlearning_rate: 3.0e-4  # peak\nmax_steps: 1000\n",
    "a.json": '{\n  "per_device_train_batch_size": 4,\n  "learning_rate": 3e-4,\n  "max_steps": 1000\n}\n',
    "a.toml": "[training]\nlocal_batch_size = 8\nseq_len = 8\nsteps = 1000 # s\n[optimizer]\nname = 'AdamW'\n"
              "lr = 3e-4\n",
    "a.sh": "#!/bin/bash\nset -e\ntorchrun --nproc_per_node 8 t.py \\\n  --per_device_train_batch_size 4 \\\n"
            "  --learning_rate 3e-4 --max_steps 1000\n",
    "a.py": "batch_size = 12\nblock_size = 1024\ngradient_accumulation_steps = 40\nmax_iters = 6000\nname = 'é'\n"
            "lr_decay_iters = 6000\nlearning_rate = 6e-4\nwarmup_iters = 700\n",
    "b.py": "from transformers import TrainingArguments\na = TrainingArguments(per_device_train_batch_size=4,\n"
            "                      learning_rate=3e-4, max_steps=9)\n",
}  # fmt: skip


@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["plain", "mark"])
@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["unix", "windows"])
@pytest.mark.parametrize("name", TEXTS)
def test_a_planned_file_is_known_again(name, end, mark, tmp_path):
    first, second, third = (tmp_path / f"{place}{name}" for place in "xyz")
    first.write_bytes((mark + TEXTS[name].replace("\n", end)).encode())
    found = load(first, devices=8)
    found.at(found.recipe.batch.size * 2).patch(second)
    planned = load(second)
    assert planned.ledger.stamp.batch == planned.recipe.batch.size == found.recipe.batch.size * 2
    assert not check(planned, found)
    planned.at(found.recipe.batch.size).patch(third)
    text = third.read_bytes().decode()
    assert text.startswith(mark)
    assert text.count("isobatch-plan") == (0 if name.endswith("json") else 1)
    assert text.count("\n") == text.count(end)
    assert load(third).recipe.optimizer == found.recipe.optimizer
