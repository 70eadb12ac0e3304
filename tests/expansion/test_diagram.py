"""The plan as a column of blocks."""

from __future__ import annotations

import subprocess
import sys

from blockexpand.expansion import draw, plan
from helpers import KNOWN_SHAPES, MakeBase, shape_only

TIMES = "\u00d7"
EXPECTED = f"""\
llama2-7b (llama): 32 old + 2 new = 34 blocks
interleaved: 2 groups of 16, 1 new on top of each

           output head
        ┌───────────────┐
     33 │░░░░░ new ░░░░░│  after31.0  copy of old 31
  17-32 │   old 16…31   │  {TIMES}16
     16 │░░░░░ new ░░░░░│  after15.0  copy of old 15
   0-15 │   old 0…15    │  {TIMES}16
        └───────────────┘
           embeddings

zero in each new block: mlp.down_proj.weight, self_attn.o_proj.weight
config: num_hidden_layers = 34
parameters 6,738,415,616 → 7,143,182,336 (404,766,720 new)
weights    13.5 GB → 14.3 GB
training   20.0 GB for weights, gradients and moments, and the activations"""


def llama_plan(**request):
    return plan(shape_only("llama2-7b", KNOWN_SHAPES["llama2-7b"]), **request)


def test_the_column_as_people_see_it():
    assert "\n".join(map(str.rstrip, draw(llama_plan(blocks=2)).plain.splitlines())) == EXPECTED


def test_all_blocks_are_shown_when_asked():
    rows = [line for line in draw(llama_plan(blocks=2), show_all=True).plain.splitlines() if "│" in line]
    assert [line.split()[0] for line in rows] == [str(i) for i in reversed(range(34))]


def test_new_blocks_and_notes_stand_out(tiny_base: MakeBase):
    made = plan(tiny_base("qwen2", use_sliding_window=True, sliding_window=8, max_window_layers=3), 2, per_group=2)
    text = draw(made)
    assert {"bold green", "yellow"} <= {str(span.style) for span in text.spans}
    assert "note: max_window_layers stays 3" in text.plain


def test_planning_imports_nothing_heavy(tiny_base: MakeBase):
    heavy = ("torch", "transformers", "numpy", "rich", "huggingface_hub", "safetensors")
    code = (
        "import sys; from blockexpand.expansion import expand, plan; "
        f"plan({str(tiny_base())!r}, 1); print([m for m in {heavy} if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "[]\n"
