"""Averages of a model's weights on the sample clock."""

from isobatch.installed import need

need("torch")

from isobatch.average.base import ModelAverage as ModelAverage
from isobatch.average.batchnorm import recalibrate as recalibrate
from isobatch.average.binding import trainable as trainable
from isobatch.average.ema import ModelEMA as ModelEMA
from isobatch.average.horizons import Horizons as Horizons
from isobatch.average.momentum import MomentumSchedule as MomentumSchedule
from isobatch.average.momentum import cosine_momentum as cosine_momentum
from isobatch.average.observed import ObservedMean as ObservedMean
from isobatch.average.peerwarmups import crowson_warmup as crowson_warmup
from isobatch.average.peerwarmups import diffusers_warmup as diffusers_warmup
from isobatch.average.peerwarmups import ema_pytorch_warmup as ema_pytorch_warmup
from isobatch.average.peerwarmups import mmengine_warmup as mmengine_warmup
from isobatch.average.peerwarmups import tensorflow_warmup as tensorflow_warmup
from isobatch.average.peerwarmups import timm_warmup as timm_warmup
from isobatch.average.peerwarmups import ultralytics_warmup as ultralytics_warmup
from isobatch.average.posthoc import Snapshot as Snapshot
from isobatch.average.posthoc import synthesize as synthesize
from isobatch.average.power import PowerEMA as PowerEMA
from isobatch.average.power import exponent as exponent
from isobatch.average.report import Report as Report
from isobatch.average.stepwarmup import StepWarmup as StepWarmup
from isobatch.average.storage import Storage as Storage
from isobatch.average.switch import SwitchEMA as SwitchEMA
from isobatch.average.uniform import RecentMean as RecentMean
from isobatch.average.uniform import UniformTail as UniformTail
from isobatch.average.warmup import CopyUntil as CopyUntil
from isobatch.average.warmup import Debias as Debias
from isobatch.average.warmup import LinearRamp as LinearRamp
from isobatch.average.warmup import Ramp as Ramp
