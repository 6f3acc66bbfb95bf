"""Augmentation by place in the stream: views of a sample, random views of images, adversarial examples made ahead."""

from isobatch.installed import need

need("torch")

from isobatch.augment.batch_augmentation import BatchAugmentation, ViewAverage
from isobatch.augment.concurrent_adversarial import directions, perturbed
from isobatch.augment.concurrently import DirectionProvider, OtherProcess, OtherStream
from isobatch.augment.draws import Draws
from isobatch.augment.images import Views, augment
from isobatch.augment.look_ahead import LookAhead, Prepared, StaleAdversary
from isobatch.augment.norms import TwoNorms, adversarial_rows, two_norms
from isobatch.augment.variance import ViewVariance, measure_views, two_terms
from isobatch.augment.views import VIEWS, View, cutout, find_view, identity, shift, shift_cutout, viewed

__all__ = [
    "VIEWS",
    "BatchAugmentation",
    "DirectionProvider",
    "Draws",
    "LookAhead",
    "OtherProcess",
    "OtherStream",
    "Prepared",
    "StaleAdversary",
    "TwoNorms",
    "View",
    "ViewAverage",
    "ViewVariance",
    "Views",
    "adversarial_rows",
    "augment",
    "cutout",
    "directions",
    "find_view",
    "identity",
    "measure_views",
    "perturbed",
    "shift",
    "shift_cutout",
    "two_norms",
    "two_terms",
    "viewed",
]
