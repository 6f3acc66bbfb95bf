# 8 GPUs, 60 images on each: one of four scripts of the same authors
./distributed_train.sh 8 /data/coco --model efficientdet_d0 -b 60 --lr 0.65 --amp --opt fusedmomentum --warmup-epochs 20 --model-ema --model-ema-decay 0.999 --epochs 300 --smoothing 0.0 --sync-bn
