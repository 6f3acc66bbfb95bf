"""One file a format; their order is that of the documentation."""

from isobatch.formats.format import Format, Other
from isobatch.formats.stacks import (
    composer,
    detectron2,
    dfine,
    diffusers,
    dino,
    edm,
    hf,
    lerobot,
    lightning,
    litgpt,
    mae,
    megatron,
    mmengine,
    nanochat,
    nanogpt,
    neox,
    olmo_core,
    open_clip,
    timm,
    torchtitan,
    torchtune,
    torchvision,
    ultralytics,
    verl,
)

FORMATS: tuple[Format, ...] = (
    hf.FORMAT,
    nanogpt.FORMAT,
    nanochat.FORMAT,
    litgpt.FORMAT,
    megatron.FORMAT,
    neox.NEOX,
    neox.DEEPSPEED,
    torchtitan.FORMAT,
    olmo_core.FORMAT,
    timm.FORMAT,
    torchvision.FORMAT,
    dino.V1,
    dino.V2,
    dino.V3,
    mae.MAE,
    mae.MOCO,
    dfine.FORMAT,
    dfine.RFDETR,
    ultralytics.FORMAT,
    mmengine.FORMAT,
    detectron2.FORMAT,
    lightning.FORMAT,
    composer.FORMAT,
    edm.FORMAT,
    diffusers.FORMAT,
    open_clip.FORMAT,
    torchtune.FORMAT,
    verl.FORMAT,
    lerobot.FORMAT,
)
"""Every format that is read, in the order in which a file is tried."""

OTHERS: tuple[Other, ...] = (
    Other(
        "nanotron",
        {"optimizer.learning_rate_scheduler": 4, "tokens.batch_accumulation_per_replica": 3, "tokens.train_steps": 2},
        "its batch is tokens.micro_batch_size x batch_accumulation_per_replica x parallelism.dp samples",
    ),
    Other(
        "NeMo",
        {"model.optim.sched": 4, "model.optim.name": 3, "exp_manager": 2, "model.train_ds": 2, "trainer.devices": 1},
        "its batch is model.global_batch_size, or model.train_ds.batch_size x accumulate_grad_batches x devices",
    ),
    Other(
        "Hydra's _target_ configs of Lightning",
        {"trainer._target_": 4, "model.optimizer._target_": 4, "model._target_": 2, "data._target_": 1},
        "its batch is data.batch_size x accumulate_grad_batches x devices samples",
    ),
    Other(
        "mmcv 1.x",
        {"lr_config": 4, "data.samples_per_gpu": 4, "runner.max_epochs": 2, "optimizer_config": 2},
        "its batch is data.samples_per_gpu x GPUs, its rate does not follow, and iterations in lr_config are those of "
        "that batch; mmengine's form of the file is read",
    ),
    Other(
        "detectron2's lazy configs",
        {"lr_multiplier": 4, "dataloader.train.total_batch_size": 4, "train.max_iter": 2},
        "its batch is dataloader.train.total_batch_size, and train.max_iter and the milestones count updates",
    ),
    Other(
        "MaxText",
        {"learning_rate_schedule_steps": 4, "per_device_batch_size": 2, "warmup_steps_fraction": 2, "adam_b1": 2},
        "its batch is per_device_batch_size x gradient_accumulation_steps x devices samples",
    ),
    Other(
        "fairseq",
        {"optimization.update_freq": 4, "optimization.max_update": 4, "lr_scheduler.warmup_updates": 3,
         "dataset.max_tokens": 3, "program:fairseq": 5, "max_tokens": 2, "update_freq": 2, "task._name": 2},
        "keep its batch by update_freq x old GPUs / new GPUs, which needs no other number to move",
    ),
    Other(
        "kohya sd-scripts",
        {"network_module": 6, "unet_lr": 4, "text_encoder_lr": 3, "save_model_as": 2, "optimizer_type": 3,
         "program:train_network.py": 4, "program:sdxl_train": 5, "dataset_config": 2, "cache_latents": 2,
         "train_batch_size": 1, "pretrained_model_name_or_path": 1},
        "keep its batch by gradient_accumulation_steps, which needs no other number to move",
    ),
    Other(
        "lingua",
        {"optim.lr_min_ratio": 5, "data.seq_len": 2, "distributed.fsdp_type": 3, "grad_acc_steps": 2},
        "its batch is data.batch_size x grad_acc_steps x data-parallel ranks sequences",
    ),
    Other(
        "solo-learn",
        {"method_kwargs": 4, "optimizer.batch_size": 3, "optimizer.classifier_lr": 3, "momentum.base_tau": 3},
        "its rate is scaled by batch/256, accumulation counted",
    ),
)  # fmt: skip
"""Stacks that are known and not read: named, with a way out, instead of being taken for one that they resemble."""

__all__ = ["FORMATS", "OTHERS"]
