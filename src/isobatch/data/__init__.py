"""Data in a fixed order: which sample comes next is a function of (seed, epoch, index)."""

from isobatch.installed import need

need("torch")

from isobatch.data.drawing import Drawing as Drawing
from isobatch.data.drawing import Drawn as Drawn
from isobatch.data.fingerprint import check_fingerprint as check_fingerprint
from isobatch.data.fingerprint import fingerprint as fingerprint
from isobatch.data.loader import OrderLoader as OrderLoader
from isobatch.data.loader import SeededItems as SeededItems
from isobatch.data.order import SampleOrder as SampleOrder
from isobatch.data.order import shard as shard
from isobatch.data.order import shard_sizes as shard_sizes
from isobatch.data.order import split_batch as split_batch
from isobatch.data.sampler import OrderBatchSampler as OrderBatchSampler
from isobatch.data.sampler import OrderSampler as OrderSampler
from isobatch.data.sampler import RepeatedBatchSampler as RepeatedBatchSampler
from isobatch.data.split import Split as Split
from isobatch.data.split import nearest_splits as nearest_splits
from isobatch.data.tokens import TokenBatches as TokenBatches
from isobatch.data.tokens import TokenBatchSampler as TokenBatchSampler
