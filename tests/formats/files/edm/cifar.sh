torchrun --standalone --nproc_per_node=8 train.py --outdir=training-runs --data=cifar10.zip --cond=1 --arch=ddpmpp --batch=512 --batch-gpu=32 --lr=1e-3 --duration=200 --ema=0.5
