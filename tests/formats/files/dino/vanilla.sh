#!/bin/sh
# one node
torchrun --nproc_per_node=8 main_dino.py --arch vit_small --data_path /imagenet/train --output_dir /out
