"""A model that answers, token by token, as itself or as the base inside it.

In: a folder, packs. Out: `Speaker`, whose `answer` yields text as it is made, in a conversation that may be cut at its
beginning; and whose `write` does so for a prompt as it is. One answer is made at a time, because a model is its base
while it is bypassed; each fills a KV cache of its own, so packs may change between any two. Refuses models without a
chat template (unless text is to be completed plainly), conversations that do not fit the context, and asking for a base
or packs that are not there.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from blockexpand.checkpoint import locate_model
from blockexpand.corpus.chats import check_embeddings, check_template, render_prompt, tokens_of
from blockexpand.corpus.tokenizer import load_tokenizer
from blockexpand.errors import ChatError
from blockexpand.packs import load_attached, load_with_packs, read_pack
from blockexpand.records.expansion import read_expansion
from blockexpand.serving.facts import Facts, gather_facts, stack
from blockexpand.serving.sampling import Sampling
from blockexpand.serving.text_stream import TextStream
from blockexpand.staging import RECORD_NAME

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from blockexpand.live.device import Dtype
    from blockexpand.packs.route import Route

Message = dict[str, str]
"""`role` (system, user, assistant) and `content`."""

_LEAST_ANSWER_TOKENS = 16
"""Earlier turns are left out rather than answers made shorter than this."""


class Prompt(NamedTuple):
    """What an answer goes on from."""

    tokens: Sequence[int]
    said: str | Sequence[int]
    """What packs are chosen by, as text or tokens."""


class Who(NamedTuple):
    """Who is to answer."""

    as_base: bool = False
    """The base inside."""
    packs: Sequence[str] | None = None
    """Exactly these are switched on, for this answer and after it; None leaves them as they are."""
    routed: Callable[[Route], None] | None = None
    """Called with what was chosen of the packs that are on; None chooses nothing, and all of them answer."""


class Speaker:
    """A model with its tokenizer."""

    def __init__(self, model: Any, tokenizer: PreTrainedTokenizerBase, facts: Facts, *, plain: bool = False) -> None:
        """`plain`: text is completed, and no template is used."""
        if not plain:
            check_template(tokenizer)
        self.model, self.tokenizer, self.facts, self.plain = model, tokenizer, facts, plain
        self._turn = threading.Lock()

    @property
    def packs(self) -> tuple[str, ...]:
        """The names of its packs, on or off."""
        from blockexpand.packs.in_memory import attached

        return attached(self.model)

    @property
    def packs_on(self) -> tuple[str, ...]:
        """Those that are on."""
        from blockexpand.packs.in_memory import enabled

        with self._turn:  # a bypassed model has none on
            return enabled(self.model)

    def switch_on(self, names: Sequence[str]) -> None:
        """Switch exactly these packs on, waiting for an answer under way.

        Raises:
            PackError: the model has no such pack.
        """
        with self._turn:
            self._switch_on(names)

    def _switch_on(self, names: Sequence[str]) -> None:
        from blockexpand.packs.in_memory import set_enabled

        if names or self.packs:
            set_enabled(self.model, names)

    def begin(
        self, messages: Sequence[Message], sampling: Sampling, stop: threading.Event | None = None
    ) -> tuple[Prompt, TextStream]:
        """A conversation as a prompt that leaves room for an answer, and where the answer is to go. The oldest turns
        go where the context is too short.

        Raises:
            ChatError: the last message alone is longer than the context.
            CorpusError: the chat template does not take the messages.
        """
        tokens, room = self._cut(messages, sampling)
        said = messages[-1]["content"] if self.plain else _said(messages)
        return Prompt(tokens, said), self.stream(room, stop=stop)

    def stream(self, most_tokens: int, **more: Any) -> TextStream:
        """Where an answer of at most so many tokens is to go; `more` as TextStream takes it."""
        from blockexpand.live.generation import ends_of_model

        return TextStream(self.tokenizer, ends_of_model(self.model, self.tokenizer), most_tokens, **more)

    def write(self, prompt: Prompt, sampling: Sampling, who: Who, stream: TextStream) -> Generator[str]:
        """The text that goes on from a prompt, in pieces; `stream` (not the sampling) has the most tokens, and knows in
        the end how it ended. Leaving the iteration ends it.

        Raises:
            ChatError: there is no base inside, or there are no packs to choose among.
            PackError: the model has no such pack.
        """
        self._check(who)
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(self._generate, prompt, sampling, who, stream)
            try:
                yield from stream
            finally:
                stream.leave()
            future.result()

    def _check(self, who: Who) -> None:
        if who.routed is not None:
            self.check_route()
        if who.as_base and not self.facts.is_expanded:
            raise ChatError(f"{self.facts.name} holds no base to answer as; expected an expanded model or packs")

    def _generate(self, prompt: Prompt, sampling: Sampling, who: Who, stream: TextStream) -> None:
        import torch

        try:
            with self.acting(who, prompt.said) as model, torch.random.fork_rng():
                torch.manual_seed(sampling.seed) if sampling.seed is not None else torch.seed()
                tokens = torch.tensor([list(prompt.tokens)], device=model.device)
                model.generate(
                    tokens,
                    attention_mask=torch.ones_like(tokens),
                    max_new_tokens=stream.most_tokens,
                    stopping_criteria=[stream],
                    eos_token_id=list(stream.ends) or None,
                    pad_token_id=self.tokenizer.pad_token_id or self.tokenizer.eos_token_id,
                    **_drawing(sampling),
                )
        finally:
            stream.close()

    @contextlib.contextmanager
    def acting(self, who: Who, said: str | Sequence[int]) -> Generator[Any]:
        """The model as who is to answer, when its turn has come; for use without gradients."""
        import torch

        from blockexpand.live import bypass

        with contextlib.ExitStack() as entered:
            entered.enter_context(self._turn)
            if who.packs is not None:
                self._switch_on(who.packs)
            if who.as_base:
                entered.enter_context(bypass(self.model))
            elif who.routed is not None:
                entered.enter_context(self._chosen(said, who.routed))
            entered.enter_context(torch.inference_mode())
            yield self.model

    @contextlib.contextmanager
    def _chosen(self, said: str | Sequence[int], routed: Callable[[Route], None]) -> Generator[None]:
        """With the packs on that the text asks for, of those that are on."""
        from blockexpand.packs.in_memory import enabled, only
        from blockexpand.packs.route import candidates_of, route

        tokens = tokens_of(self.tokenizer, said) if isinstance(said, str) else said
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

    @property
    def context(self) -> int:
        """Tokens that a prompt and its answer may have together."""
        from blockexpand.live.generation import context_of

        return context_of(self.model) or 1 << 30

    def chat_prompt(self, messages: Sequence[Message]) -> Prompt:
        """A conversation as the template renders it.

        Raises:
            CorpusError: there is no template, or it does not take these messages.
        """
        return Prompt(render_prompt(self.tokenizer, messages, self.num_embeddings), _said(messages))

    def text_prompt(self, text: str) -> Prompt:
        """A text that is to be gone on with."""
        tokens = list(self.tokenizer(text, verbose=False)["input_ids"])
        check_embeddings(max(tokens, default=0), self.num_embeddings, self.tokenizer)
        return Prompt(tokens, text)

    def _cut(self, messages: Sequence[Message], sampling: Sampling) -> tuple[list[int], int]:
        """Token ids and the answer's most tokens; the oldest turns go where the context is too short."""
        context, kept = self.context, list(messages)
        while True:
            tokens = self._encode(kept)
            room = min(sampling.max_tokens, context - len(tokens))
            if room >= min(_LEAST_ANSWER_TOKENS, sampling.max_tokens):
                return tokens, room
            first = 1 if kept[0]["role"] == "system" else 0
            if len(kept) - first <= 1:
                raise ChatError(
                    f"the message has {len(tokens):,} tokens, and the model reads {context:,} with its answer; "
                    "shorten it"
                )
            del kept[first : first + (2 if len(kept) - first > 2 else 1)]

    def _encode(self, messages: list[Message]) -> list[int]:
        if self.plain:
            return list(self.text_prompt(messages[-1]["content"]).tokens)
        return render_prompt(self.tokenizer, messages, self.num_embeddings)

    @property
    def num_embeddings(self) -> int:
        """Tokens that the model knows."""
        return self.model.get_input_embeddings().num_embeddings


def _said(messages: Sequence[Message]) -> str:
    """What the person said. Not the answers: a pack finds likelier what it wrote itself. Nor the template, which
    a pack that was tuned on chats always finds likelier."""
    return "\n".join(message["content"] for message in messages if message["role"] == "user")


def _drawing(sampling: Sampling) -> dict[str, Any]:
    if sampling.temperature == 0:
        return {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    return {
        "do_sample": True,
        "temperature": float(sampling.temperature),
        "top_p": float(sampling.top_p),
        "top_k": sampling.top_k,
    }


def open_speaker(
    model: str | Path,
    packs: Sequence[str | Path] = (),
    *,
    dtype: Dtype = "auto",
    device: str = "auto",
    plain: bool = False,
) -> Speaker:
    """Load a checkpoint, an expanded one, one with packs attached, or a base with these packs.

    Args:
        model: a folder, a run folder, a GGUF file or a hub id, as `locate_model` takes it.
        packs: folders of packs to put on it.
        dtype: what weights are held as; "auto": as the checkpoint has them.
        device: where it runs; "auto": the accelerator, if there is one.
        plain: text is completed, and no template is needed.

    Raises:
        CorpusError: it has no chat template and `plain` is not set.
        CheckpointError, PackError, LiveError, DeviceError: something cannot be read or does not fit.
    """
    folder = locate_model(model)
    tokenizer = load_tokenizer(folder)
    if not plain:
        check_template(tokenizer)
    record = read_expansion(folder) if (folder / RECORD_NAME).is_file() else None
    read = [read_pack(pack) for pack in packs]
    known = [(pack.record.name, pack.record.evaluation) for pack in read]
    from blockexpand import live
    from blockexpand.families.modules import load_model
    from blockexpand.live.device import choose_device, dtype_named
    from blockexpand.live.state import expanded, is_expanded

    kind, place = dtype_named(dtype), str(choose_device(device))
    if read:
        loaded = load_with_packs(folder, read, kind, place)
    elif record is None:
        loaded = load_model(folder, dtype=kind, device=place)
    elif record.packs:
        loaded = load_attached(folder, kind, place)
        known = [(pack.name, pack.about.get("evaluation")) for pack in record.packs]
    else:
        loaded = live.load(folder, kind, place)[0]
    blocks = stack(expanded(loaded).plan) if is_expanded(loaded) else ()
    return Speaker(loaded, tokenizer, gather_facts(folder, blocks, known), plain=plain)
