lerobot-train \
  --dataset.repo_id=lerobot/pusht \
  --policy.type=act \
  --policy.device=cuda \
  --policy.chunk_size=150 \
  --steps=150000 \
  --batch_size=32 \
  --policy.optimizer_lr=1e-4 \
  --policy.optimizer_lr_backbone=1e-4 \
  --save_freq=5000
