"""What was trained, as something to ship: take new blocks out, put them on their base, take them off, scale them."""

from blockexpand.packs.attachment import attach_on_disk
from blockexpand.packs.compatibility import in_order
from blockexpand.packs.description import describe
from blockexpand.packs.detachment import Detached, detach_on_disk
from blockexpand.packs.encoding import PIECE_BYTES
from blockexpand.packs.extraction import About, extract
from blockexpand.packs.loaded import attach, detach, load_attached, load_with_packs
from blockexpand.packs.pack import Pack, read_pack
from blockexpand.packs.record import Card, Encoding, PackRecord, Scaled
from blockexpand.packs.scale import scale_on_disk

__all__ = [
    "extract",
    "About",
    "Card",
    "Encoding",
    "Pack",
    "PackRecord",
    "Scaled",
    "read_pack",
    "in_order",
    "attach",
    "detach",
    "load_with_packs",
    "load_attached",
    "attach_on_disk",
    "detach_on_disk",
    "scale_on_disk",
    "Detached",
    "describe",
    "PIECE_BYTES",
]
