"""Copies and near copies are told by what a text is; quotations of evaluation texts by words."""

from __future__ import annotations

import random

import pytest

from blockexpand.corpus.copies import EvaluationTexts, Seen, content_key, position_of
from blockexpand.errors import CorpusError

DIFFERENT = [
    *(f"def combine(a, b):\n    return a {op} b\n" for op in ("+", "-", "*", "/", "%", "==", "<", ">")),
    "if ready:\n    start()\n    stop()\n",
    "if ready:\n    start()\nstop()\n",
    "Solve x^2 + 5x - 6 = 0.",
    "Solve x^2 - 5x + 6 = 0.",
    "7 - 9 = -2",
    "7 + 9 = 2",
    "C is a language.",
    "C++ is a language.",
    "C# is a language.",
    "c is a language.",
    "\u0915\u093f\u0924\u093e\u092c",  # Hindi: the vowel signs alone differ
    "\u0915\u0940\u0924\u093e\u092c",
    "\u0995\u09be\u09b2",  # Bengali
    "\u0995\u09bf\u09b2",
    "\u0643\u064e\u062a\u064e\u0628",  # Arabic: the short vowels differ
    "\u0643\u064f\u062a\u0650\u0628",
    "\U0001f600",
    "\U0001f62d",
]


@pytest.mark.parametrize("near", [None, 0.8])
def test_texts_that_differ_in_a_sign_are_no_copies(near: float | None) -> None:
    seen = Seen(near)
    assert [seen.verdict(text, content_key(text))[0] for text in DIFFERENT] == [""] * len(DIFFERENT)
    assert [seen.verdict(text, content_key(text))[0] for text in DIFFERENT] == ["duplicate"] * len(DIFFERENT)


def test_line_ends_and_the_unicode_form_make_no_other_text() -> None:
    assert content_key("caf\u00e9 \r\nau lait\n") == content_key("cafe\u0301\nau lait")
    assert content_key("a\nb") != content_key("a b")


def test_near_copies_are_found_and_remembered() -> None:
    r = random.Random(0)
    words = [f"word{n}" for n in range(3000)]
    texts = [[r.choice(words) for _ in range(200)] for _ in range(60)]
    seen = Seen(0.8)
    found = [seen.verdict(" ".join(text), n) for n, text in enumerate(texts)]
    assert {verdict for verdict, _ in found} == {""}
    again = Seen(0.8)  # as a run that goes on has it
    for number, (_, signature) in enumerate(found):
        again.remember(number, signature)
    for number, text in enumerate(texts):
        near, far = list(text), list(text)
        near[100] = "other"  # 10 of 197 different runs of five words
        for at in range(0, 200, 10):
            far[at] = "other"
        for one in (seen, again):
            assert one.verdict(" ".join(near), 1000 + number)[0] == "near_duplicate"
        assert seen.signature(" ".join(far)) is not None
        assert not seen._is_near(seen.signature(" ".join(far)))


def test_a_position_is_the_same_on_every_machine() -> None:
    assert position_of("the cat sees the dog and the bird") == 0.6324897805120718
    assert position_of("") != position_of("\U0001f600")


def test_quotations_are_found_with_their_owner() -> None:
    long, short = (" ".join(f"{kind}{n}" for n in range(size)) for kind, size in (("word", 15), ("sign", 9)))
    texts = EvaluationTexts([("q1", f"{long.upper()}?"), ("q2", short), ("q3", "too short")])
    assert (texts.names, texts.num_skipped) == (["q1", "q2"], 1)
    assert texts.quote(f"zero, {long}") == f"{' '.join(long.split()[:13])!r} is in q1"
    assert texts.quote(short.replace(" ", ", ")) == f"{short!r} is in q2"
    assert texts.quote(long.replace("word7", "other")) is None
    with pytest.raises(CorpusError, match="8 words"):
        EvaluationTexts([("q3", "no")])
