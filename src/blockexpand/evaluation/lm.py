"""Models under test, as lm-evaluation-harness asks them: one in memory, or one behind an address.

In: the harness's requests. Out: answers, which go to the journal as they come, with the time each took and the tokens
of its prompt that did not fit. Refused: likelihoods from an address, which gives none.

The harness's own class for transformers does the batching, sorting and stopping; what is added here is counting.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, cast

from lm_eval.api.model import LM
from lm_eval.models.huggingface import HFLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from blockexpand.errors import EvaluationError
from blockexpand.packs.in_memory import only
from blockexpand.records.pack import Names, name_of

if TYPE_CHECKING:
    import torch
    from lm_eval.api.instance import Instance
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from blockexpand.evaluation.endpoint import Endpoint
    from blockexpand.evaluation.harness import Options
    from blockexpand.evaluation.routes import Router

_AT_ONCE = 8
"""Requests under way at a time: enough for a server to batch, few enough for public rate limits."""
_MOST_STOPS = 4  # OpenAI's chat completions take no more; the text is cut at the others here

Heard = Callable[..., None]
"""Called with (method, arguments, value) and seconds, error, cut, for each answer as it comes."""


class _Hook:
    """The harness's hook for caches, told of each answer."""

    def __init__(self, told: Callable[[str, tuple, Any], None]) -> None:
        self._told = told

    def add_partial(self, attr: str, req: Iterable[Any], res: Any) -> None:
        self._told(attr, tuple(req), res)


class LoadedLM(HFLM):
    """A model in memory. N = sequences of a pass, T = tokens of one, V = vocabulary."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, options: Options) -> None:
        """`model` in eval mode, on its device."""
        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        # A text longer than the context is cut or windowed, and counted; transformers would warn of it each time.
        tokenizer.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = True
        super().__init__(pretrained=model, tokenizer=cast(Any, tokenizer), batch_size=options.batch_size)
        self._options = options
        self._share_seconds = 0.0
        self._lengths: dict[tuple, tuple[int, int]] = {}
        self.heard: Heard = lambda *_, **__: None
        self._noted: dict[str, str] = {}
        """What else each answer is told with."""
        self.set_cache_hook(_Hook(self._tell))  # ty: ignore[invalid-argument-type]

    @property
    def window_tokens(self) -> int:
        """Of the text tasks."""
        return min(self._options.window_tokens or self.max_length, self.max_length)

    @property
    def stride_tokens(self) -> int:
        """New tokens that each window but the first predicts."""
        return min(self._options.stride_tokens or max(self.window_tokens // 2, 1), self.window_tokens)

    def meet(self, requests: Sequence[Instance]) -> None:
        """All questions of a task, before those without an answer are asked."""

    def _tell(self, method: str, arguments: tuple, value: Any) -> None:
        cut, num_tokens = self._lengths.get((method, str(arguments[0]), str(arguments[1:])), (0, 0))
        if method == "loglikelihood":
            value = (*value, num_tokens)
        self.heard(method, arguments, value, seconds=self._share_seconds, cut=cut, **self._noted)

    def _note(self, method: str, arguments: tuple, lengths: tuple[int, int]) -> None:
        self._lengths[method, str(arguments[0]), str(arguments[1:])] = lengths

    def _model_call(self, inps: torch.Tensor, attn_mask: Any = None, labels: Any = None) -> torch.Tensor:
        """Logits [N, T, V]; each sequence is given its share of the time."""
        start = time.perf_counter()
        logits_NTV = super()._model_call(inps, attn_mask, labels)
        self._share_seconds = (time.perf_counter() - start) / len(inps)
        return logits_NTV

    def _model_generate(self, context: torch.Tensor, max_length: int, stop: list[str], **settings: Any) -> torch.Tensor:
        """Prompts and answers, token ids [N, T]; each sequence is given its share of the time."""
        start = time.perf_counter()
        tokens_NT = super()._model_generate(context, max_length, stop, **settings)
        self._share_seconds = (time.perf_counter() - start) / len(context)
        return tokens_NT

    def _loglikelihood_tokens(self, requests: list, disable_tqdm: bool = False, override_bs: Any = None) -> list:
        for arguments, context, continuation in requests:
            if arguments is not None:
                cut = max(0, len(context) + len(continuation) - self.max_length - 1)
                self._note("loglikelihood", arguments, (cut, len(continuation)))
        return super()._loglikelihood_tokens(requests, disable_tqdm=disable_tqdm, override_bs=override_bs)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Of each continuation after its context: nats, and whether it is the greedy one."""
        return super().loglikelihood(requests, disable_tqdm=disable_tqdm)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """Texts, each ended before its first stop; at least half of the context is the prompt's."""
        room = self.max_length - max((_new_tokens(r.args[1], self.max_gen_toks) for r in requests), default=0)
        for request in requests:
            new = min(_new_tokens(request.args[1], self.max_gen_toks), self.max_length // 2)
            request.args[1]["max_gen_toks"] = new
            if room < self.max_length:  # the count costs a second tokenisation
                cut = max(0, len(self.tok_encode(request.args[0])) - (self.max_length - new))
                self._note("generate_until", request.args, (cut, 0))
        return super().generate_until(requests, disable_tqdm=disable_tqdm)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        """The nats of each text, from its first token on, in sliding windows."""
        del disable_tqdm  # the bar is ours
        found = []
        for request in requests:
            start = time.perf_counter()
            total = self._nats_of(self.tok_encode(request.args[0], add_special_tokens=False))
            self._share_seconds = time.perf_counter() - start
            self.heard("loglikelihood_rolling", request.args, total, seconds=self._share_seconds, **self._noted)
            found.append(total)
        return found

    def _nats_of(self, tokens: list[int]) -> float:
        """The log-likelihood of a text's tokens, in sliding windows."""
        windows = [
            (None, *make_disjoint_window(pair))
            for pair in get_rolling_token_windows(
                token_list=tokens,
                prefix_token=self.prefix_token_id,
                max_seq_len=self.window_tokens,
                context_len=self.window_tokens - self.stride_tokens + 1,
            )
        ]
        return sum(nats for nats, _ in self._loglikelihood_tokens(windows, disable_tqdm=True))


class RoutedLM(LoadedLM):
    """A model with packs, asked each question with those that the question asks for.

    A question is routed by its context, once for all its choices. Where each choice has a context of its own
    (Winogrande), by what these begin with alike. Questions of one route share passes.
    """

    def __init__(self, router: Router, tokenizer: PreTrainedTokenizerBase, options: Options) -> None:
        """`router`: of the model that is asked."""
        super().__init__(router.model, tokenizer, options)
        self.router = router
        self._contexts: dict[tuple, list[str]] = {}

    def meet(self, requests: Sequence[Instance]) -> None:
        """What each question is routed by."""
        self._contexts = {}
        for request in requests:
            if request.args[0]:
                self._contexts.setdefault((request.task_name, request.doc_id), []).append(request.args[0])

    def _routed(self, ask: Callable[..., list], requests: list[Instance]) -> list:
        """Answers in the order of the requests."""
        alike: dict[Names, list[int]] = {}
        for number, request in enumerate(requests):
            text = _common_start(self._contexts.get((request.task_name, request.doc_id), []))
            alike.setdefault(self.router.of_text(text), []).append(number)
        found: dict[int, Any] = {}
        for names, numbers in alike.items():
            self._noted = {"route": name_of(names)}
            with only(self.router.model, *names):
                found |= dict(zip(numbers, ask([requests[n] for n in numbers]), strict=True))
        return [found[number] for number in range(len(requests))]

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """As `LoadedLM`, by route."""
        return self._routed(functools.partial(super().loglikelihood, disable_tqdm=disable_tqdm), requests)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """As `LoadedLM`, by route."""
        return self._routed(functools.partial(super().generate_until, disable_tqdm=disable_tqdm), requests)

    def _nats_of(self, tokens: list[int]) -> float:
        """Of the first tokens, by which it is routed, under the base; of the others under the chosen packs."""
        head = tokens[: min(self.router.rule.prompt_tokens, self.window_tokens)]
        names = self.router.of_tokens(head)
        self._noted = {"route": name_of(names)}
        with only(self.router.model):
            known = super()._nats_of(head if names else tokens)
        if not names:
            return known
        with only(self.router.model, *names):
            return known + super()._nats_of(tokens) - super()._nats_of(head)


def _common_start(texts: Sequence[str]) -> str:
    """What all texts begin with."""
    if not texts:
        return ""
    first, last = min(texts), max(texts)  # any other lies between these two
    length = next((n for n, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    return first[:length]


def _new_tokens(settings: dict[str, Any], otherwise: int) -> int:
    return int(settings.get("max_gen_toks", otherwise))


class EndpointLM(LM):
    """A model behind an OpenAI-compatible address: it writes, and gives no likelihoods."""

    def __init__(self, endpoint: Endpoint) -> None:
        """Questions go to `endpoint`, as one turn of a chat each."""
        super().__init__()
        self.endpoint = endpoint
        self.heard: Heard = lambda *_, **__: None

    def meet(self, requests: Sequence[Instance]) -> None:
        """Nothing to be known beforehand."""

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Texts; what the server could not answer is told as an error, and is empty here."""
        from concurrent.futures import ThreadPoolExecutor, as_completed

        texts = [""] * len(requests)
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            asked = {pool.submit(self._ask, request): number for number, request in enumerate(requests)}
            try:
                for future in as_completed(asked):
                    number, (text, error, seconds) = asked[future], future.result()
                    texts[number] = text or ""
                    self.heard("generate_until", requests[number].args, text, seconds=seconds, error=error)
            finally:
                pool.shutdown(cancel_futures=True)
        return texts

    def _ask(self, request: Instance) -> tuple[str | None, str | None, float]:
        """The text or the error, and the seconds."""
        prompt, settings = request.args
        stops = tuple(settings.get("until", ()))
        answer = self.endpoint.chat(
            [{"role": "user", "content": prompt}],
            _new_tokens(settings, 256),
            float(settings.get("temperature", 0.0)) if settings.get("do_sample") else 0.0,
            stops[:_MOST_STOPS],
        )
        if answer.error:
            return None, answer.error, answer.seconds
        places = [place for stop in stops if (place := answer.text.find(stop)) >= 0]
        return answer.text[: min(places, default=None)], None, answer.seconds

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Refused."""
        raise self._refusal(requests)

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Refused."""
        raise self._refusal(requests)

    def _refusal(self, requests: list[Instance]) -> EvaluationError:
        name = requests[0].task_name if requests else "the task"
        return EvaluationError(
            f"{name} needs likelihoods, and the chat interface at {self.endpoint.url} gives none; expected tasks in "
            "which the model writes; name such tasks, e.g. --suite gsm8k,humaneval, or give the model's folder"
        )
