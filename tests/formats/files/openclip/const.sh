torchrun --nproc_per_node=8 -m open_clip_train.main --train-data x --train-num-samples 1000000 --batch-size 64 --epochs 5 --lr 1e-4 --lr-scheduler const --warmup 500 --model RN50
