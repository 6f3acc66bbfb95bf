torchrun --nproc_per_node=4 main_pretrain.py --batch_size 256 --accum_iter 2 --lr 6e-4 --min_lr 1e-6 --epochs 400 --warmup_epochs 20 --mask_ratio 0.75
