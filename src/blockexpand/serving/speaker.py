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
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from blockexpand.errors import ChatError
from blockexpand.serving.facts import Facts, gather_facts, read_record, stack
from blockexpand.serving.sampling import Sampling
from blockexpand.serving.text_stream import Pieces

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

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
        _check_template(tokenizer, facts.name, plain)
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

    def wear(self, names: Sequence[str]) -> None:
        """Switch exactly these packs on, waiting for an answer under way.

        Raises:
            PackError: the model has no such pack.
        """
        with self._turn:
            self._wear(names)

    def _wear(self, names: Sequence[str]) -> None:
        from blockexpand.packs.in_memory import disable, enable

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
        who = Who(as_base, packs, routed)
        self._check(who)
        tokens, room = self._cut(messages, sampling)
        said = messages[-1]["content"] if self.plain else _said(messages)
        yield from self.write(Prompt(tokens, said), sampling, who, self.pieces(room, stop=stop))

    def pieces(self, most_tokens: int, **more: Any) -> Pieces:
        """Where an answer of at most so many tokens is to go; `more` as Pieces takes it."""
        from blockexpand.live.generation import ends_of_model

        return Pieces(self.tokenizer, ends_of_model(self.model, self.tokenizer), most_tokens, **more)

    def write(self, prompt: Prompt, sampling: Sampling, who: Who, pieces: Pieces) -> Generator[str]:
        """The text that goes on from a prompt, in pieces; `pieces` (not the sampling) has the most tokens, and knows in
        the end how it ended. Leaving the iteration ends it.

        Raises:
            ChatError, PackError: as `answer`, but for the context, which is not looked at.
        """
        self._check(who)
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(self._generate, prompt, sampling, who, pieces)
            try:
                yield from pieces
            finally:
                pieces.leave()
            future.result()

    def _check(self, who: Who) -> None:
        if who.routed is not None:
            self.check_route()
        if who.as_base and not self.facts.is_expanded:
            raise ChatError(f"{self.facts.name} holds no base to answer as; expected an expanded model or packs")

    def _generate(self, prompt: Prompt, sampling: Sampling, who: Who, pieces: Pieces) -> None:
        import torch

        try:
            with self.acting(who, prompt.said) as model, torch.random.fork_rng():
                torch.manual_seed(sampling.seed) if sampling.seed is not None else torch.seed()
                tokens = torch.tensor([list(prompt.tokens)], device=model.device)
                model.generate(
                    tokens,
                    attention_mask=torch.ones_like(tokens),
                    max_new_tokens=pieces.most_tokens,
                    stopping_criteria=[pieces],
                    eos_token_id=list(pieces.ends) or None,
                    pad_token_id=self.tokenizer.pad_token_id or self.tokenizer.eos_token_id,
                    **_drawing(sampling),
                )
        finally:
            pieces.close()

    @contextlib.contextmanager
    def acting(self, who: Who, said: str | Sequence[int]) -> Generator[Any]:
        """The model as who is to answer, when its turn has come; for use without gradients."""
        import torch

        from blockexpand.live import bypass

        with contextlib.ExitStack() as entered:
            entered.enter_context(self._turn)
            if who.packs is not None:
                self._wear(who.packs)
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

        if isinstance(said, str):
            said = list(self.tokenizer(said, add_special_tokens=False, verbose=False)["input_ids"])
        tokens = said
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
            ChatError: there is no template, or it does not take these messages.
        """
        _check_template(self.tokenizer, self.facts.name, plain=False)
        return Prompt(self._rendered(messages), _said(messages))

    def text_prompt(self, text: str) -> Prompt:
        """A text that is to be gone on with."""
        return Prompt(list(self.tokenizer(text, verbose=False)["input_ids"]), text)

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
        return list(self.text_prompt(messages[-1]["content"]).tokens) if self.plain else self._rendered(messages)

    def _rendered(self, messages: Sequence[Message]) -> list[int]:
        from jinja2 import TemplateError

        turns = list(messages)
        try:
            text = str(self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
        except TemplateError as error:
            roles = ", ".join(message["role"] for message in turns)
            raise ChatError(
                f"the chat template of {self.facts.name} does not take these messages ({error}): {roles}; expected "
                "what it was written for; most want user and assistant by turns, some no system"
            ) from None
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _said(messages: Sequence[Message]) -> str:
    """What the person said. Not the answers: a pack finds likelier what it wrote itself. Nor the template, which
    a pack that was tuned on chats always finds likelier."""
    return "\n".join(message["content"] for message in messages if message["role"] == "user")


def _check_template(tokenizer: PreTrainedTokenizerBase, name: str, plain: bool) -> None:
    if not plain and not tokenizer.chat_template:
        raise ChatError(
            f"{name} has no chat template, so it cannot be talked to; expected an instruction-tuned model; add "
            "chat_template.jinja, or complete text (chat --plain; where it is served, POST /v1/completions)"
        )


def _drawing(sampling: Sampling) -> dict[str, Any]:
    if sampling.temperature == 0:
        return {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    return {"do_sample": True, "temperature": float(sampling.temperature), "top_p": float(sampling.top_p), "top_k": 0}


def open_speaker(
    folder: str | Path,
    packs: Sequence[str | Path] = (),
    *,
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto",
    device: str = "auto",
    plain: bool = False,
) -> Speaker:
    """Load a checkpoint, an expanded one, one with packs attached, or a base with these packs.

    Raises:
        ChatError: it has no chat template and `plain` is not set.
        CheckpointError, PackError, LiveError, CorpusError: something cannot be read or does not fit.
    """
    from blockexpand import live
    from blockexpand.checkpoint import locate_model
    from blockexpand.corpus.tokenizer import load_tokenizer
    from blockexpand.families.modules import load_model
    from blockexpand.live.device import choose_device, dtype_named
    from blockexpand.live.state import expanded, is_expanded
    from blockexpand.packs import read_pack

    folder = locate_model(folder)
    tokenizer = load_tokenizer(folder)
    _check_template(tokenizer, str(folder), plain)
    record, kind, device = read_record(folder), dtype_named(dtype), str(choose_device(device))
    read = [read_pack(pack) for pack in packs]
    known = [(pack.record.name, pack.record.evaluation) for pack in read]
    model: Any
    if read:
        from blockexpand.packs import load_with_packs

        model = load_with_packs(folder, read, kind, device)
    elif record is None:
        model = load_model(folder, dtype=kind, device=device)
    elif record.packs:
        from blockexpand.packs import load_attached

        model = load_attached(folder, kind, device)
        known = [(pack.name, pack.about.get("evaluation")) for pack in record.packs]
    else:
        model = live.load(folder, kind, device)[0]
    blocks = stack(expanded(model).plan) if is_expanded(model) else ()
    return Speaker(model, tokenizer, gather_facts(folder, blocks, known), plain=plain)
