"""llama.cpp itself, as node-llama-cpp ships it built: an expanded folder as GGUF says the words that transformers says.

NODE_LLAMA_CPP names the folder where `npm install node-llama-cpp` ran; without it nothing here runs. Ids go in and come
out, since the file does not say how our tokenizer cuts text.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gguf")

from world_gguf import write_gguf
from world_ground import PROMPTS, World, continue_by_hand

FOLDER, NODE = os.environ.get("NODE_LLAMA_CPP"), shutil.which("node")
pytestmark = pytest.mark.skipif(FOLDER is None or NODE is None, reason="NODE_LLAMA_CPP names no folder, or no node")

TOKENS = 24
SCRIPT = """\
const [root, file, prompts, count] = process.argv.slice(2);
const {getLlama} = await import(`${root}/node_modules/node-llama-cpp/dist/index.js`);
const llama = await getLlama({gpu: false, build: "never", skipDownload: true, logLevel: "error", maxThreads: 1});
const model = await llama.loadModel({modelPath: file});
const context = await model.createContext({contextSize: 256, threads: 1});
const answers = [];
const sequence = context.getSequence();
for (const prompt of JSON.parse(prompts)) {
  await sequence.clearHistory();
  const ids = [];
  for await (const id of sequence.evaluate(prompt, {temperature: 0, yieldEogToken: true})) {
    ids.push(id);
    if (ids.length === Number(count)) break;
  }
  answers.push({ids, text: model.detokenize(ids)});
}
console.log(JSON.stringify({answers, layers: model.fileInsights.totalLayers}));
process.exit(0);
"""


def said_by_llama_cpp(file: Path, prompts: list[list[int]]) -> dict[str, Any]:
    """Greedy answers of so many tokens to prompts of ids, and how many layers it counts."""
    assert FOLDER is not None
    assert NODE is not None
    script = file.with_suffix(".mjs")
    script.write_text(SCRIPT)
    command = [NODE, str(script), str(Path(FOLDER).resolve()), str(file), json.dumps(prompts), str(TOKENS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_it_says_what_transformers_says(world: World, tmp_path: Path) -> None:
    prompts = [world.tokens(prompt) for prompt in PROMPTS]
    found = said_by_llama_cpp(write_gguf(world, tmp_path / "grown.gguf"), [ids_1T[0].tolist() for ids_1T in prompts])
    assert found["layers"] == world.plan.num_blocks + 1, "it counts the head as one"
    others = 0
    for ids_1T, answer in zip(prompts, found["answers"], strict=True):
        length = ids_1T.shape[1]
        expected = continue_by_hand(world.model(), ids_1T, TOKENS)[0, length:].tolist()
        assert answer["ids"] == expected
        assert answer["text"].strip() == world.tokenizer().decode(expected).strip()
        others += continue_by_hand(world.model(world.base), ids_1T, TOKENS)[0, length:].tolist() != expected
    assert others == len(prompts), "the base says something else, so the new blocks are in use"
