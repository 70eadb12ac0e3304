"""How much general text misses each block of a base: the masking probe, and the cosine of input and output.

In: a checkpoint and calibration text. Out: a `Guidance` with three figures for each block: the KL of the model without
it to the whole model, the rise of the loss without it (the masking probe of ADEPT), and the mean cosine between what
enters and what leaves it (by which Yi-9B chose). Refused: text that gives nothing to predict, tokens the model has
no embedding for, a model whose figures are not finite.

One batch is held at a time: its hidden states between the blocks and twice its logits. Figures are rounded to six
digits before anything is chosen by them: what is recorded is what decided.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from blockexpand.checkpoint import Checkpoint
from blockexpand.errors import GuidanceError
from blockexpand.expansion import BlockScore, Guidance
from blockexpand.families import family_for
from blockexpand.families.modules import load_model, stack_of
from blockexpand.guidance.calibration import ROW_TOKENS, Calibration
from blockexpand.guidance.reading import Row, rows
from blockexpand.guidance.skipping import Passes
from blockexpand.live.generation import CONTEXT_KEYS
from blockexpand.progress import bar

# B = rows of a pass, T = tokens of a row, R = positions that count, C = positions of one chunk, D = hidden size,
# V = vocabulary.

_LOGITS_PER_PASS = 1 << 26
"""Of all rows of a pass: 256 MB in float32. Two such tensors are held."""
_ROWS_PER_PASS = 8
_CHUNK_POSITIONS = 512
_DIGITS = 6
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def measure(checkpoint: Checkpoint, calibration: Calibration) -> Guidance:
    """The scores of a base's blocks on general text.

    Raises:
        GuidanceError, CorpusError: the text cannot be read or gives nothing to predict, or the figures are not finite.
        LiveError: transformers cannot load the base.
    """
    family = family_for(checkpoint.config, checkpoint.source, checkpoint.tensors)
    row_tokens = _row_tokens(family.text(checkpoint.config))
    stream = rows(calibration.texts, checkpoint.folder, row_tokens, calibration.max_tokens)
    first = next(stream, None)  # before the model is loaded, which may take minutes
    if first is None:
        raise GuidanceError(
            f"nothing to measure on: {', '.join(map(str, calibration.texts))} gave no token to predict within "
            f"{calibration.max_tokens:,} tokens; expected text; give another file"
        )
    dtype = _stored_dtype(checkpoint)
    model = load_model(checkpoint.folder, dtype=dtype, device=calibration.device, loader=family.loader)
    model.requires_grad_(False)
    sums = Sums(model, list(stack_of(model, family)))
    with bar("measure blocks", calibration.max_tokens, "tokens") as progress:
        for batch in _batches(first, stream, sums.vocabulary_size):
            sums.add(batch)
            progress.advance(sum(len(row.tokens_T) for row in batch))
    return Guidance(
        measure=calibration.measure,
        scores=sums.scores(),
        base_loss=_rounded(sums.base_nats / sums.num_tokens),
        num_tokens=sums.num_tokens,
        row_tokens=row_tokens,
        tokens_digest=sums.digest,
        texts=tuple(map(str, calibration.texts)),
        dtype=str(dtype).removeprefix("torch."),
        device=calibration.device,
    )


def _row_tokens(config: dict[str, Any]) -> int:
    """The length of rows: ours, or as many positions as the model has."""
    return min([ROW_TOKENS, *(config[key] for key in CONTEXT_KEYS if isinstance(config.get(key), int))])


def _stored_dtype(checkpoint: Checkpoint) -> torch.dtype:
    """The precision that most of the numbers are stored in; bfloat16 for those that are stored in less."""
    counts: Counter[str] = Counter()
    for entry in checkpoint.tensors.values():
        counts[entry.dtype] += entry.num_elements
    return _DTYPES.get(counts.most_common(1)[0][0], torch.bfloat16)


def _batches(first: Row, others: Iterator[Row], vocabulary_size: int) -> Iterator[list[Row]]:
    """Neighbours of equal length, as many as one pass takes."""
    batch = [first]
    for row in others:
        length = len(batch[0].tokens_T)
        most = max(1, min(_ROWS_PER_PASS, _LOGITS_PER_PASS // (length * vocabulary_size)))
        if len(row.tokens_T) != length or len(batch) == most:
            yield batch
            batch = []
        batch.append(row)
    yield batch


class Sums:
    """What has been measured so far, summed over tokens in float64."""

    def __init__(self, model: nn.Module, blocks: Sequence[nn.Module]) -> None:
        """Start at nothing."""
        self._model, self._blocks = model, blocks
        embedding = cast(nn.Embedding, cast(PreTrainedModel, model).get_input_embeddings())
        self._device = embedding.weight.device
        self.vocabulary_size = embedding.weight.shape[0]
        self.num_tokens, self.base_nats = 0, 0.0
        self._nats, self._kl, self._cosine = ([0.0] * len(blocks) for _ in range(3))
        self._hash = hashlib.sha256()

    @property
    def digest(self) -> str:
        """Of the tokens so far and which of them count."""
        return f"sha256:{self._hash.hexdigest()}"

    def add(self, batch: Sequence[Row]) -> None:
        """Measure rows of equal length."""
        tokens_BT = self._tokens(batch)
        counted_BT = torch.stack([torch.from_numpy(row.counted_T) for row in batch]).to(self._device)
        predicting_BT = functional.pad(counted_BT[:, 1:], (0, 1))
        targets_R = tokens_BT[:, 1:][counted_BT[:, 1:]]
        passes = Passes(self._model, self._blocks, tokens_BT)
        whole_RV = passes.logits_BTV[predicting_BT]
        self.num_tokens += len(targets_R)
        self.base_nats += _nats_and_kl(whole_RV, whole_RV, targets_R)[0]
        for i, (input_BTD, output_BTD) in enumerate(zip(passes.inputs_BTD, passes.outputs_BTD, strict=True)):
            between_R = functional.cosine_similarity(
                input_BTD[predicting_BT].float(), output_BTD[predicting_BT].float(), dim=-1
            )
            self._cosine[i] += between_R.double().sum().item()
            nats, kl = _nats_and_kl(passes.without(i)[predicting_BT], whole_RV, targets_R)
            self._nats[i] += nats
            self._kl[i] += kl

    def _tokens(self, batch: Sequence[Row]) -> Tensor:
        for row in batch:
            self._hash.update(row.tokens_T.astype("<i8").tobytes() + row.counted_T.tobytes())
        tokens_BT = torch.stack([torch.from_numpy(row.tokens_T) for row in batch])
        largest = int(tokens_BT.max())
        if largest >= self.vocabulary_size:
            raise GuidanceError(
                f"the tokenizer gives token {largest}, and the model has {self.vocabulary_size} embeddings; expected "
                "the tokenizer that the model was trained with; put it in the model's folder"
            )
        return tokens_BT.to(self._device)

    def scores(self) -> tuple[BlockScore, ...]:
        """The figures of each block, per token.

        Raises:
            GuidanceError: one is not finite.
        """
        for i, figures in enumerate(zip(self._nats, self._kl, self._cosine, strict=True)):
            if not all(map(math.isfinite, (self.base_nats, *figures))):
                raise GuidanceError(
                    f"without block {i} the summed loss and KL are {figures[0]} and {figures[1]}, the whole model's "
                    f"is {self.base_nats}; expected finite numbers; check the checkpoint, or store it in bfloat16"
                )
        count = self.num_tokens
        return tuple(
            BlockScore(
                kl=_rounded(kl / count),
                loss_rise=_rounded((nats - self.base_nats) / count),
                cosine=_rounded(cosine / count),
            )
            for nats, kl, cosine in zip(self._nats, self._kl, self._cosine, strict=True)
        )


def _rounded(figure: float) -> float:
    return float(f"{figure:.{_DIGITS}g}")


def _nats_and_kl(logits_RV: Tensor, whole_RV: Tensor, targets_R: Tensor) -> tuple[float, float]:
    """Sums over positions of the cross-entropy, and of the KL of these logits to the whole model's."""
    nats = kl = 0.0
    for start in range(0, len(targets_R), _CHUNK_POSITIONS):
        chunk = slice(start, start + _CHUNK_POSITIONS)
        log_p_CV = functional.log_softmax(logits_RV[chunk].float(), dim=-1)
        log_q_CV = functional.log_softmax(whole_RV[chunk].float(), dim=-1)
        nats -= log_p_CV.gather(1, targets_R[chunk, None]).double().sum().item()
        kl += (log_q_CV.exp() * (log_q_CV - log_p_CV)).sum(-1).double().sum().item()
    return nats, kl
