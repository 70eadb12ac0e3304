"""Packs and checkpoints given to others: the model card, what is checked before, and the way to the hub."""

from blockexpand.publishing.card import Written, said_in, write_card
from blockexpand.publishing.figures import Figure, Records, Results
from blockexpand.publishing.shipment import Shipment, Shipped, check_shipment
from blockexpand.publishing.statements import Said
from blockexpand.publishing.subject import Published, read_published
from blockexpand.publishing.upload import Destination, Pushed, push

__all__ = [
    "Destination",
    "Figure",
    "Published",
    "Pushed",
    "Records",
    "Results",
    "Said",
    "Shipment",
    "Shipped",
    "Written",
    "check_shipment",
    "push",
    "read_published",
    "said_in",
    "write_card",
]
