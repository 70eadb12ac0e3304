"""A model that answers, token by token, as itself or as the base inside it.

In: a folder, packs. Out: `Speaker`, whose `answer` yields text as it is made. One answer is made at a time, because a
model is its base while it is bypassed; each fills a KV cache of its own, so packs may change between any two. Refuses
models without a chat template (unless text is to be completed plainly), conversations that do not fit the context, and
asking for a base or packs that are not there.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from blockexpand.chat.facts import Facts, gather_facts, read_record, stack
from blockexpand.chat.sampling import Sampling
from blockexpand.errors import ChatError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from blockexpand.packs.routing import Route

Message = dict[str, str]
"""`role` (system, user, assistant) and `content`."""

_LEAST_ANSWER_TOKENS = 16
"""Earlier turns are left out rather than answers made shorter than this."""


class _Way(NamedTuple):
    """How one answer is made, and where its pieces go."""

    as_base: bool
    packs: Sequence[str] | None
    routed: Callable[[Route], None] | None
    said: str
    """What the packs are chosen by."""
    stop: threading.Event
    streamer: Any


class Speaker:
    """A model with its tokenizer."""

    def __init__(self, model: Any, tokenizer: PreTrainedTokenizerBase, facts: Facts, *, plain: bool = False) -> None:
        """`plain`: text is completed, and no template is used."""
        _check_template(tokenizer, facts.name, plain)
        self.model, self.tokenizer, self.facts, self.plain = model, tokenizer, facts, plain
        self._turn = threading.Lock()

    @property
    def packs(self) -> tuple[str, ...]:
        """The names of its packs, on or off."""
        from blockexpand.packs.memory import attached

        return attached(self.model)

    @property
    def packs_on(self) -> tuple[str, ...]:
        """Those that are on."""
        from blockexpand.packs.memory import enabled

        with self._turn:  # a bypassed model has none on
            return enabled(self.model)

    def wear(self, names: Sequence[str]) -> None:
        """Switch exactly these packs on, waiting for an answer under way.

        Raises:
            PackError: the model has no such pack.
        """
        with self._turn:
            self._wear(names)

    def _wear(self, names: Sequence[str]) -> None:
        from blockexpand.packs.memory import disable, enable

        if names:
            enable(self.model, *names)
        disable(self.model, *(name for name in self.packs if name not in names))

    def answer(
        self,
        messages: Sequence[Message],
        sampling: Sampling,
        *,
        as_base: bool = False,
        packs: Sequence[str] | None = None,
        routed: Callable[[Route], None] | None = None,
        stop: threading.Event | None = None,
    ) -> Generator[str]:
        """The answer's text, in pieces. Leaving the iteration, or setting `stop`, ends it. With `packs`, exactly these
        are switched on for it and after it. With `routed`, of the packs that are on the one answers (or the base) with
        which what the person has said is likelier; it is called with what was chosen before the first piece comes.

        Raises:
            ChatError: there is no base inside, or there are no packs to choose among, or the last message alone is
                longer than the context.
            PackError: the model has no such pack.
        """
        if routed is not None:
            self.check_route()
        if as_base and not self.facts.is_expanded:
            raise ChatError(f"{self.facts.name} holds no base to answer as; expected an expanded model or packs")
        from transformers import TextIteratorStreamer

        stop = stop or threading.Event()
        prompt, room = self._prompt(messages, sampling)
        streamer = TextIteratorStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True)
        way = _Way(as_base, packs, None if as_base else routed, self._said(messages), stop, streamer)
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(self._generate, prompt, room, sampling, way)
            try:
                yield from (piece for piece in streamer if piece)
            finally:
                stop.set()
            future.result()

    def _generate(self, prompt: Any, room: int, sampling: Sampling, way: _Way) -> None:
        import torch

        def has_stopped(input_ids: Any, _scores: Any, **_more: Any) -> Any:
            return torch.full((len(input_ids),), way.stop.is_set(), dtype=torch.bool, device=input_ids.device)

        try:
            with contextlib.ExitStack() as entered:
                entered.enter_context(self._turn)
                if way.packs is not None:
                    self._wear(way.packs)
                if way.routed is not None:
                    entered.enter_context(self._chosen(way.said, way.routed))
                for context in (self._as(way.as_base), torch.inference_mode(), torch.random.fork_rng()):
                    entered.enter_context(context)
                torch.manual_seed(sampling.seed) if sampling.seed is not None else torch.seed()
                self.model.generate(
                    prompt,
                    attention_mask=torch.ones_like(prompt),
                    max_new_tokens=room,
                    streamer=way.streamer,
                    stopping_criteria=[has_stopped],
                    pad_token_id=self.tokenizer.pad_token_id or self.tokenizer.eos_token_id,
                    **_drawing(sampling),
                )
        finally:
            way.streamer.end()

    @contextlib.contextmanager
    def _chosen(self, said: str, routed: Callable[[Route], None]) -> Generator[None]:
        """With the packs on that the text asks for, of those that are on."""
        from blockexpand.packs.memory import enabled, only
        from blockexpand.packs.routing import candidates_of, route

        tokens = self.tokenizer(said, add_special_tokens=False, verbose=False)["input_ids"]
        found = route(self.model, tokens, candidates=candidates_of(self.model, among=enabled(self.model)))
        routed(found)
        with only(self.model, *found.names):
            yield

    def check_route(self) -> None:
        """Refuse to choose packs where there are none.

        Raises:
            ChatError: the model has none.
        """
        if not self.packs:
            raise ChatError(
                f"{self.facts.name} has no packs to choose among; expected a folder that `pack attach` wrote, or packs "
                "beside the base; give --pack PACK, or leave out --route auto"
            )

    def _said(self, messages: Sequence[Message]) -> str:
        """What the person said. Not the answers: a pack finds likelier what it wrote itself. Nor the template, which
        a pack that was tuned on chats always finds likelier."""
        if self.plain:
            return messages[-1]["content"]
        return "\n".join(message["content"] for message in messages if message["role"] == "user")

    def _as(self, as_base: bool) -> contextlib.AbstractContextManager[Any]:
        from blockexpand.live import bypass

        return bypass(self.model) if as_base else contextlib.nullcontext()

    def _prompt(self, messages: Sequence[Message], sampling: Sampling) -> tuple[Any, int]:
        """Token ids [1, length] and the answer's most tokens; the oldest turns go where the context is too short."""
        import torch

        context = int(vars(self.model.config).get("max_position_embeddings") or 1 << 30)
        kept = list(messages)
        while True:
            ids = self._encode(kept)
            room = min(sampling.max_tokens, context - len(ids))
            if room >= min(_LEAST_ANSWER_TOKENS, sampling.max_tokens):
                return torch.tensor([ids], device=self.model.device), room
            first = 1 if kept[0]["role"] == "system" else 0
            if len(kept) - first <= 1:
                raise ChatError(
                    f"the message has {len(ids):,} tokens, and the model reads {context:,} with its answer; shorten it"
                )
            del kept[first : first + (2 if len(kept) - first > 2 else 1)]

    def _encode(self, messages: list[Message]) -> list[int]:
        if self.plain:
            return list(self.tokenizer(messages[-1]["content"])["input_ids"])
        text = str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])


def _check_template(tokenizer: PreTrainedTokenizerBase, name: str, plain: bool) -> None:
    if not plain and not tokenizer.chat_template:
        raise ChatError(
            f"{name} has no chat template, so it cannot be talked to; expected an instruction-tuned model; add "
            "chat_template.jinja, or complete text with --plain"
        )


def _drawing(sampling: Sampling) -> dict[str, Any]:
    if sampling.temperature == 0:
        return {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    return {"do_sample": True, "temperature": float(sampling.temperature), "top_p": float(sampling.top_p), "top_k": 0}


def open_speaker(
    folder: str | Path,
    packs: Sequence[str | Path] = (),
    *,
    dtype: Literal["float32", "float16", "bfloat16"] = "float32",
    device: str = "cpu",
    plain: bool = False,
) -> Speaker:
    """Load a checkpoint, an expanded one, one with packs attached, or a base with these packs.

    Raises:
        ChatError: it has no chat template and `plain` is not set.
        CheckpointError, PackError, LiveError, CorpusError: something cannot be read or does not fit.
    """
    import torch

    from blockexpand import live
    from blockexpand.corpus.tokens import load_tokenizer
    from blockexpand.families.modules import load_model
    from blockexpand.live.state import expanded, is_expanded
    from blockexpand.packs import read_pack

    tokenizer = load_tokenizer(folder)
    _check_template(tokenizer, str(folder), plain)
    record, kind = read_record(folder), vars(torch)[dtype]
    read = [read_pack(pack) for pack in packs]
    known = [(pack.record.name, pack.record.evaluation) for pack in read]
    model: Any
    if read:
        from blockexpand.packs import load_with_packs

        model = load_with_packs(folder, read, kind, device)
    elif record is None:
        model = load_model(Path(folder), dtype=kind, device=device)
    elif record.packs:
        from blockexpand.packs import load_attached

        model = load_attached(folder, kind, device)
        known = [(pack.name, pack.about.get("evaluation")) for pack in record.packs]
    else:
        model = live.load(folder, kind, device)[0]
    blocks = stack(expanded(model).plan) if is_expanded(model) else ()
    return Speaker(model, tokenizer, gather_facts(folder, blocks, known), plain=plain)
