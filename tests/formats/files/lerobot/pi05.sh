accelerate launch --multi_gpu --num_processes=8 $(which lerobot-train) \
  --dataset.repo_id=someone/towels --policy.type=pi05 --policy.dtype=bfloat16 \
  --batch_size=32 --steps=40000
