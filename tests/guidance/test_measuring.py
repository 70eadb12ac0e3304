"""From a base and text to scores and a plan: against figures worked out by hand, the same twice, and refusals."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from blockexpand import Calibration, plan
from blockexpand.checkpoint import open_checkpoint
from blockexpand.corpus.tokenizer import load_tokenizer
from blockexpand.errors import BlockexpandError, CorpusError, GuidanceError, RecordError
from blockexpand.expansion import plan as plan_by_scores
from blockexpand.expansion import read_plan
from blockexpand.families.modules import load_model
from blockexpand.guidance.measuring import Sums, measure
from blockexpand.guidance.reading import PIECE_CHARS, Row, rows
from lm_helpers import make_corpus, make_lm, sentences


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_lm(tmp_path_factory.mktemp("lm") / "base", blocks=4)


@pytest.fixture(scope="module")
def general(base: Path) -> Path:
    path = base.parent / "general.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in sentences(60, 3)))
    return path


def by_hand(base: Path, text: Path, num_tokens: int, row_tokens: int) -> dict[str, Any]:
    """The same figures, from the definition: whole rows, each model run whole, all logits at once."""
    model = load_model(base, dtype=torch.bfloat16)
    tokenizer = load_tokenizer(base)
    ids, counted = [], []
    for line in text.read_text().splitlines():
        piece = [0, *tokenizer(json.loads(line)["text"], add_special_tokens=False)["input_ids"], 1]
        ids += piece
        counted += [False] + [True] * (len(piece) - 1)
    assert len(ids) > num_tokens
    tokens_BT = torch.tensor(ids[:num_tokens]).view(-1, row_tokens)
    counted_BT = torch.tensor(counted[:num_tokens]).view(-1, row_tokens)[:, 1:]
    targets_R = tokens_BT[:, 1:][counted_BT]

    @torch.no_grad()
    def log_probs(without: int | None) -> torch.Tensor:
        model = load_model(base, dtype=torch.bfloat16)
        if without is not None:
            del model.model.layers[without]
            model.config.num_hidden_layers -= 1
        return model(tokens_BT, use_cache=False).logits[:, :-1][counted_BT].float().log_softmax(-1).double()

    with torch.no_grad():
        model.model.norm = torch.nn.Identity()  # so that the last state is what leaves the last block
        states = model(tokens_BT, use_cache=False, output_hidden_states=True).hidden_states
    whole = log_probs(None)
    loss = functional.nll_loss(whole, targets_R).item()
    found: dict[str, Any] = {"loss": loss, "num": len(targets_R), "kl": [], "loss_rise": [], "cosine": []}
    for i in range(4):
        skipped = log_probs(i)
        found["loss_rise"].append(functional.nll_loss(skipped, targets_R).item() - loss)
        found["kl"].append(functional.kl_div(skipped, whole, log_target=True, reduction="batchmean").item())
        cosine_BT = functional.cosine_similarity(states[i].float(), states[i + 1].float(), dim=-1)
        found["cosine"].append(cosine_BT[:, :-1][counted_BT].mean().item())
    return found


def test_scores_are_what_the_definitions_say(base: Path, general: Path):
    """Loss, KL and cosine of every block, with rows of 64 tokens, the longest that this model takes."""
    found = measure(open_checkpoint(base), Calibration(texts=(general,), max_tokens=10 * 64))
    expected = by_hand(base, general, 10 * 64, 64)
    assert (found.row_tokens, found.num_tokens) == (64, expected["num"])
    assert found.base_loss == pytest.approx(expected["loss"], rel=1e-5)
    for name in ("kl", "loss_rise", "cosine"):
        ours = [vars(score)[name] for score in found.scores]
        # Six digits are kept; a rise is the small difference of two sums of float32 logarithms.
        assert ours == pytest.approx(expected[name], rel=2e-5, abs=2e-7), name
    assert all(score.kl > 0 for score in found.scores)
    assert (found.dtype, found.device) == ("bfloat16", "cpu")


def test_the_same_text_gives_the_same_plan_to_the_bit(base: Path, general: Path, tmp_path: Path):
    for name in ("one", "two"):
        made = plan(base, 2, placement="guided", calibration=Calibration(texts=(general,), max_tokens=300))
        made.save(tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert read_plan(tmp_path / "one") == made
    assert made.guidance is not None
    worst_first = sorted(range(4), key=lambda i: -made.guidance.scores[i].kl)
    assert [b.after for b in made.new_blocks] == sorted(worst_first[2:])
    assert made == plan_by_scores(base, 2, placement=made.guidance)


def test_the_measure_and_the_limit_are_those_asked_for(base: Path, general: Path):
    scores = set()
    for kind in ("kl", "loss", "cosine"):
        calibration = Calibration(texts=(general,), max_tokens=100, measure=kind)
        found = measure(open_checkpoint(base), calibration)
        assert found.measure == kind
        assert found.num_tokens < 100
        scores.add(found.scores)
    assert len(scores) == 1
    longer = measure(open_checkpoint(base), Calibration(texts=(general,), max_tokens=200))
    assert longer.scores not in scores


def test_a_prepared_folder_is_measured_on_its_first_split(base: Path, tmp_path: Path):
    corpus = make_corpus(tmp_path / "general", base)
    found = measure(open_checkpoint(base), Calibration(texts=(corpus,), max_tokens=200))
    assert found.texts == (str(corpus),)
    assert 100 < found.num_tokens < 200


# --- rows --------------------------------------------------------------------------------------------


def tokens_of(texts: tuple[Path, ...], base: Path, row_tokens: int, max_tokens: int = 10**9) -> list[Row]:
    return list(rows(texts, base, row_tokens, max_tokens))


def test_rows_hold_every_token_once_and_in_order(base: Path, general: Path):
    whole = tokens_of((general,), base, 10**6)
    assert len(whole) == 1
    for row_tokens, limit in ((7, 10**9), (64, 500), (64, 64), (64, 3)):
        cut = tokens_of((general,), base, row_tokens, limit)
        joined = [int(t) for row in cut for t in row.tokens_T]
        assert joined == [int(t) for t in whole[0].tokens_T[: min(limit, len(whole[0].tokens_T))]]
        assert {len(row.tokens_T) for row in cut[:-1]} <= {row_tokens}
        assert not any(row.counted_T[0] for row in cut)
        # 0 begins a document: nothing stands before it that could tell it.
        assert all(bool(c) == (t != 0) for row in cut for t, c in zip(row.tokens_T[1:], row.counted_T[1:], strict=True))


def test_texts_come_in_the_order_given_and_folders_whole(base: Path, tmp_path: Path):
    (tmp_path / "a.txt").write_text("the cat sees the dog.")
    (tmp_path / "b.md").write_text("the stone likes the tree.")
    (tmp_path / "no.py").write_text("the fish")
    one, other = tokens_of((tmp_path / "a.txt",), base, 99), tokens_of((tmp_path / "b.md",), base, 99)
    both = tokens_of((tmp_path / "b.md", tmp_path / "a.txt"), base, 99)
    assert [row.tokens_T.tolist() for row in both] == [row.tokens_T.tolist() for row in (*other, *one)]
    folder = tokens_of((tmp_path,), base, 99)
    assert sum(len(row.tokens_T) for row in folder) == sum(len(row.tokens_T) for row in both)


def test_a_long_text_is_read_piece_by_piece(base: Path, tmp_path: Path):
    line = "the cat sees the dog.\n"
    text = line * (5 * PIECE_CHARS // len(line))
    (tmp_path / "long.txt").write_text(text)
    (tmp_path / "long.jsonl").write_text(json.dumps({"text": text}))
    tokenizer = load_tokenizer(base)
    for name in ("long.txt", "long.jsonl"):
        row = tokens_of((tmp_path / name,), base, 10**7)[0]
        assert tokenizer.decode([t for t in row.tokens_T if t > 1]) == text
        assert 5 <= (row.tokens_T == 0).sum() <= 6


class Endless:
    """A file that has no end, and counts how much of it was asked for."""

    def __init__(self) -> None:
        self.read = 0

    def __iter__(self) -> Endless:
        return self

    def __next__(self) -> str:
        self.read += 1
        return json.dumps({"text": f"the cat {self.read} sees the dog."}) + "\n"

    def __enter__(self) -> Endless:
        return self

    def __exit__(self, *error: object) -> None:
        return


def test_no_more_is_read_than_is_needed(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "endless.jsonl").touch()
    endless = Endless()

    def opened(path: Path, encoding: str) -> Endless:
        assert (path.name, encoding) == ("endless.jsonl", "utf-8")
        return endless

    monkeypatch.setattr("blockexpand.guidance.reading.open", opened, raising=False)
    assert sum(len(row.tokens_T) for row in rows((tmp_path / "endless.jsonl",), base, 32, 640)) == 640
    assert endless.read < 100


def test_the_digest_is_of_the_tokens_read(base: Path, general: Path):
    found = measure(open_checkpoint(base), Calibration(texts=(general,), max_tokens=128))
    expected = hashlib.sha256()
    for row in rows((general,), base, 64, 128):
        expected.update(row.tokens_T.astype("<i8").tobytes() + row.counted_T.tobytes())
    assert found.tokens_digest == f"sha256:{expected.hexdigest()}"


# --- refused -----------------------------------------------------------------------------------------

Break = Callable[[Path], Any]


def write(name: str, data: bytes) -> Break:
    def make(folder: Path) -> tuple[Path]:
        (folder / name).write_bytes(data)
        return (folder / name,)

    return make


TEXTS: list[tuple[Break, type[BlockexpandError], str]] = [
    (lambda folder: (folder / "none.txt",), GuidanceError, r"no such text: .*none\.txt"),
    (write("text.pdf", b"x"), GuidanceError, r"cannot tell what .*text\.pdf holds; expected \.txt, \.md, \.jsonl"),
    (lambda folder: (folder,), GuidanceError, r"no text in .*; expected files that end in"),
    (write("empty.txt", b""), GuidanceError, r"measure on: .*empty\.txt gave no token to predict within 16,384"),
    (write("blank.jsonl", b"\n \n"), GuidanceError, r"nothing to measure on: .*blank\.jsonl"),
    (write("space.jsonl", b'{"text": "  "}\n'), GuidanceError, r"nothing to measure on: .*space\.jsonl"),
    (write("broken.jsonl", b'{"text": "a"}\n{"text": \n'), CorpusError, r"broken\.jsonl, line 2 is not JSON: .* reads"),
    (write("other.jsonl", b'{"words": "a", "n": 1}\n'), CorpusError, r"line 1 has no text in .*; it has: words, n"),
    (write("list.jsonl", b"[1]\n"), CorpusError, r"line 1 has no text in the field 'text'; it has: list"),
    (write("latin.txt", b"caf\xe9 au lait"), CorpusError, r"latin\.txt is not UTF-8 text: .* byte 3"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "kind", "words"), TEXTS, ids=[words[:24] for *_, words in TEXTS])
def test_text_that_cannot_be_measured_on_is_refused(
    base: Path, tmp_path: Path, make: Break, kind: type[BlockexpandError], words: str
):
    with pytest.raises(kind, match=words):
        plan(base, 2, placement="guided", calibration=Calibration(texts=make(tmp_path)))


def test_guided_needs_text_and_text_needs_guided(base: Path, general: Path):
    with pytest.raises(GuidanceError, match="'guided' without text to measure the base on.*--text general.jsonl"):
        plan(base, 2, placement="guided")
    with pytest.raises(GuidanceError, match=r"text to measure on \(.*general\.jsonl\) with placement 'suffix'"):
        plan(base, 2, placement="suffix", calibration=Calibration(texts=(general,)))


def test_what_cannot_be_placed_is_refused_before_anything_is_read(base: Path):
    nowhere = Calibration(texts=("nowhere.txt",))
    with pytest.raises(BlockexpandError, match="cannot place 5 new blocks by importance: the model has 4 blocks"):
        plan(base, 5, placement="guided", calibration=nowhere)
    with pytest.raises(BlockexpandError, match="without a number of new blocks"):
        plan(base, placement="guided", calibration=nowhere)
    with pytest.raises(BlockexpandError, match="no such text: nowhere.txt"):
        plan(base, 4, placement="guided", calibration=nowhere)


def test_a_base_without_a_tokenizer_is_refused(base: Path, general: Path, tmp_path: Path):
    shutil.copytree(base, tmp_path / "base")
    (tmp_path / "base" / "tokenizer.json").unlink()
    with pytest.raises(CorpusError, match="has no tokenizer.json"):
        plan(tmp_path / "base", 2, placement="guided", calibration=Calibration(texts=(general,)))


def test_a_folder_prepared_with_another_tokenizer_is_refused(base: Path, tmp_path: Path):
    corpus = make_corpus(tmp_path / "general", make_lm(tmp_path / "other", vocabulary=300))
    with pytest.raises(GuidanceError, match="was prepared with another tokenizer than the one in"):
        plan(base, 2, placement="guided", calibration=Calibration(texts=(corpus,)))


def test_tokens_the_model_has_no_embedding_for_are_refused(base: Path):
    model = load_model(base, dtype=torch.float32)
    row = next(rows((base.parent / "general.jsonl",), base, 8, 8))
    row.tokens_T[3] = 320
    with pytest.raises(GuidanceError, match="gives token 320, and the model has 320 embeddings"):
        Sums(model, list(model.model.layers)).add([row])


def test_figures_that_are_not_finite_are_refused(base: Path, general: Path):
    model = load_model(base, dtype=torch.float32)
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.fill_(float("nan"))
    sums = Sums(model, list(model.model.layers))
    sums.add([next(rows((general,), base, 8, 8))])
    with pytest.raises(GuidanceError, match="without block 0 the summed loss and KL are nan and nan"):
        sums.scores()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"texts": ()}, r"texts: expected a list of files .* got \(\)"),
        ({"texts": "a.txt"}, r"texts: expected a list of files .* got 'a\.txt'"),
        ({"texts": ("a.txt",), "max_tokens": 1}, "max_tokens: expected a whole number, 2 or more, got 1"),
        ({"texts": ("a.txt",), "measure": "norm"}, "measure: expected one of kl, loss, cosine, got 'norm'"),
    ],
)
def test_settings_out_of_bounds_are_refused(settings: dict[str, Any], words: str):
    with pytest.raises(RecordError, match=words):
        Calibration(**settings)
