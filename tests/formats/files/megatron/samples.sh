#!/bin/bash
# spans in samples
options=" \
       --tensor-model-parallel-size 1 \
       --micro-batch-size 4 \
       --global-batch-size 32 \
       --seq-length 4096 \
       --train-samples 73242188 \
       --lr-warmup-samples 50000 \
       --lr-decay-samples 73192188 \
       --lr 2.5e-4 \
       --min-lr 2.5e-5 \
       --lr-decay-style cosine \
       --weight-decay 0.1 \
       --clip-grad 1.0 \
       --adam-beta1 0.9 \
       --adam-beta2 0.95 \
       --log-interval 10 \
       --save-interval 2000 \
       --eval-interval 2000"
torchrun --nproc_per_node 8 ../../pretrain_mamba.py ${options}
