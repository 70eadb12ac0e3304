"""Models under test, as lm-evaluation-harness asks them: one in memory, or one behind an address.

In: the harness's requests. Out: answers, each told to the harness's cache as it comes. Refused: likelihoods from an
address, which gives none. The harness's own class for transformers does the batching, sorting and stopping; what is
added: where an answer ends, windows of our own, tokens of each choice, prompts that did not fit, packs by question.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Self, cast

from lm_eval.api.model import LM, CacheHook
from lm_eval.models.huggingface import HFLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from blockexpand.corpus.chats import render
from blockexpand.errors import EvaluationError
from blockexpand.evaluation.endpoint import Request, ask_all
from blockexpand.live.generation import ends_of_model
from blockexpand.packs.in_memory import only
from blockexpand.progress import Bar, bar
from blockexpand.records.pack import Names, name_of

if TYPE_CHECKING:
    import torch
    from lm_eval.api.instance import Instance
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from blockexpand.evaluation.endpoint import Endpoint
    from blockexpand.evaluation.harness import Options
    from blockexpand.evaluation.routes import Router


class Likelihood(tuple):
    """A log-likelihood (nats) and whether it is the greedy continuation, as the harness has it, and the
    continuation's tokens, which the harness leaves out."""

    num_tokens: int

    def __new__(cls, nats: float, greedy: bool, num_tokens: int) -> Self:
        """A pair with a number beside it."""
        made = super().__new__(cls, (nats, greedy))
        made.num_tokens = num_tokens
        return made

    def __getnewargs__(self) -> tuple[float, bool, int]:
        """For the cache, which pickles."""
        return self[0], self[1], self.num_tokens


class Unanswered(str):
    """What stands for an answer that a server did not give."""

    error: str

    def __new__(cls, error: str) -> Self:
        """An empty text that knows why."""
        made = super().__new__(cls, "")
        made.error = error
        return made

    def __getnewargs__(self) -> tuple[str]:
        """For the cache, which pickles."""
        return (self.error,)


class _Hook:
    """The harness's hook for its cache, with a bar."""

    def __init__(self, lm: LoadedLM, cache: CacheHook) -> None:
        self._lm, self._cache = lm, cache

    def add_partial(self, attr: str, req: Iterable[Any], res: Any) -> None:
        arguments = tuple(req)
        if attr == "loglikelihood":
            res = Likelihood(*res, self._lm.num_tokens.get(arguments, 0))
        self._cache.add_partial(attr, arguments, res)
        if self._lm.progress is not None:
            self._lm.progress.advance(1)


class LoadedLM(HFLM):
    """A model in memory. N = sequences of a pass, T = tokens of one, V = vocabulary."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, options: Options) -> None:
        """`model` in eval mode, on its device."""
        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        # A text longer than the context is cut or windowed, and counted; transformers would warn of it each time.
        tokenizer.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = True
        super().__init__(
            pretrained=model,
            tokenizer=cast(Any, tokenizer),
            batch_size=options.batch_size,
            softmax_dtype="float32",  # whatever the weights are in
        )
        self._options = options
        self._ends = ends_of_model(model, tokenizer)
        self.progress: Bar | None = None
        self.num_tokens: dict[tuple, int] = {}
        """Of each continuation, by (context, continuation)."""
        self.cut_tokens: dict[str, int] = {}
        """Of each context that did not fit: tokens left out at its beginning."""
        self.routes: dict[tuple[str, int], str] = {}
        """Of each question the packs that it was given, where they are chosen."""
        self.set_cache_hook(CacheHook(None))

    @property
    def window_tokens(self) -> int:
        """Of the text tasks."""
        return min(self._options.window_tokens or self.max_length, self.max_length)

    @property
    def stride_tokens(self) -> int:
        """New tokens that each window but the first predicts."""
        return min(self._options.stride_tokens or max(self.window_tokens // 2, 1), self.window_tokens)

    def set_cache_hook(self, cache_hook: Any) -> None:
        """The harness's, with a bar around it."""
        super().set_cache_hook(cast(Any, _Hook(self, cache_hook)))

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """As everything else here renders chats: what a template raises is one line."""
        return render(cast(Any, self.tokenizer), chat_history, prompt=add_generation_prompt)

    def _watched(self, ask: Callable[..., list], requests: list[Instance]) -> list:
        task = requests[0].task_name or "answers"
        more = len({request.task_name for request in requests}) - 1
        with bar(f"{task} and {more} more" if more else task, len(requests), "answers") as self.progress:
            return ask(requests)

    def _model_generate(self, context: torch.Tensor, max_length: int, stop: list[str], **settings: Any) -> torch.Tensor:
        """Prompts and answers, token ids [N, T]; they end where chat and serve end, too."""
        return super()._model_generate(context, max_length, stop, **({"eos_token_id": self._ends} | settings))

    def _loglikelihood_tokens(self, requests: list, disable_tqdm: bool = True, override_bs: Any = None) -> list:
        for arguments, context, continuation in requests:
            if arguments is not None:
                self.num_tokens[arguments] = len(continuation)
                self._note_cut(arguments[0], len(context) + len(continuation) - self.max_length - 1)
        found = super()._loglikelihood_tokens(requests, disable_tqdm=disable_tqdm, override_bs=override_bs)
        return [Likelihood(*pair, len(one[2])) for pair, one in zip(found, requests, strict=True)]

    def _note_cut(self, context: str, num_tokens: int) -> None:
        if num_tokens > 0:
            self.cut_tokens[context] = max(num_tokens, self.cut_tokens.get(context, 0))

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Of each continuation after its context: nats, and whether it is the greedy one."""
        return self._watched(functools.partial(super().loglikelihood, disable_tqdm=disable_tqdm), requests)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """Texts, each ended before its first stop; at least half of the context is the prompt's."""
        room = self.max_length - max((_new_tokens(r.args[1], self.max_gen_toks) for r in requests), default=0)
        for request in requests:
            new = min(_new_tokens(request.args[1], self.max_gen_toks), self.max_length // 2)
            request.args[1]["max_gen_toks"] = new
            if room < self.max_length:  # the count costs a second tokenisation
                self._note_cut(request.args[0], len(self.tok_encode(request.args[0])) - (self.max_length - new))
        return self._watched(functools.partial(super().generate_until, disable_tqdm=disable_tqdm), requests)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        """The nats of each text, from its first token on, in sliding windows."""
        del disable_tqdm
        return self._watched(lambda some: [self._rolling(request) for request in some], requests)

    def _rolling(self, request: Instance) -> float:
        total = self._nats_of(self.tok_encode(request.args[0], add_special_tokens=False))
        self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return total

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
        return sum(pair[0] for pair in self._loglikelihood_tokens(windows, disable_tqdm=True))


class RoutedLM(LoadedLM):
    """A model with packs, asked each question with those that the question asks for.

    A question is routed by its context, once for all its choices. Where each choice has a context of its own
    (Winogrande), by what these begin with alike. Questions of one route share passes.
    """

    def __init__(self, router: Router, tokenizer: PreTrainedTokenizerBase, options: Options) -> None:
        """`router`: of the model that is asked."""
        super().__init__(router.model, tokenizer, options)
        self.router = router

    def _watched(self, ask: Callable[..., list], requests: list[Instance]) -> list:
        """Answers in the order of the requests."""
        if requests[0].request_type == "loglikelihood_rolling":
            return super()._watched(ask, requests)
        contexts: dict[tuple, list[str]] = {}
        for request in requests:
            if request.args[0]:
                contexts.setdefault((request.task_name, request.doc_id), []).append(request.args[0])
        alike: dict[Names, list[int]] = {}
        for number, request in enumerate(requests):
            question = request.task_name, request.doc_id
            names = self.router.of_text(_common_start(contexts.get(question, [])))
            self.routes[cast(Any, question)] = name_of(names)
            alike.setdefault(names, []).append(number)
        found: dict[int, Any] = {}
        for names, numbers in alike.items():
            with only(self.router.model, *names):
                answers = super()._watched(ask, [requests[n] for n in numbers])
                found |= dict(zip(numbers, answers, strict=True))
        return [found[number] for number in range(len(requests))]

    def _rolling(self, request: Instance) -> float:
        """Of the first tokens, by which it is routed, under the base; of the others under the chosen packs."""
        tokens = self.tok_encode(request.args[0], add_special_tokens=False)
        head = tokens[: min(self.router.rule.prompt_tokens, self.window_tokens)]
        names = self.router.of_tokens(head)
        self.routes[cast(Any, (request.task_name, request.doc_id))] = name_of(names)
        with only(self.router.model):
            known = self._nats_of(head if names else tokens)
        if not names:
            return known
        with only(self.router.model, *names):
            return known + self._nats_of(tokens) - self._nats_of(head)


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

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Texts; what the server could not answer is an `Unanswered`."""
        asked = [self._request(*request.args) for request in requests]
        texts: list[str] = []
        with bar(requests[0].task_name or "answers", len(requests), "answers") as progress:
            for request, answer in zip(requests, ask_all(self.endpoint, asked), strict=True):
                texts.append(answer.text if answer.error is None else Unanswered(answer.error))
                if answer.error is None:
                    self.cache_hook.add_partial("generate_until", request.args, answer.text)
                progress.advance(1)
        return texts

    def _request(self, prompt: str, settings: dict[str, Any]) -> Request:
        return Request(
            messages=[{"role": "user", "content": prompt}],
            max_tokens=_new_tokens(settings, 256),
            temperature=float(settings.get("temperature", 0.0)) if settings.get("do_sample") else 0.0,
            stop=tuple(settings.get("until", ())),
        )

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
