torchrun --standalone --nproc_per_node=8 train.py --outdir=out --data=afhqv2.zip --cond=0 --arch=ncsnpp --batch=256 --batch-gpu=16 --cres=1,2,2,2 --lr=2e-4 --dropout=0.25 --augment=0.15
