"""Which documents were there before: exactly, or nearly. The memory for it has a limit.

In: a document's content key, and for near copies its MinHash signature. Out: `duplicate`, `near_duplicate` or
nothing, and then it is remembered. What is remembered is also kept in files, so that reading can go on after a
kill. Refused: more documents than the memory allowed for holds.

Two documents whose 64-bit keys agree are taken for copies: among 100 million the odds that any two do by chance
are 3 in 10,000. Near copies are looked up by bands of their signatures and compared by the whole signatures.
"""

from __future__ import annotations

import array
from pathlib import Path
from typing import BinaryIO

import numpy as np

from blockexpand.corpus.fingerprints import NUM_HASHES
from blockexpand.corpus.recipe import DuplicatesRecipe
from blockexpand.errors import CorpusError

_FIRST_SLOTS = 1 << 12
_FULLEST = 0.8
_SLOT_BYTES = 8
_MOST_COMPARED = 64
"""Documents that share one band and are not near copies: so many are compared at most, e.g. one licence in all."""
_MASK = (1 << 64) - 1
_SPREAD = 0x9E3779B97F4A7C15


class Table:
    """Numbers of 64 bits, open addressing: 8 bytes a slot, doubled as it fills, up to a limit."""

    def __init__(self, most_bytes: int) -> None:
        """Begin small."""
        self._most_slots = max(_FIRST_SLOTS, 1 << ((most_bytes // _SLOT_BYTES).bit_length() - 1))
        self._slots = array.array("Q", bytes(_FIRST_SLOTS * _SLOT_BYTES))
        self.num_entries = 0

    @property
    def full(self) -> bool:
        """Whether nothing more goes in."""
        return self.num_entries >= _FULLEST * self._most_slots

    @staticmethod
    def _place(entry: int) -> int:
        """Where an entry would like to be: by its upper half, which entries of one key share."""
        return ((entry >> 32) * _SPREAD & _MASK) >> 20

    def holds(self, entry: int) -> bool:
        """Whether exactly this number is in it."""
        slots, mask = self._slots, len(self._slots) - 1
        at = self._place(entry) & mask
        while found := slots[at]:
            if found == entry:
                return True
            at = (at + 1) & mask
        return False

    def with_upper(self, upper: int) -> list[int]:
        """The lower halves of the entries with this upper half, the first few."""
        slots, mask = self._slots, len(self._slots) - 1
        at = self._place(upper << 32) & mask
        result = []
        while (found := slots[at]) and len(result) < _MOST_COMPARED:
            if found >> 32 == upper:
                result.append(found & 0xFFFFFFFF)
            at = (at + 1) & mask
        return result

    def add(self, entry: int) -> None:
        """Put a number in; it is not 0."""
        if self.num_entries >= _FULLEST * len(self._slots):
            self._grow()
        self._put(self._slots, entry)
        self.num_entries += 1

    def _put(self, slots: array.array[int], entry: int) -> None:
        mask = len(slots) - 1
        at = self._place(entry) & mask
        while slots[at]:
            at = (at + 1) & mask
        slots[at] = entry

    def _grow(self) -> None:
        slots = array.array("Q", bytes(2 * len(self._slots) * _SLOT_BYTES))
        for entry in self._slots:
            if entry:
                self._put(slots, entry)
        self._slots = slots


class Seen:
    """The documents seen so far, in memory and in the files of a folder."""

    FILES = ("keys", "bands", "signatures")

    def __init__(self, recipe: DuplicatesRecipe, num_bands: int, folder: Path) -> None:
        """Read what the folder's files hold; `num_bands` is 0 when near copies are kept."""
        self._recipe, self._num_bands = recipe, num_bands
        most_bytes = recipe.memory_mb << 20
        self._keys = Table(most_bytes if not num_bands else most_bytes // 16)
        self._bands = Table(most_bytes - most_bytes // 16)
        self._paths = {name: folder / name for name in self.FILES}
        self._files: dict[str, BinaryIO] = {}
        self._recall()
        self._signatures = self._paths["signatures"].open("rb") if num_bands else None

    def _recall(self) -> None:
        for path in self._paths.values():
            path.touch()
        for key in np.fromfile(self._paths["keys"], dtype=np.uint64).tolist():
            self._keys.add(key)
        if self._num_bands:
            rows = np.fromfile(self._paths["bands"], dtype=np.uint32).reshape(-1, self._num_bands)
            for number, keys in enumerate(rows.tolist()):
                for key in keys:
                    self._remember(key, number + 1)
        self._num_documents = self._paths["keys"].stat().st_size // 8
        self._files = {name: path.open("ab") for name, path in self._paths.items()}

    def verdict(self, key: bytes, bands_B: np.ndarray | None, signature_H: np.ndarray | None) -> str | None:
        """`duplicate`, `near_duplicate`, or None and the document is remembered.

        Raises:
            CorpusError: there is no room for more.
        """
        entry = int.from_bytes(key[:8], "big") or 1
        if self._keys.holds(entry):
            return "duplicate"
        if bands_B is not None and signature_H is not None:
            short_H = signature_H.astype(np.uint16)
            if self._near(bands_B.tolist(), short_H):
                return "near_duplicate"
        self._check_room()
        self._keys.add(entry)
        self._files["keys"].write(np.uint64(entry).tobytes())
        self._num_documents += 1
        if bands_B is not None and signature_H is not None:
            for band in bands_B.tolist():
                self._remember(band, self._num_documents)
            self._files["bands"].write(bands_B.tobytes())
            self._files["signatures"].write(short_H.tobytes())
        return None

    def _remember(self, band: int, number: int) -> None:
        # Of thousands of documents with one band (a licence in all of them) no more than are ever compared.
        if len(self._bands.with_upper(band)) < _MOST_COMPARED:
            self._bands.add(band << 32 | number)

    def _near(self, bands: list[int], short_H: np.ndarray) -> bool:
        compared: set[int] = set()
        for band in bands:
            for number in self._bands.with_upper(band):
                if number not in compared:
                    compared.add(number)
                    if (self._signature_of(number) == short_H).mean() >= (self._recipe.near or 1.0):
                        return True
        return False

    def _signature_of(self, number: int) -> np.ndarray:
        assert self._signatures is not None, "there are no signatures without bands"
        self._files["signatures"].flush()
        self._signatures.seek((number - 1) * 2 * NUM_HASHES)
        return np.frombuffer(self._signatures.read(2 * NUM_HASHES), dtype=np.uint16)

    def _check_room(self) -> None:
        if self._keys.full or (self._num_bands and self._bands.full):
            raise CorpusError(
                f"the table of documents seen is full: {self._num_documents:,} are in it, and duplicates.memory_mb is "
                f"{self._recipe.memory_mb}; raise it and go on with --resume"
            )

    def sizes(self) -> dict[str, int]:
        """The length of each file, as of now."""
        for stream in self._files.values():
            stream.flush()
        return {name: stream.tell() for name, stream in self._files.items()}

    def close(self) -> None:
        """Close the files."""
        for stream in self._files.values():
            stream.close()
        if self._signatures is not None:
            self._signatures.close()
