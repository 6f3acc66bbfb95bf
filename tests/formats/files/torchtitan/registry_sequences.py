from torchtitan.trainer import Trainer


def llama3_70b() -> Trainer.Config:
    return Trainer.Config(
        optimizer=OptimizersContainer.Config(lr=1.5e-4),
        training=TrainingConfig(
            local_batch_size=8,
            seq_len=8192,
            steps=1000,
        ),
        parallelism=ParallelismConfig(
            data_parallel_shard_degree=32,
            tensor_parallel_degree=8,
        ),
        checkpoint=CheckpointManager.Config(interval=500),
    )


def llama3_debug() -> Trainer.Config:
    return Trainer.Config(
        optimizer=OptimizersContainer.Config(lr=8e-4),
        lr_scheduler=LRSchedulersContainer.Config(warmup_steps=2, decay_ratio=0.8, decay_type="linear"),
        training=TrainingConfig(local_batch_size=8, seq_len=2048, steps=10),
    )
