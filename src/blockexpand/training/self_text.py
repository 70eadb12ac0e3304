"""General text for those who have none: sampled from the base itself, before it learns anything.

In: a run whose general text is `self`. Out: a prepared corpus in the run folder, with as many rows to
replay as the run will draw (up to a limit) and a few to steer by. What a model writes at temperature 1 is a
sample of what it knows; rehearsing it is the oldest remedy against forgetting (Robins 1995,
pseudo-rehearsal). It can hold on only to what it can say.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from blockexpand.corpus import open_corpus
from blockexpand.corpus.rows import Shape, write_documents
from blockexpand.corpus.tokenizer import Encoded, Ends, ends_of, load_tokenizer, tokenizer_digest
from blockexpand.digests import digest_json
from blockexpand.errors import TrainingError
from blockexpand.live.generation import generate
from blockexpand.progress import bar
from blockexpand.records import write_record
from blockexpand.records.corpus import CorpusRecord
from blockexpand.records.run import SELF, TrainSettings
from blockexpand.staging import RECORD_NAME, staged_folder
from blockexpand.training.arms import load_model
from blockexpand.training.data import general_folder

_MOST_ROWS = 4096
"""Of 1024 tokens, four million tokens: more than a run can replay in the time it takes to write them."""
_SAMPLES_PER_PASS = 64

# B = samples of a pass, A = tokens of one sample.


def write_self_text(settings: TrainSettings, device: torch.device) -> None:
    """Write the general text of a run that asks for `self`, unless it is already there."""
    if settings.data.general != SELF or (general_folder(settings) / RECORD_NAME).is_file():
        return
    row_tokens = open_corpus(settings.data.domain).record.row_tokens
    tokenizer = load_tokenizer(settings.model)
    ends = ends_of(tokenizer)
    if ends.bos is None:
        raise TrainingError(
            f"the tokenizer in {settings.model} has no begin token, from which a text could be sampled; give general "
            "text instead of `self`"
        )
    model = load_model(Path(settings.model), torch.float32)
    nn.Module.to(model, device)
    counts = _rows_wanted(settings, row_tokens)
    torch.manual_seed(settings.seed)
    splits = {}
    total = sum(counts.values())
    with staged_folder(general_folder(settings)) as folder, bar("text of the base", total, "rows") as live:
        for name, num_rows in counts.items():
            documents: list[Encoded] = []
            while len(documents) < num_rows:
                size = min(_SAMPLES_PER_PASS, num_rows - len(documents))
                documents += _sample(model, ends, (size, row_tokens))
                live.advance(size)
            texts = tokenizer.batch_decode([d.tokens_A.tolist() for d in documents], skip_special_tokens=True)
            splits[name] = write_documents(
                folder / f"{name}.arrow",
                documents,
                shape=Shape(row_tokens=row_tokens, vocabulary_size=len(tokenizer), pad=ends.eos),
                num_bytes=sum(len(str(text).encode()) for text in texts),
            )
        record = CorpusRecord(
            row_tokens=row_tokens,
            tokenizer_digest=tokenizer_digest(settings.model),
            vocabulary_size=len(tokenizer),
            recipe_digest=digest_json({"self": settings.model, "rows": counts, "seed": settings.seed}),
            conversations=False,
            sources=(),
            splits=splits,
        )
        write_record(folder / RECORD_NAME, record)


def _rows_wanted(settings: TrainSettings, row_tokens: int) -> dict[str, int]:
    wanted = settings.num_steps(row_tokens) * settings.num_general_rows
    return {
        settings.data.general_split: max(1, min(wanted, _MOST_ROWS)),
        settings.data.validation_split: max(1, settings.data.validation_rows),
    }


def _sample(model: PreTrainedModel, ends: Ends, shape: tuple[int, int]) -> list[Encoded]:
    """Texts of at most a row, each from the begin token."""
    num_samples, row_tokens = shape
    assert ends.bos is not None
    start_B1 = torch.full((num_samples, 1), ends.bos, device=next(model.parameters()).device)
    tokens_BA = generate(model, start_B1, num_new=row_tokens - 1, eos=ends.eos, sample=True)
    return [_encoded(row, ends.eos) for row in tokens_BA.cpu().numpy()]


def _encoded(tokens_A: np.ndarray, eos: int) -> Encoded:
    """The sample up to its end token; what generate fills up after it is cut."""
    (ends,) = np.nonzero(tokens_A[1:] == eos)
    if len(ends):
        tokens_A = tokens_A[: ends[0] + 2]
    trained_A = np.ones(len(tokens_A), dtype=bool)
    trained_A[0] = False
    return Encoded(tokens_A=tokens_A.astype(np.int64), trained_A=trained_A)
