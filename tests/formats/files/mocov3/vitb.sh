torchrun --nproc_per_node 8 main_moco.py -a vit_base --batch-size 4096 --optimizer adamw --lr 1.5e-4 --weight-decay .1 --epochs 300 --warmup-epochs 40 --moco-m 0.99 --moco-m-cos /imagenet
