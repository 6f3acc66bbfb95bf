torchrun --nproc_per_node=8 references/detection/train.py --dataset coco --model fasterrcnn_resnet50_fpn \
  --epochs 26 --lr-steps 16 22 --aspect-ratio-group-factor 3 --batch-size 2 --lr 0.02 --momentum 0.9
