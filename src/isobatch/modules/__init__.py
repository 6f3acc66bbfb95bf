"""Modules with other weights: the one copy of a model in the house."""

from isobatch.installed import need

need("torch")

from isobatch.modules.copies import Copy as Copy
from isobatch.modules.copies import copied as copied
from isobatch.modules.copies import with_weights as with_weights
from isobatch.modules.devices import DeviceCopies as DeviceCopies
from isobatch.modules.devices import Transfer as Transfer
from isobatch.modules.hooks import leaves_weights_alone as leaves_weights_alone
from isobatch.modules.sharded import bare_class as bare_class
