"""Block expansion with a forgetting budget, in one file that imports nothing of ours. Read it from top to bottom.

    python examples/method.py MODEL domain.txt general.txt OUT [steps]

MODEL is a Llama-like folder (blocks with self_attn.o_proj and mlp.down_proj). The texts hold documents divided by blank
lines. OUT gets a deeper model that any program loads, whose general loss rose by at most 1 % with 95 % confidence. The
library does the same for any family, size and machine, with proofs, packing, resuming and packs.
"""

import copy
import sys
from contextlib import contextmanager
from pathlib import Path

import torch
from scipy.stats import t as student
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

ROW, ROWS, GENERAL_ROWS = 128, 8, 2  # tokens a row; rows a step, domain and general
RATE, KL_WEIGHT, BUDGET, LEVEL = 1e-3, 8.0, 0.01, 0.95


def expand(model, num_new):
    """Put `num_new` copies of blocks between the old ones (LLaMA Pro, section 3.2): the old, the new and all blocks.

    Each stands on its donor, the last block of its group, and begins as an exact identity: what writes to the residual
    stream is zero, all else is the donor's, so that gradients reach it.
    """
    old = list(model.model.layers)
    assert len(old) % num_new == 0, f"{len(old)} blocks cannot be divided into {num_new} equal groups"
    new, stack = [], []
    for index, block in enumerate(old):
        stack.append(block)
        if (index + 1) % (len(old) // num_new) == 0:
            new.append(copy.deepcopy(block))
            for writer in writers(new[-1]):
                torch.nn.init.zeros_(writer)
            stack.append(new[-1])
    model.requires_grad_(False)  # everything the model had is frozen: embeddings, norms, head and old blocks
    torch.nn.ModuleList(new).requires_grad_(True)
    put(model, stack)
    return old, new, stack


def writers(block):
    """The tensors of a block whose product is added to the residual stream."""
    return [tensor for part in (block.self_attn.o_proj, block.mlp.down_proj) for tensor in part.parameters()]


def put(model, blocks):
    """Make these the model's blocks: list, config and cache indices."""
    model.model.layers = torch.nn.ModuleList(blocks)
    model.config.num_hidden_layers = len(blocks)
    for index, block in enumerate(blocks):
        block.self_attn.layer_idx = index


@contextmanager
def bypass(model, old, stack):
    """Inside, the model is the base again, to the bit: the base needs no second copy."""
    put(model, old)
    yield
    put(model, stack)


def log_probabilities(model, rows):
    """[rows, tokens, vocabulary] log-probabilities of the next token."""
    return functional.log_softmax(model(rows, use_cache=False).logits[:, :-1].float(), dim=-1)


def cross_entropy(log_p, rows):
    """Mean nats a token."""
    return functional.nll_loss(log_p.flatten(0, 1), rows[:, 1:].flatten())


def step_loss(model, old, stack, domain, general):
    """Cross-entropy on the domain's rows, and the distance from what the base says on general rows."""
    loss = cross_entropy(log_probabilities(model, domain), domain)
    with torch.no_grad(), bypass(model, old, stack):
        base = log_probabilities(model, general)
    now = log_probabilities(model, general)
    kl = functional.kl_div(now, base, reduction="sum", log_target=True) / now[..., 0].numel()
    return loss + KL_WEIGHT * kl, loss, kl


def document_losses(model, documents):
    """Summed nats of each document."""
    with torch.no_grad():
        return [cross_entropy(log_probabilities(model, d), d).item() * (d.shape[1] - 1) for d in documents]


def bound_of_rise(before, after):
    """General loss now over the base's, minus 1: the figure, and its upper bound. Documents are the units."""
    n, total = len(before), sum(before)
    rise = sum(after) / total - 1
    residuals = torch.tensor([(a - (1 + rise) * b) * n / total for a, b in zip(after, before, strict=True)])
    return rise, rise + student.ppf(LEVEL, n - 1) * residuals.std().item() / n**0.5


@torch.no_grad()
def scale_to_budget(model, new, documents, before):
    """Let the new blocks write s times what they write: the largest s, walked up from 0, whose bound is in the budget.

    Each s is tested only if all before it passed, so the level needs no correction (fixed-sequence testing).
    """
    tensors, shipped = [tensor for block in new for tensor in writers(block)], (0.0, 0.0, 0.0)
    trained = [tensor.clone() for tensor in tensors]
    for s in (0.25, 0.5, 0.75, 1.0):
        torch._foreach_copy_(tensors, [tensor * s for tensor in trained])
        rise, bound = bound_of_rise(before, document_losses(model, documents))
        if bound > BUDGET:
            break
        shipped = (s, rise, bound)
    torch._foreach_copy_(tensors, [tensor * shipped[0] for tensor in trained])
    return shipped


def documents(tokenizer, name):
    """Each document's tokens, [1, at most ROW]."""
    found = [tokenizer(text, return_tensors="pt").input_ids[:, :ROW] for text in Path(name).read_text().split("\n\n")]
    return [ids for ids in found if ids.shape[1] > 1]


def main(folder, domain_file, general_file, out, steps=60):
    """Expand, train, scale, save."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    old, new, stack = expand(model, max(n for n in range(1, 9) if len(model.model.layers) % n == 0))
    domain, general = (documents(tokenizer, name) for name in (domain_file, general_file))
    held_out, general = general[::2], general[1::2]  # tested by, and trained on
    rows = [torch.cat(found, dim=1)[0].unfold(0, ROW, ROW) for found in (domain, general)]
    before = document_losses(model, held_out)  # the new blocks are identities: this is the base
    optimizer = torch.optim.AdamW([p for block in new for p in block.parameters()], lr=RATE, weight_decay=0.1)
    for step in range(steps):
        drawn = (rows[0][torch.randint(len(rows[0]), (ROWS,))], rows[1][torch.randint(len(rows[1]), (GENERAL_ROWS,))])
        total, loss, kl = step_loss(model, old, stack, *drawn)
        total.backward()
        optimizer.step()
        optimizer.zero_grad()
        print(f"step {step + 1} of {steps}: domain loss {loss.item():.3f}, KL to the base {kl.item():.4f}")
    s, rise, bound = scale_to_budget(model, new, held_out, before)
    print(f"s = {s}: general loss {rise:+.2%}, at most {bound:+.2%} ({LEVEL:.0%} confidence)")
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


if __name__ == "__main__":
    main(*sys.argv[1:5], *map(int, sys.argv[5:6]))
