"""An answer's tokens as text, piece by piece, and where the answer ends.

In: tokens one by one, in the thread that makes them, as one of transformers' stopping criteria, so that no token is
made after the last. Out: pieces of text for another thread, whose sum is what the tokenizer makes of all tokens at once
(but for bytes that are no text, where a tokenizer falls back on bytes); the tokens; how the answer ended. Held back:
half a character, and what may be the beginning of a text to stop at.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

_HALF_A_CHARACTER = "\N{REPLACEMENT CHARACTER}"
_LONGEST_WAIT_TOKENS = 16
"""For the rest of a character: four bytes at most, and tokens without text may stand before them."""
_BEFORE_TOKENS = 8
"""Of the text before; more than a character may have."""


class TextStream:
    """One answer under way."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        ends: Collection[int],
        most_tokens: int,
        *,
        stops: Collection[str] = (),
        stop: threading.Event | None = None,
        before: Sequence[int] = (),
    ) -> None:
        """`ends`: tokens that end the answer; `stops`: texts before which it ends; `stop`: set it to end it from
        outside, after the token that is being made; `before`: tokens whose text it goes on with, so that a first space
        is not taken for the beginning of a text and dropped."""
        self.most_tokens, self.ends = most_tokens, tuple(ends)
        self.stop = stop or threading.Event()
        self.tokens: list[int] = []
        """Of the answer, without the one that ended it."""
        self.end: int | None = None
        """The token that ended it, where one did."""
        self.finish: Literal["stop", "length"] | None = None
        """How it ended: by itself or before a text to stop at; for want of room; None while it has not, or when
        whoever set `stop` ended it."""
        self._tokenizer, self._stops = tokenizer, tuple(stops)
        self._pieces: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._read_tokens = list(before[-_BEFORE_TOKENS:])
        """With those of the answer after them."""
        self._begin, self._read = 0, len(self._read_tokens)
        self._given = len(self._decoded(0))
        """Characters of the text from `_begin` on that were said."""
        self._held, self._is_cut, self._is_left = "", False, False

    def __iter__(self) -> Iterator[str]:
        """The pieces as they come, until `close`."""
        return iter(self._pieces.get, None)

    def __call__(self, input_ids: Tensor, _scores: Any, **_more: Any) -> Tensor:
        """Take the newest of the tokens [1, so far]; whether it was the last, as `generate` asks."""
        import torch

        if self.finish is None:
            self._take(int(input_ids[0, -1]))
        has_ended = self.finish is not None or self.stop.is_set() or self._is_left
        return torch.full((len(input_ids),), has_ended, dtype=torch.bool, device=input_ids.device)

    def leave(self) -> None:
        """Nobody reads on: no token is to be made after the one that is."""
        self._is_left = True

    def close(self) -> None:
        """No token comes any more; what is held back goes out."""
        if not self._is_cut:
            self._say(self._decoded(self._begin)[self._given :], is_last=True)
        self._pieces.put(None)

    def _take(self, token: int) -> None:
        if token in self.ends:
            self.finish, self.end = "stop", token
            return
        self.tokens.append(token)
        self._read_tokens.append(token)
        self._hand_on(self._decoded(self._begin))
        if self.finish is None and len(self.tokens) >= self.most_tokens:
            self.finish = "length"

    def _hand_on(self, text: str) -> None:
        """Say what is new in the text from `_begin` on, and will stay as it is."""
        is_whole = not text.endswith(_HALF_A_CHARACTER)
        if not is_whole:
            if len(self._read_tokens) - self._read < _LONGEST_WAIT_TOKENS:
                return
            text = text[:-1]  # what is so long no character will be none; but the last byte may begin one
        if len(text) > self._given:
            said, self._given = text[self._given :], len(text)
            if is_whole:
                self._begin, self._read = self._read, len(self._read_tokens)
                self._given = len(self._decoded(self._begin))
            self._say(said)

    def _decoded(self, begin: int) -> str:
        """The text of the tokens from one on. Spaces stay as they are: to tidy them one would have to know the next."""
        ids = self._read_tokens[begin:]
        return str(self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def _say(self, text: str, *, is_last: bool = False) -> None:
        """Hand on what cannot be part of a text to stop at; end before one."""
        self._held += text
        places = [place for stop in self._stops if (place := self._held.find(stop)) >= 0]
        if places:
            self.finish, self._is_cut = "stop", True
            said, self._held = self._held[: min(places)], ""
        else:
            kept = 0 if is_last else max((_overlap(self._held, stop) for stop in self._stops), default=0)
            border = len(self._held) - kept
            said, self._held = self._held[:border], self._held[border:]
        if said:
            self._pieces.put(said)


def _overlap(text: str, stop: str) -> int:
    """How many of the text's last characters `stop` begins with."""
    most = min(len(text), len(stop) - 1)
    return next((length for length in range(most, 0, -1) if text.endswith(stop[:length])), 0)
