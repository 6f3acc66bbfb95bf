torchrun --nproc_per_node=16 main_dino.py \
  --arch resnet50 --optimizer sgd --lr 0.03 --weight_decay 1e-4 --weight_decay_end 1e-4 \
  --batch_size_per_gpu 51 --momentum_teacher 0.996 --epochs 800 --min_lr 0.0048 --clip_grad 0
