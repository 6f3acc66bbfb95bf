"""Train a base model: torchrun --nproc_per_node=8 -m scripts.base_train"""

import argparse
import math

parser = argparse.ArgumentParser(description="Pretrain base model")
parser.add_argument("--run", type=str, default="dummy", help="name of the run")
parser.add_argument("--depth", type=int, default=20)
parser.add_argument("--max-seq-len", type=int, default=2048, help="context")
parser.add_argument("--num-iterations", type=int, default=21_400, help="optimization steps")
parser.add_argument("--device-batch-size", type=int, default=32)
parser.add_argument("--total-batch-size", type=int, default=2**19, help="tokens")
parser.add_argument("--embedding-lr", type=float, default=0.3)
parser.add_argument("--unembedding-lr", type=float, default=0.004)
parser.add_argument("--weight-decay", type=float, default=0.2)
parser.add_argument("--matrix-lr", type=float, default=0.02)
parser.add_argument("--scalar-lr", type=float, default=0.5)
parser.add_argument("--adam-beta1", type=float, default=0.8)
parser.add_argument("--adam-beta2", type=float, default=0.95)
parser.add_argument("--warmup-ratio", type=float, default=0.0)
parser.add_argument("--warmdown-ratio", type=float, default=0.5)
parser.add_argument("--final-lr-frac", type=float, default=0.0)
parser.add_argument("--eval-every", type=int, default=250)
args = parser.parse_args()

B_REF = 2**19
batch_lr_scale = math.sqrt(args.total_batch_size / B_REF)
