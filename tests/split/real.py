"""Real software as subject: each function makes a trainer on an installed package; see docs/split-findings.md."""

import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from isobatch.split import AccelerateLoop, LightningFit, Subject, TrainerFit, pieces


def _data():
    torch.manual_seed(5)
    return torch.randn(24, 5), torch.randn(24, 2)


def _net(norm=False):
    middle = [nn.BatchNorm1d(8)] if norm else []
    return nn.Sequential(nn.Linear(5, 8), *middle, nn.Tanh(), nn.Linear(8, 2))


def _loop(net, after, each=lambda: None):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)

    def update(batch, parts):
        for x, y in pieces(batch, parts):
            (F.mse_loss(net(x), y) * len(x) / len(batch[0])).backward()
            each()
        optimizer.step()
        optimizer.zero_grad()
        after()

    return update


def keras_ema():
    """Keras on torch: use_ema beside gradient_accumulation_steps, the optimizer called once per micro-batch."""
    import os

    os.environ["KERAS_BACKEND"] = "torch"
    import keras

    keras.backend.clear_session()
    keras.utils.set_random_seed(0)
    net = keras.Sequential([keras.layers.Input((5,)), keras.layers.Dense(8, "tanh"), keras.layers.Dense(2)])
    made = {}

    def update(batch, parts):
        if not made:
            steps = parts if parts > 1 else None
            made["optimizer"] = keras.optimizers.SGD(
                0.1, use_ema=True, ema_momentum=0.9, ema_overwrite_frequency=None, gradient_accumulation_steps=steps
            )
            made["optimizer"].build(net.trainable_variables)
        for x, y in pieces(batch, parts):
            net.zero_grad()
            (F.mse_loss(net(x), y) * parts * len(x) / len(batch[0])).backward()
            with torch.no_grad():
                made["optimizer"].apply([v.value.grad for v in net.trainable_variables], net.trainable_variables)

    return Subject(net, update, _data(), made=made)


def ema_pytorch_per_step():
    from ema_pytorch import EMA

    net = _net()
    average = EMA(net, beta=0.9, update_every=10, update_after_step=0)
    return Subject(net, _loop(net, average.update), _data(), average=average)


def ema_pytorch_per_micro_batch():
    from ema_pytorch import EMA

    net = _net()
    average = EMA(net, beta=0.9, update_every=10, update_after_step=0)
    return Subject(net, _loop(net, lambda: None, average.update), _data(), average=average)


def averaged_model(use_buffers=False):
    net = _net(norm=True)
    average = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=use_buffers)
    return Subject(net, _loop(net, lambda: average.update_parameters(net)), _data(), average=average)


def averaged_model_use_buffers():
    return averaged_model(use_buffers=True)


def lightning_ema():
    import lightning
    from lightning.pytorch.callbacks import EMAWeightAveraging

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = _net()

        def training_step(self, batch, index):
            loss = F.mse_loss(self.net(batch[0]), batch[1])
            self.log("train_loss", loss)
            return loss

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    return LightningFit(Module(), _data(), callbacks=[EMAWeightAveraging(decay=0.9)])


def _rows(count=24):
    return [{"input_ids": [1 + (7 * i + 3 * j) % 30 for j in range(3 + (5 * i) % 7)]} for i in range(count)]


def _collate(rows):
    ids = nn.utils.rnn.pad_sequence([torch.tensor(row["input_ids"]) for row in rows], batch_first=True)
    return {"input_ids": ids, "attention_mask": (ids > 0).long(), "labels": ids.masked_fill(ids == 0, -100)}


def _llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                                        num_attention_heads=2, max_position_embeddings=64, pad_token_id=0))  # fmt: skip


def _hugging(**more):
    from transformers import Trainer, TrainingArguments

    def build(**given):
        arguments = TrainingArguments(**given, learning_rate=1e-3, **more)
        return Trainer(_llama(), arguments, train_dataset=_rows(), data_collator=_collate)

    return TrainerFit(build)


def trainer_causal_lm():
    return _hugging()


def trainer_label_smoothing():
    return _hugging(label_smoothing_factor=0.1)


def _tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": 0, "<eos>": 1, **{f"w{i}": 2 + i for i in range(30)}}
    inner = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>")


def _dataset(rows):
    import uuid

    from datasets import Dataset
    from datasets.fingerprint import Hasher

    Hasher.hash = staticmethod(lambda value: uuid.uuid4().hex)  # a cache key, and dill cannot pickle every pyarrow
    return Dataset.from_list(rows)


def _words(seed, count):
    return " ".join(f"w{(seed * 5 + 3 * j) % 30}" for j in range(count))


def trl_sft():
    from trl import SFTConfig, SFTTrainer

    def build(**given):
        data = _dataset([{"text": _words(i, 3 + (5 * i) % 7)} for i in range(24)])
        arguments = SFTConfig(**given, learning_rate=1e-3, bf16=False, gradient_checkpointing=False)
        return SFTTrainer(_llama(), arguments, train_dataset=data, processing_class=_tokenizer())

    return TrainerFit(build)


def trl_dpo():
    from trl import DPOConfig, DPOTrainer

    def build(**given):
        data = _dataset([
            {"prompt": _words(i, 3), "chosen": _words(i + 1, 2 + i % 5), "rejected": _words(i + 2, 2 + i % 4)}
            for i in range(24)
        ])  # fmt: skip
        arguments = DPOConfig(**given, learning_rate=1e-3, bf16=False, gradient_checkpointing=False)
        return DPOTrainer(
            _llama(), ref_model=_llama(), args=arguments, train_dataset=data, processing_class=_tokenizer()
        )

    return TrainerFit(build)


def accelerate_loop():
    net = _net()

    def train(accelerator, loader, model, optimizer):
        for x, y in loader:
            with accelerator.accumulate(model):
                accelerator.backward(F.mse_loss(model(x), y))
                optimizer.step()
                optimizer.zero_grad()

    return AccelerateLoop(net, train, _data(), optimizer=torch.optim.SGD(net.parameters(), lr=0.1))


def accelerate_scheduler():
    net = _net()

    def train(accelerator, loader, model, optimizer, scheduler):
        for x, y in loader:
            with accelerator.accumulate(model):
                accelerator.backward(F.mse_loss(model(x), y))
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()

    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    return AccelerateLoop(net, train, _data(), optimizer=optimizer, scheduler=scheduler)
