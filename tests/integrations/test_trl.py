"""The callback under TRL's SFT and DPO trainers, and over a LoRA model."""

import pytest
import torch

pytest.importorskip("trl")
pytest.importorskip("datasets")

from datasets import Dataset
from peft import LoraConfig
from tests.integrations.hf_models import llama
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from isobatch.average import Storage, trainable
from isobatch.errors import InputError
from isobatch.integrations.hf import IsobatchCallback

pytestmark = pytest.mark.filterwarnings("ignore")  # TRL's and datasets' own


def tokenizer():
    words = {word: place for place, word in enumerate(["<pad>", "<eos>", "<unk>", *(f"w{n}" for n in range(47))])}
    inner = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


def words(seed, count):
    numbers = torch.randint(47, (count,), generator=torch.Generator().manual_seed(seed)).tolist()
    return " ".join(f"w{n}" for n in numbers)


TRAIN = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "num_train_epochs": 2, "use_cpu": True,
         "report_to": [], "save_strategy": "no", "logging_strategy": "no", "disable_tqdm": True, "bf16": False,
         "gradient_checkpointing": False}  # fmt: skip


def test_sft_counts_rows_and_tokens(tmp_path):
    rows = Dataset.from_list([{"text": words(n, 3 + n % 9)} for n in range(22)])
    callback = IsobatchCallback("1 epoch", noise={"every": 1}, quiet=True)
    config = SFTConfig(output_dir=str(tmp_path), max_length=16, **TRAIN)
    SFTTrainer(llama(), config, train_dataset=rows, processing_class=tokenizer(), callbacks=[callback]).train()
    assert callback.ema.seen == 44
    assert callback.ema.half_life == 22
    # every word but the first of a row predicts one, and so does the end of the row
    ends = sum(1 + 3 + n % 9 for n in range(22)) - 22
    assert callback.noise.seen == 2 * ends
    assert callback.noise.estimate().measurements > 0


@pytest.mark.slow
@pytest.mark.parametrize("lora", [False, True])
def test_dpo_counts_pairs(tmp_path, lora):
    rows = Dataset.from_list(
        [{"prompt": words(n, 3), "chosen": words(100 + n, 2), "rejected": words(200 + n, 4)} for n in range(22)]
    )
    select = {"storage": Storage(select=trainable)} if lora else {}
    callback = IsobatchCallback(20, noise={"every": 1}, average=select, quiet=True)
    config = DPOConfig(output_dir=str(tmp_path), max_length=16, **TRAIN)
    adapter = {"peft_config": LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")} if lora else {}
    other = {} if lora else {"ref_model": llama(tied=False)}
    DPOTrainer(
        llama(tied=False),
        **other,
        args=config,
        train_dataset=rows,
        processing_class=tokenizer(),
        callbacks=[callback],
        **adapter,
    ).train()
    assert callback.ema.seen == callback.noise.seen == 44
    assert callback.noise.estimate().measurements > 0
    if lora:
        assert all("lora_" in name for name in callback.ema.average())


@pytest.mark.slow
def test_packed_rows_are_refused(tmp_path):
    rows = Dataset.from_list([{"text": words(n, 3 + n % 9)} for n in range(22)])
    config = SFTConfig(output_dir=str(tmp_path), max_length=16, packing=True, packing_strategy="wrapped", **TRAIN)
    callback = IsobatchCallback(20, quiet=True)
    with pytest.raises(InputError, match="count tokens"):
        SFTTrainer(llama(), config, train_dataset=rows, processing_class=tokenizer(), callbacks=[callback]).train()
