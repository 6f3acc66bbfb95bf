python main_moco.py --moco-m-cos --crop-min=.2 --lr=.3 --epochs=1000 --warmup-epochs=10 --wd=1.5e-6 --moco-m=.996 -b 4096 /imagenet
