default_scope = 'mmdet'
default_hooks = dict(checkpoint=dict(type='CheckpointHook', interval=1), logger=dict(type='LoggerHook', interval=50))
auto_scale_lr = dict(enable=False, base_batch_size=16)
