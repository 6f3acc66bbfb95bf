# two configs of one model, batches in tokens
from torchtitan.components.checkpoint import CheckpointManager
from torchtitan.components.lr_scheduler import LRSchedulersContainer
from torchtitan.components.optimizer import default_adamw
from torchtitan.trainer import Trainer


def tiny() -> Trainer.Config:
    return Trainer.Config(
        optimizer=default_adamw(lr=8e-4),
        training=TrainingConfig(
            num_tokens_per_microbatch_per_dp_rank=8 * 2048,
            max_context_length=2048,
            steps=10,
        ),
    )


def large() -> Trainer.Config:
    return Trainer.Config(
        model_spec=model_registry("405B"),
        optimizer=default_adamw(lr=8e-5, betas=(0.9, 0.95)),
        lr_scheduler=LRSchedulersContainer.Config(warmup_steps=600, decay_type="cosine"),
        training=TrainingConfig(
            num_tokens_per_microbatch_per_dp_rank=2 * 8192,
            num_tokens_per_train_step=4_194_304,
            max_context_length=8192,
            steps=3000,  # a short run
        ),
        parallelism=ParallelismConfig(tensor_parallel_degree=8),
        checkpoint=CheckpointManager.Config(interval=500),
        validator=Validator.Config(freq=500, steps=1200),
    )
