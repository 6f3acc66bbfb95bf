"""Data in a fixed order: which sample comes next is a function of (seed, epoch, index)."""

from isobatch.data.order import SampleOrder as SampleOrder
from isobatch.data.order import shard as shard
from isobatch.data.order import shard_sizes as shard_sizes
