"""lm-evaluation-harness by its own command line, on a task of ours, with no network."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from world_ground import World, logits_of, offline

pytest.importorskip("lm_eval")

ROWS = [
    {"text": "The dog ran to the", "choices": ["house", "moon"], "answer": 0},
    {"text": "The king was", "choices": ["purple", "very happy"], "answer": 1},
    {"text": "Ann was very", "choices": ["happy", "stone"], "answer": 0},
]
TASK = """\
task: ours
dataset_path: json
dataset_kwargs:
  data_files: {{test: {rows}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{text}}}}"
doc_to_choice: choices
doc_to_target: answer
metric_list:
  - metric: acc
"""


def test_its_command_line_scores_the_folder_as_the_plain_model_does(world: World, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks/ours.yaml").write_text(TASK.format(rows=tmp_path / "rows.jsonl"))
    options = {
        "--model": "hf",
        "--model_args": f"pretrained={world.grown},dtype=float32",
        "--include_path": str(tmp_path / "tasks"),
        "--tasks": "ours",
        "--device": "cpu",
        "--batch_size": "1",
        "--output_path": str(tmp_path / "out"),
    }
    command = [str(Path(sys.executable).parent / "lm_eval"), *[word for pair in options.items() for word in pair]]
    environment = offline() | {"HF_HOME": str(tmp_path / "home")}
    done = subprocess.run(
        [*command, "--log_samples"], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    samples = [json.loads(line) for line in next((tmp_path / "out").rglob("samples_ours_*.jsonl")).open()]
    samples.sort(key=lambda sample: sample["doc_id"])
    assert len(samples) == len(ROWS)
    model, hits = world.model(), 0
    for row, sample in zip(ROWS, samples, strict=True):
        expected = [_log_likelihood(world, model, row["text"], f" {choice}") for choice in row["choices"]]
        theirs = [float(answer[0]) for answer in sample["filtered_resps"]]
        assert theirs == pytest.approx(expected, abs=1e-3)
        hits += expected.index(max(expected)) == row["answer"]
    results = json.loads(next((tmp_path / "out").rglob("results_*.json")).read_text())
    assert results["results"]["ours"]["acc,none"] == pytest.approx(hits / len(ROWS))


def _log_likelihood(world: World, model: torch.nn.Module, text: str, continuation: str) -> float:
    """Of the continuation, in nats: the sum over its tokens."""
    tokenizer = world.tokenizer()
    start, whole = tokenizer(text).input_ids, tokenizer(text + continuation).input_ids
    assert whole[: len(start)] == start
    log_p_TV = logits_of(model, torch.tensor([whole]))[0].log_softmax(-1)
    return sum(log_p_TV[at - 1, whole[at]].item() for at in range(len(start), len(whole)))
