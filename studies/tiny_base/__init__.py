"""How the tiny base that ships with us (blockexpand.data.TINY_BASE) was made."""
