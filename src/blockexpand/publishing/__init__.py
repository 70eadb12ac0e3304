"""Packs and checkpoints given to others: what is checked before, the model card, and the way to the hub."""

from blockexpand.publishing.figures import Records
from blockexpand.publishing.shipment import Shipment, prepare_shipment
from blockexpand.publishing.upload import Destination, Pushed, push
