from olmo_core.optim import LinearWithWarmup, SkipStepAdamWConfig

LR = 0.00020712352850360292


def build_config(opts, overrides):
    data_loader_config = NumpyDataLoaderConfig(
        global_batch_size=2**21,  # tokens
        seed=1337,
        num_workers=4,
    )
    train_module_config = TransformerTrainModuleConfig(
        rank_microbatch_size=8192,
        max_sequence_length=8192,
        optim=SkipStepAdamWConfig(lr=LR, weight_decay=0.1, betas=(0.9, 0.95)),
        scheduler=LinearWithWarmup(units=SchedulerUnits.tokens, warmup=0, alpha_f=0.0),
        max_grad_norm=1.0,
    )
    trainer_config = TrainerConfig(
        save_folder=opts.save_folder,
        max_duration=Duration.tokens(100_000_000_000),
    )
    return ExperimentConfig(data_loader=data_loader_config, train_module=train_module_config, trainer=trainer_config)
