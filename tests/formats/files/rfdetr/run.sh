torchrun --nproc_per_node=8 main.py --dataset_dir coco --batch_size 2 --grad_accum_steps 1 --lr 1e-4 --lr_encoder 1.5e-4 --ema_decay 0.997 --ema_tau 0 --epochs 12 --warmup_epochs 1
