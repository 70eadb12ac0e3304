"""What stands on the ground when a documented command is run: tiny models, texts, data and runs under the docs' names.

A command is run as it is typed, in a folder of its page. A name of STAND_INS that it reads, and that no
earlier command of the page has made, is put there first; recipes are copied with the sizes of SMALLER.
"""

from __future__ import annotations

import functools
import itertools
import json
import random
import shutil
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import yaml
from documented import ROOT

from blockexpand.cli.main import run
from blockexpand.packs import About, extract
from blockexpand.records.run import load_settings
from blockexpand.training import train
from lm_helpers import make_chats, make_corpus, make_expanded, make_general, make_lm, sentences
from suite_ground import HUMANEVAL, MBPP, write_rows

STAND_INS = {
    "base": """BASE MODEL NEW models/base models/llama-7b llama-2-7b meta-llama/Llama-2-7b-hf meta-llama/Llama-3.1-8B
        mistralai/Mistral-7B-v0.1 Qwen/Qwen2.5-0.5B models/llama-70b""",
    "deeper": "models/deeper llama-pro llama-deeper llama-law llama-70b-deeper mistral-pro",
    "run": "runs/code runs/law runs/one-gpu",
    "trained": "runs/llama-pro/model runs/paper-code-math/model out/model",
    "domain": "data/code data/domain data/law data/mathematics data/code-math",
    "general": "data/general",
    "chats": "data/chats data/instruct",
    "records": "records/base",
    "pack": "packs/code packs/law",
    "code": "src",
    "pages": ".venv",
    "text": "general.jsonl freelaw/*.jsonl.zst",
    "benchmarks": "data",
    "config": "CONFIG.json",
}
"""What is made, and the names under which the docs speak of such a thing. A new name in the docs goes here."""

SMALLER: dict[str, Any] = {
    "domain_tokens": 40 * 32,
    "rows_per_step": 32,
    "rows_per_pass": 16,
    "measure_every_steps": 2,
    "checkpoint_every_steps": 1,
    "compile_blocks": False,  # a minute of compiling
    "base_precision": "same",  # bitsandbytes is an extra that tests do without
    "row_tokens": 32,
    "seeds": [0],
    "splits": {
        "train": {"max_tokens": 3_000, "share": 0.5},
        "replay": {"max_tokens": 3_000, "share": 0.2},
        "validation": {"max_tokens": 3_000, "share": 0.15},
        "test": {"max_tokens": 3_000, "share": 0.15},
    },
}
"""Settings that are replaced in recipes where they have them; all else stays as it is written there."""

INSTEAD = {
    "4096": "32",
    "2048": "32",
    "1024": "32",
    "16": "8",  # new blocks: the stand-in has eight old ones
    "general,code": "perplexity,code",  # the benchmarks of `general` have their tests in evaluation/
    "$SLURM_NNODES": "4",
    "$SLURM_JOB_ID": "7",
    "$head:29500": "node0:29500",
}
"""Words that are replaced in commands."""


class Ground:
    """Everything that stands in for something of the docs, made when it is first wanted, and once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.grown: dict[tuple[str, ...], Path] = {}
        """What `expand` wrote, by the kind of its base and its options."""

    @functools.cached_property
    def base(self) -> Path:
        return make_lm(self.folder / "base", blocks=8)

    @functools.cached_property
    def deeper(self) -> Path:
        return make_expanded(self.folder / "deeper", self.base, 8)

    @functools.cached_property
    def domain(self) -> Path:
        return make_corpus(self.folder / "domain", self.base, domain=True)

    @functools.cached_property
    def general(self) -> Path:
        return make_general(self.folder / "general", self.base)

    @functools.cached_property
    def chats(self) -> Path:
        return make_chats(self.folder / "chats", self.base)

    @functools.cached_property
    def run(self) -> Path:
        plain = {
            **{key: SMALLER[key] for key in ("domain_tokens", "rows_per_step", "rows_per_pass")},
            "model": str(self.deeper),
            "out": str(self.folder / "run"),
            "data": {"domain": str(self.domain), "validation_rows": 2},
        }
        recipe = self.folder / "run.yaml"
        recipe.write_text(yaml.safe_dump(plain))
        train(load_settings(recipe))
        return self.folder / "run"

    @property
    def trained(self) -> Path:
        return self.run / "model"

    @functools.cached_property
    def pack(self) -> Path:
        return extract(self.run, self.folder / "pack", About(name="law")).folder

    @functools.cached_property
    def records(self) -> Path:
        where = ("--data-dir", str(self.benchmarks), "--out", str(self.folder / "records"))
        assert run(["eval", str(self.base), "--suite", INSTEAD["general,code"], *where]) == 0
        return self.folder / "records"

    @functools.cached_property
    def code(self) -> Path:
        for number, text in enumerate(sentences(400, 6)):
            path = self.folder / "code" / f"part{number % 3}" / f"module{number}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f'"""{text}"""\n\n\ndef number():\n    return {number}\n')
        return self.folder / "code"

    @functools.cached_property
    def pages(self) -> Path:
        for number, text in enumerate(sentences(1500, 8)):
            path = self.folder / "pages" / f"page{number}.md"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return self.folder / "pages"

    @functools.cached_property
    def text(self) -> Path:
        write_rows(self.folder / "text.jsonl", [{"text": text} for text in sentences(600, 7)])
        return self.folder / "text.jsonl"

    @property
    def config(self) -> Path:
        return self.base / "config.json"

    @functools.cached_property
    def benchmarks(self) -> Path:
        folder = self.folder / "benchmarks"
        write_rows(folder / "humaneval" / "test.jsonl", HUMANEVAL)
        for split in ("prompt", "test"):
            write_rows(folder / "mbpp" / f"{split}.jsonl", MBPP)
        write_rows(folder / "text" / "test.jsonl", [{"text": text} for text in sentences(8, 8)])
        return folder


WORDS = Path(__file__).parent / "words.txt"
NAMES = {name: kind for kind, names in STAND_INS.items() for name in names.split()}


class Scratch:
    """The folder in which the commands of one page run, one after the other."""

    def __init__(self, folder: Path, ground: Ground) -> None:
        self.folder, self.ground = folder, ground

    def ready(self, words: list[str]) -> list[str]:
        """Put what a command reads where it looks for it; give back the words to run."""
        words = [INSTEAD.get(word, word) for word in words]
        written = outputs_of(words)
        for word in words:
            for part in word.split("="):  # --data domain=data/code, and settings
                if part not in written:
                    self._put(part.rstrip("/"))
        return words

    def grown_before(self, words: list[str]) -> bool:
        """Whether an earlier page grew a base of this kind in this way, under other names; then its folder is taken."""
        _, base, out, *options = words
        key = (NAMES.get(base, base), *options)
        before = self.ground.grown.setdefault(key, self.folder / out)
        if before == self.folder / out:
            return False
        shutil.copytree(before, self.folder / out)
        return True

    def clear(self, words: list[str]) -> None:
        """Put away what a command is to write."""
        for name in outputs_of(words):
            shutil.rmtree(self.folder / name, ignore_errors=True)

    def begin_again(self, recipe: str) -> None:
        """Put away a recipe's run: pages show the same run started in several ways."""
        shutil.rmtree(self.folder / read_recipe(self.folder / recipe)["out"], ignore_errors=True)

    def write(self, title: str, text: str) -> None:
        """A file that a page shows under its name."""
        path = self.folder / title
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix not in (".yaml", ".yml"):
            path.write_text(text)
            return
        plain = yaml.safe_load(text)
        path.write_text(yaml.safe_dump(smaller(plain)))
        for source in plain.get("sources", []):
            self._put(source["path"])

    def _put(self, name: str) -> None:
        path = self.folder / name
        if not name or path.exists() or Path(name).is_absolute():
            return
        if name in NAMES:
            self._link(path, getattr(self.ground, NAMES[name]))
        elif name in RECIPE_NAMES or (name.startswith("recipes/") and name.endswith(".yaml")):
            self._put_recipe(path, ROOT / RECIPE_NAMES.get(name, name))

    def _link(self, path: Path, target: Path) -> None:
        if "*" in path.name:
            path = path.with_name(path.name.replace("*", "part"))
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            if target.is_dir():
                shutil.copytree(target, path)
            else:
                write_packed(path, target.read_text())

    def _put_recipe(self, path: Path, original: Path) -> None:
        plain = smaller(read_recipe(original))
        if original.name != path.name:
            plain["out"] += "-own"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(plain))
        for key in ("model", "base"):
            self._put(str(plain.get(key, "")))
        for key in ("domain", "general"):
            self._put(str(plain.get("data", {}).get(key, "")))
        for source in [*plain.get("sources", []), *plain.get("decontaminate", [])]:
            self._put_source(source)

    def _put_source(self, source: dict[str, Any]) -> None:
        """Documents where a recipe looks for them, in the format that it says."""
        path = self.folder / source["path"].replace("**", "part").replace("*", "part")
        seed = len(list(self.folder.rglob("*")))  # sources differ, or they would be dropped as copies
        field = source.get("field", "text")
        rows = [{field: text} for text in prose(40, seed)]
        if source.get("kind") == "code":
            self._link(path, self.ground.code)
        elif path.suffix == ".parquet":
            path.parent.mkdir(parents=True, exist_ok=True)
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        else:
            if source["path"].startswith(CHATS):
                rows = [{"messages": [talk("user", row[field]), talk("assistant", "yes")]} for row in rows]
            write_packed(path if path.suffix else path / "part.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


CHATS = ("sharegpt/", "wizardlm-", "slimorca/", "metamath/", "evol-")
"""How the paths of sources of chats begin."""

RECIPE_NAMES = {"RECIPE.yaml": "recipes/post-pretrain-7b.yaml"}
"""Which recipe stands for a reader's own; its run lies beside that recipe's."""


def prose(count: int, seed: int) -> list[str]:
    """Texts of common words that do not repeat themselves: rules that clean text let them through."""
    words, r = WORDS.read_text(encoding="utf-8").split(), random.Random(seed)
    return [" ".join([*r.sample(words, 40), "and the", *r.sample(words, 40), "of"]) for _ in range(count)]


def talk(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def write_packed(path: Path, text: str) -> None:
    """A text, compressed as its name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = {".gz": "gzip", ".zst": "zstd"}.get(path.suffix)
    with pyarrow.output_stream(str(path), compression=kind) as stream:
        stream.write(text.encode())


def read_recipe(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def smaller(plain: dict[str, Any]) -> dict[str, Any]:
    """A recipe with the sizes of SMALLER; of a comparison the first two arms, at one learning rate each."""
    plain = {key: SMALLER.get(key, value) for key, value in plain.items()}
    if "arms" in plain:
        plain["arms"] = [{**arm, "lrs": arm["lrs"][:1]} for arm in plain["arms"][:2]]
    return plain


def outputs_of(words: list[str]) -> set[str]:
    """What a command writes: it is not put there before."""
    named = {after for word, after in itertools.pairwise(words) if word in ("--out", "--log")}
    leading = list(itertools.takewhile(lambda word: not word.startswith("-"), words))
    return named | (set(leading[-1:]) if words[0] in ("expand", "pack") else set())
