"""What was trained, as something to ship: take new blocks out, put them on their base, take them off, scale them."""

from blockexpand.packs.attachment import (
    Detached,
    attach,
    attach_on_disk,
    detach,
    detach_on_disk,
    load_attached,
    load_with_packs,
)
from blockexpand.packs.compatibility import in_order
from blockexpand.packs.extraction import About, extract
from blockexpand.packs.pack import Pack, describe, read_pack
from blockexpand.packs.scale import scale_on_disk
from blockexpand.records.pack import Card, PackRecord, Scaled
