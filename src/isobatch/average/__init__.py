"""Averages of a model's weights on the sample clock."""

from isobatch.average.ema import ModelEMA as ModelEMA
