"""One billion parameters; the batch stands once at the top."""

from olmo_core.internal.experiment import CommonComponents, main
from olmo_core.optim import CosWithWarmup, OptimGroupOverride, SkipStepAdamWConfig

SEQUENCE_LENGTH = 4096
GLOBAL_BATCH_SIZE = 512 * SEQUENCE_LENGTH
MAX_DURATION = int(4e12)


def build_train_module_config(common: CommonComponents) -> TransformerTrainModuleConfig:
    rank_microbatch_size = 8 * SEQUENCE_LENGTH
    return TransformerTrainModuleConfig(
        rank_microbatch_size=rank_microbatch_size,
        max_sequence_length=common.dataset.effective_sequence_length,
        optim=SkipStepAdamWConfig(
            lr=4e-4,
            weight_decay=0.033,
            betas=(0.9, 0.95),
            group_overrides=[
                OptimGroupOverride(params=["embeddings.weight"], opts=dict(weight_decay=0.0)),
            ],
            fused=True,
        ),
        compile_model=True,
        max_grad_norm=1.0,
        scheduler=CosWithWarmup(warmup_steps=2000),
    )


def build_trainer_config(common: CommonComponents) -> TrainerConfig:
    return (
        TrainerConfig(
            save_folder=common.save_folder,
            metrics_collect_interval=10,
            max_duration=Duration.tokens(MAX_DURATION),
        )
        .with_callback("checkpointer", CheckpointerCallback(save_interval=100_000, save_async=True))
        .with_callback("profiler", ProfilerCallback(enabled=False))
    )


if __name__ == "__main__":
    main(
        global_batch_size=GLOBAL_BATCH_SIZE,
        train_module_config_builder=build_train_module_config,
        trainer_config_builder=build_trainer_config,
    )
