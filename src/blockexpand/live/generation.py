"""Tokens from a model, many sequences at a time; and what bounds an answer, the tokens that end it and the positions
there are.

In: a causal language model in eval mode and prompts of any lengths. Out: what the model adds to each, the likeliest
tokens or drawn ones. A sequence that ends makes room for the next one, so the batch stays full to the end. What is
drawn depends on the seed and the sequence's number, not on what stands beside it.

Rows are held at the right edge of one cache: a row's last token is always in the last column, and what is left of its
first is masked. A new row is read by itself and put in at the right edge, too. Families whose state is more than keys
and values of attention (state-space and convolution blocks, chunked attention) go one by one through transformers.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections import deque
from collections.abc import Callable, Collection, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicLayer

from blockexpand.checkpoint import end_tokens

# B = rows of the batch, N = rows that are new in it, P = tokens of the longest new prompt, C = columns of the cache,
# H = heads, D = size of a head, V = vocabulary.

CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len")
"""What config classes call the number of positions."""


def context_of(model: PreTrainedModel) -> int | None:
    """The tokens that the model was made for; None for those without a limit of their own (state-space models)."""
    entries = model.config.get_text_config().to_dict()
    return min((entries[key] for key in CONTEXT_KEYS if isinstance(entries.get(key), int)), default=None)


def ends_of_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that end an answer: the tokenizer's, those that the model's settings add, and the end of a turn."""
    return end_tokens(tokenizer, model.generation_config.eos_token_id if model.generation_config else None)


_CACHE_NAMES = ("cache", "past_key_values")
"""What a model's forward calls its cache: transformers 5.2x renamed it."""
_PLAIN_LAYERS = {"full_attention", "sliding_attention"}
_SHARE_TO_REFILL = 8
"""New rows come in when one row in so many has ended: each time the cache is copied, and idle rows cost as much."""


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    num_new: int,
    ends: Collection[int],
    seed: int | None = None,
    rows: int = 64,
    done: Callable[[float], None] | None = None,
    has_stopped: Callable[[Sequence[int]], bool] | None = None,
) -> list[list[int]]:
    """What the model adds to each prompt, the token that ended it included.

    Args:
        model: A causal language model in eval mode.
        prompts: Tokens, at least one each.
        num_new: New tokens at most.
        ends: The tokens that end a sequence.
        seed: Draw from the whole distribution at temperature 1 with this seed; None takes the likeliest token.
        rows: How many sequences run at a time.
        done: Called with how many sequences are done since it was called last, by parts: a token is 1 / `num_new` of
            its sequence, and what an early end leaves out is done at once.
        has_stopped: Whether what a sequence has added ends it. Families that go one by one are not asked.
    """
    assert all(len(prompt) > 0 for prompt in prompts), "a prompt without a token"
    tell = done or (lambda _: None)
    if not _runs_together(model):
        return [_alone(model, n, prompt, (num_new, ends, seed), tell) for n, prompt in enumerate(prompts)]
    batch = _Batch(model, prompts, (num_new, frozenset(ends), seed))
    batch.has_stopped = has_stopped
    return batch.run(rows, tell)


def _runs_together(model: PreTrainedModel) -> bool:
    """Whether all that the model keeps of a sequence is keys and values, one column a token."""
    kinds = model.config.get_text_config().to_dict().get("layer_types") or ()
    takes = set(inspect.signature(model.forward).parameters)
    plain = not model._is_stateful and set(kinds) <= _PLAIN_LAYERS
    return plain and "attention_mask" in takes and not takes.isdisjoint(_CACHE_NAMES)


def _alone(
    model: PreTrainedModel,
    number: int,
    prompt: Sequence[int],
    how: tuple[int, Collection[int], int | None],
    done: Callable[[float], None],
) -> list[int]:
    num_new, ends, seed = how
    settings: dict[str, Any] = {"temperature": 1.0, "top_k": 0, "top_p": 1.0} if seed is not None else {}
    tokens_1P = torch.tensor([list(prompt)], device=next(model.parameters()).device)
    with torch.random.fork_rng(enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(int(np.random.SeedSequence([seed, number]).generate_state(1)[0]))
        made_1A = cast(Any, model).generate(
            input_ids=tokens_1P,
            attention_mask=torch.ones_like(tokens_1P),
            max_new_tokens=num_new,
            do_sample=seed is not None,
            pad_token_id=next(iter(ends), 0),
            eos_token_id=list(ends) or None,
            **settings,
        )
    done(1)
    return made_1A[0, len(prompt) :].cpu().tolist()


class _Columns(DynamicLayer):
    """A layer's keys and values with room for columns to come: nothing is copied when a token is added."""

    _room: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Put the new columns behind the old ones."""
        del args, kwargs
        held = 0 if self.keys is None else self.keys.shape[-2]
        end = held + key_states.shape[-2]
        if self._room is None or self._room[0].shape[-2] < end:
            old = (self.keys, self.values)
            self.hold(*(_wider(one, new, end) for one, new in zip(old, (key_states, value_states), strict=True)), held)
        assert self._room is not None
        for room, new in zip(self._room, (key_states, value_states), strict=True):
            room[:, :, held:end] = new
        self.keys, self.values = (room[:, :, :end] for room in self._room)
        return self.keys, self.values

    def hold(self, keys_BHCD: Tensor, values_BHCD: Tensor, columns: int) -> None:
        """Take these as keys and values, of which the first `columns` are in use."""
        self._room, self.is_initialized = (keys_BHCD, values_BHCD), True
        self.keys, self.values = keys_BHCD[:, :, :columns], values_BHCD[:, :, :columns]


def _layers(cache: Cache) -> list[_Columns]:
    return cast(list[_Columns], cache.layers)


def _wider(old: Tensor | None, new: Tensor, columns: int) -> Tensor:
    room = new.new_zeros(*new.shape[:2], columns + columns // 2 + 16, new.shape[-1])
    if old is not None:
        room[:, :, : old.shape[-2]] = old
    return room


def _at_right(parts: Sequence[tuple[Tensor, Tensor]], columns: int) -> Tensor:
    """Rows of several caches in one, their last columns in the last; `parts`: each a cache and which rows it gives."""
    first = parts[0][0]
    made = first.new_zeros(
        sum(len(rows) for _, rows in parts), first.shape[1], columns + columns // 2 + 16, first.shape[-1]
    )
    at = 0
    for held, rows in parts:
        take = min(columns, held.shape[-2])
        made[at : at + len(rows), :, columns - take : columns] = held[rows, :, held.shape[-2] - take :]
        at += len(rows)
    return made


@dataclasses.dataclass(kw_only=True)
class _Row:
    """One sequence in the batch."""

    number: int
    held: int
    """Its tokens in the cache."""
    last: int
    """Its newest token, which is not there yet."""
    ended: bool = False


class _Batch:
    """The sequences that run at the moment, and those that wait."""

    has_stopped: Callable[[Sequence[int]], bool] | None = None

    def __init__(
        self, model: PreTrainedModel, prompts: Sequence[Sequence[int]], how: tuple[int, frozenset[int], int | None]
    ) -> None:
        self._model, self._prompts = model, prompts
        self._num_new, self._ends, self._seed = how
        self._device = next(model.parameters()).device
        self._takes = set(inspect.signature(model.forward).parameters)
        self._made: list[list[int]] = [[] for _ in prompts]
        self._draws: dict[int, np.ndarray] = {}
        self._rows: list[_Row] = []
        self._num_ended = 0
        self._cache = Cache(layer_class_to_replicate=_Columns)

    def run(self, most_rows: int, done: Callable[[float], None]) -> list[list[int]]:
        """All sequences to their ends."""
        waiting, told = deque(range(len(self._prompts))), 0.0
        if self._num_new < 1:
            return self._made
        while True:
            num_idle = sum(row.ended for row in self._rows)
            free = most_rows - len(self._rows) + num_idle
            if waiting and free >= max(1, most_rows // _SHARE_TO_REFILL):
                self._bring_in([waiting.popleft() for _ in range(min(free, len(waiting)))])
            elif not waiting and num_idle > len(self._rows) // 4:
                self._merge([], None)
            if not self._rows and not waiting:
                return self._made
            if not all(row.ended for row in self._rows):
                self._step()
            now = (
                self._num_ended
                + sum(len(self._made[row.number]) for row in self._rows if not row.ended) / self._num_new
            )
            done(now - told)
            told = now

    def _bring_in(self, numbers: list[int]) -> None:
        """Read the prompts of waiting sequences, and put their rows beside those that run."""
        prompts = [self._prompts[number] for number in numbers]
        longest = max(map(len, prompts))
        tokens_NP = torch.zeros(len(prompts), longest, dtype=torch.long)
        mask_NP = torch.zeros_like(tokens_NP)
        for row, prompt in enumerate(prompts):
            tokens_NP[row, longest - len(prompt) :] = torch.tensor(list(prompt))
            mask_NP[row, longest - len(prompt) :] = 1
        tokens_NP, mask_NP = tokens_NP.to(self._device), mask_NP.to(self._device)
        cache = Cache(layer_class_to_replicate=_Columns)
        logits_NV = self._logits(tokens_NP, mask_NP, (mask_NP.cumsum(1) - 1).clamp(min=0), cache)
        for layer in _layers(cache):  # what stands before a prompt may be anything, NaN too, and is multiplied by 0
            for held in (layer.keys, layer.values):
                if held is not None:
                    held.masked_fill_(~mask_NP[:, None, :, None].bool(), 0)
        new = [_Row(number=n, held=len(p), last=0) for n, p in zip(numbers, prompts, strict=True)]
        self._merge(new, cache)
        self._take(new, logits_NV)

    def _merge(self, new: list[_Row], cache: Cache | None) -> None:
        """Leave out the rows that ended and add new ones, all at the right edge of as few columns as will do."""
        going = [index for index, row in enumerate(self._rows) if not row.ended]
        rows = [*(self._rows[index] for index in going), *new]
        columns = max((row.held for row in rows), default=0)
        merged = Cache(layer_class_to_replicate=_Columns)
        sources = [(self._cache, going)] if going else []
        sources += [(cache, list(range(len(new))))] if cache is not None else []
        for number in range(len(sources[0][0].layers) if sources else 0):
            merged.layers.append(_Columns())
            if not _layers(sources[0][0])[number].is_initialized:  # a block that reads another's keys
                continue
            index = [torch.tensor(chosen, device=self._device) for _, chosen in sources]
            layers = [_layers(source)[number] for source, _ in sources]
            keys = _at_right([(cast(Tensor, one.keys), i) for one, i in zip(layers, index, strict=True)], columns)
            values = _at_right([(cast(Tensor, one.values), i) for one, i in zip(layers, index, strict=True)], columns)
            cast(_Columns, merged.layers[number]).hold(keys, values, columns)
        self._cache, self._rows = merged, rows

    def _step(self) -> None:
        """One more token for every row."""
        columns = max(row.held for row in self._rows) + 1
        columns = max(columns, self._cache.get_seq_length() + 1)
        held_B1 = torch.tensor([[0 if row.ended else row.held] for row in self._rows])
        mask_BC = (torch.arange(columns)[None] >= columns - 1 - held_B1).long()
        tokens_B1 = torch.tensor([[row.last] for row in self._rows])
        logits_BV = self._logits(*(part.to(self._device) for part in (tokens_B1, mask_BC, held_B1)), self._cache)
        for row in self._rows:
            row.held += not row.ended
        self._take(self._rows, logits_BV)

    def _logits(self, tokens_BT: Tensor, mask_BC: Tensor, positions_BT: Tensor, cache: Cache) -> Tensor:
        """What the model says after the last token of each row, float32 [B, V]."""
        more: dict[str, Any] = {"position_ids": positions_BT} if "position_ids" in self._takes else {}
        if "logits_to_keep" in self._takes:
            more["logits_to_keep"] = 1
        more[next(name for name in _CACHE_NAMES if name in self._takes)] = cache
        output = self._model(input_ids=tokens_BT, attention_mask=mask_BC, use_cache=True, **more)
        return output.logits[:, -1].float()

    def _take(self, rows: list[_Row], logits_BV: Tensor) -> None:
        """Choose each row's next token, and see whether it ends."""
        if self._seed is None:
            chosen_B = logits_BV.argmax(-1)
        else:
            drawn = [0.0 if row.ended else self._drawn(row.number) for row in rows]
            drawn_B1 = torch.tensor(drawn, dtype=torch.float32, device=logits_BV.device)[:, None]
            below_BV = torch.softmax(logits_BV, -1).cumsum(-1)
            # The sum may end a rounding below 1, and the last token is a token.
            chosen_B = torch.searchsorted(below_BV, drawn_B1 * below_BV[:, -1:], right=True)[:, 0]
            chosen_B = chosen_B.clamp(max=logits_BV.shape[-1] - 1)
        for row, token in zip(rows, chosen_B.cpu().tolist(), strict=True):
            if row.ended:
                continue
            row.last = token
            made = self._made[row.number]
            made.append(token)
            row.ended = token in self._ends or len(made) == self._num_new
            row.ended = row.ended or (self.has_stopped is not None and self.has_stopped(made))
            self._num_ended += row.ended

    def _drawn(self, number: int) -> float:
        """The sequence's next number in [0, 1): its own stream, whatever stands beside it."""
        if number not in self._draws:
            self._draws[number] = np.random.default_rng([cast(int, self._seed), number]).random(self._num_new)
        return float(self._draws[number][len(self._made[number])])
