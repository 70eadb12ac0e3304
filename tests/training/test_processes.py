"""Two processes train as one does: same rows, same steps, each with its part of the model and of the files.

Both do everything in one job (two_processes.py), because starting processes is what takes long. Stated
tolerance between one process and two: 1e-5 relative in losses, norms and rates in float32 (sums are taken in
another order), 1e-3 with Muon, whose products are bfloat16, and 1e-2 in bfloat16 (masters are gathered in it).
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from blockexpand.checkpoint import digest_tensors, open_checkpoint
from blockexpand.errors import TrainingError
from blockexpand.families import modules
from blockexpand.records import read_json, read_record
from blockexpand.records.run import RunRecord, read_metrics
from blockexpand.training import Interrupted, train
from blockexpand.training.arms import load_model
from blockexpand.training.checkpoints import OPTIMIZER, TRAINABLE, SavedTensors, newest_checkpoint
from blockexpand.training.data import open_data
from blockexpand.training.processes import Piece, World, _Files, _value, fill, names_to_fill
from training_ground import KEEPING, SHARDED_RUNS, Ground, sharded_settings

sys.path.append(str(Path(__file__).parents[1] / "families"))
from zoo import ZOO, Case, write

HERE = Path(__file__).parent
FIGURES = ("domain_loss", "general_loss", "kl", "domain", "general", "general_weight", "gradient_norm", "lr")
TOLERANCE = {"half": 1e-2, "muon": 1e-3}


def environment() -> dict[str, str]:
    """What processes of a job have in common."""
    path = os.pathsep.join([str(HERE.parents[1] / "src"), str(HERE.parents[1]), str(HERE.parent)])
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}


def start(words: list[str]) -> list[subprocess.Popen[str]]:
    """Two processes that know of each other as those of torchrun do, without its own start-up."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {**environment(), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    piped = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return [
        subprocess.Popen([sys.executable, *words], env={**shared, "RANK": rank, "LOCAL_RANK": rank}, **piped)
        for rank in ("0", "1")
    ]


def ended(processes: list[subprocess.Popen[str]], seconds: float = 600) -> list[tuple[int, str, str]]:
    """Each one's exit code and what it said, on standard output and on standard error."""
    try:
        said = [process.communicate(timeout=seconds) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *words) for process, words in zip(processes, said, strict=True)]


@pytest.fixture(scope="module")
def runs(ground: Ground, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the runs of one process (`NAME-1`) and of two (`NAME-2`), and both processes' facts."""
    out = tmp_path_factory.mktemp("sharded")
    with pytest.MonkeyPatch.context() as patch:
        interrupted_at(patch, 5)
        with pytest.raises(Interrupted):
            train(sharded_settings(ground, "keeping", out / "cut-1-2"))
    job = out / "job.json"
    job.write_text(json.dumps({"out": str(out), "ground": {k: str(v) for k, v in vars(ground).items()}}))
    processes = start([str(HERE / "two_processes.py"), str(job)])
    for name in SHARDED_RUNS:
        train(sharded_settings(ground, name, out / f"{name}-1"))
    results = ended(processes)
    assert [code for code, *_ in results] == [0, 0], results
    train(sharded_settings(ground, "keeping", out / "cut-2-1"), resume=True)
    return out


def interrupted_at(patch: pytest.MonkeyPatch, step: int) -> None:
    """Have Ctrl-C pressed during a step."""
    from blockexpand.training.loop import Loop

    real = Loop._stepped

    def stepped(self: Loop, number: int, *rest: Any) -> Any:
        if number == step - 1:
            os.kill(os.getpid(), signal.SIGINT)
        return real(self, number, *rest)

    patch.setattr(Loop, "_stepped", stepped)


def facts(runs: Path, about: str) -> list[Any]:
    return [read_json(runs / f"facts-{rank}.json")[about] for rank in (0, 1)]


def course(run: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in read_metrics(run / "metrics.jsonl")]


def assert_close(one: Path, two: Path, tolerance: float = 1e-5) -> None:
    ours, theirs = course(one), course(two)
    assert [(row["step"], row["kind"]) for row in ours] == [(row["step"], row["kind"]) for row in theirs]
    for a, b in zip(ours, theirs, strict=True):
        for key in {key for key in set(FIGURES) & set(a) if a[key] is not None}:
            assert b[key] == pytest.approx(a[key], rel=tolerance, abs=tolerance * 0.1), (a["step"], key)


def assert_same(one: Path, two: Path) -> None:
    assert course(one) == course(two)
    for a, b in zip(*(sorted((run / "model").glob("*.safetensors")) for run in (one, two)), strict=True):
        assert a.read_bytes() == b.read_bytes()


def test_parameters_are_sharded_and_each_process_reads_its_part(runs: Path) -> None:
    for seen in facts(runs, "sharding"):
        assert seen["all_sharded"]
        assert seen["placements"] == ["(Shard(dim=0),)"]
        assert seen["trained_dtypes"] == ["torch.float32"]
        assert seen["equal"], "the parts, put together, are not what transformers loads"
        assert seen["bytes_held"] <= 0.51 * seen["bytes_whole"]
        assert seen["bytes_read"] <= 0.51 * seen["bytes_on_disk"]
        assert seen["reference_is_the_base"]
    both = facts(runs, "sharding")
    assert sum(seen["bytes_held"] for seen in both) == both[0]["bytes_whole"]


@pytest.mark.parametrize("name", SHARDED_RUNS)
def test_two_processes_train_as_one_does(runs: Path, ground: Ground, name: str) -> None:
    assert_close(runs / f"{name}-1", runs / f"{name}-2", TOLERANCE.get(name, 1e-5))
    one, two = (read_record(RunRecord, runs / f"{name}-{n}" / "blockexpand.json") for n in (1, 2))
    assert (one.num_processes, two.num_processes) == (1, 2)
    for field in ("num_trainable_parameters", "num_parameters", "num_tokens", "num_trained_tensors"):
        assert vars(one)[field] == vars(two)[field]
    assert one.num_unchanged_tensors == two.num_unchanged_tensors
    shipped = [load_model(runs / f"{name}-{n}" / "model", torch.float32) for n in (1, 2)]
    tokens = torch.arange(5, 25)[None]
    with torch.no_grad():
        a, b = (model(tokens).logits for model in shipped)
    # The shipped weights are bf16: a master that moved by 1e-7 may be rounded the other way.
    torch.testing.assert_close(a, b, rtol=0.05, atol=0.05)


def test_gradients_may_be_summed_after_each_pass_or_after_the_last(runs: Path) -> None:
    assert_close(runs / "passes-1", runs / "reduced-2")


def test_the_old_tensors_are_unchanged_and_counted(runs: Path, ground: Ground) -> None:
    before, after = (digest_tensors(open_checkpoint(f)) for f in (ground.expanded, runs / "keeping-2" / "model"))
    changed = [name for name in before if before[name] != after[name]]
    assert {int(name.split(".")[2]) for name in changed} == {2, 5}
    record = read_record(RunRecord, runs / "keeping-2" / "blockexpand.json")
    assert record.num_trained_tensors == 2 * 9 >= len(changed)
    assert record.num_unchanged_tensors == len(before) - 2 * 9


def test_no_row_is_seen_twice_or_left_out(runs: Path, ground: Ground, tmp_path: Path) -> None:
    settings = ground.settings(tmp_path, retention=KEEPING, rows_per_step=5, rows_per_pass=1)
    alone = open_data(settings, World(device=torch.device("cpu")))
    both = facts(runs, "dealing")
    for step in range(6):
        (rows,) = alone.shares(step)
        expected = sorted(("domain" if split is alone.domain else "general", row) for split, row in rows)
        mine = [[tuple(row) for row in seen["rows"][step]] for seen in both]
        assert sorted(mine[0] + mine[1]) == expected
        assert abs(len(mine[0]) - len(mine[1])) == 1
        assert {seen["num_passes"][step] for seen in both} == {3}


def test_files_do_not_depend_on_the_number_of_processes(runs: Path) -> None:
    one, two = (newest_checkpoint(runs / f"keeping-{n}") for n in (1, 2))
    assert one is not None
    assert two is not None
    assert sorted(p.name for p in one.iterdir()) == sorted(p.name for p in two.iterdir())
    for name in (TRAINABLE, OPTIMIZER):
        assert (one / name).stat().st_size == (two / name).stat().st_size
        ours, theirs = SavedTensors(one / name), SavedTensors(two / name)
        assert ours.names == theirs.names
        for tensor in ours.names:
            torch.testing.assert_close(ours.whole(tensor), theirs.whole(tensor), rtol=1e-2, atol=1e-4)


def test_a_resumed_run_is_the_same_on_as_many_processes(runs: Path) -> None:
    assert_same(runs / "keeping-2", runs / "cut-2-2")


def test_a_run_goes_on_with_more_or_fewer_processes(runs: Path) -> None:
    for name in ("cut-2-1", "cut-1-2"):
        assert_close(runs / "keeping-1", runs / name)
        steps = [row["step"] for row in course(runs / name) if row["kind"] == "train"]
        assert steps == list(range(1, len(steps) + 1)), "a step was done twice or left out"


def test_a_bad_loss_in_one_process_is_skipped_in_all(runs: Path) -> None:
    record = read_record(RunRecord, runs / "bad" / "blockexpand.json")
    assert record.num_skipped_steps == 1
    bad = [row for row in course(runs / "bad") if row["kind"] == "train" and row["gradient_norm"] is None]
    assert [row["step"] for row in bad] == [3]


def test_what_several_processes_cannot_do_is_refused_in_each(runs: Path) -> None:
    assert all("arm.kind 'lora' trains in one process" in words for words in facts(runs, "lora"))
    first, second = facts(runs, "taken")
    assert "already holds a run; add --resume" in first
    assert "the first process ended the run" in second
    assert all("not finite in 3 steps in a row" in words for words in facts(runs, "explodes"))
    assert all("there is no good checkpoint to resume from" in words for words in facts(runs, "explodes"))


def test_torchrun_starts_the_verb_and_one_process_speaks(ground: Ground, tmp_path: Path) -> None:
    """And SIGTERM to one of its two, as a batch system sends it, saves and ends all with 0."""
    recipe = tmp_path / "recipe.yaml"
    data = {"domain": str(ground.domain), "validation_rows": 0}
    settings = {
        "model": str(ground.expanded), "out": str(tmp_path / "run"), "data": data, "domain_tokens": 10**7,
        "rows_per_step": 4, "rows_per_pass": 4, "retention": "none",
    }  # fmt: skip
    recipe.write_text(json.dumps(settings))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words = [*torchrun, "-m", "blockexpand", "train", str(recipe)]
    job = subprocess.Popen(words, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while len(read_metrics(tmp_path / "run" / "metrics.jsonl")) < 3:
        assert job.poll() is None, job.communicate()
        time.sleep(0.1)
    workers = psutil.Process(job.pid).children()
    assert len(workers) == 2
    workers[1].send_signal(signal.SIGTERM)
    ((code, out, err),) = ended([job], 300)
    assert (code, out) == (0, ""), err
    assert err.count(" --resume") == 1, err
    checkpoint = newest_checkpoint(tmp_path / "run")
    assert checkpoint is not None
    step = int(checkpoint.name.removeprefix("step-"))
    assert max(row["step"] for row in read_metrics(tmp_path / "run" / "metrics.jsonl")) == step
    assert f"blockexpand: stopped at step {step} of" in err


# --- parameters read piece by piece ------------------------------------------------------------------------


# Plain; names without a prefix; another head; all experts as one; saved buffers; gains minus one; a table of positions.
FAMILIES = ("llama", "gpt2", "gpt_neox", "mixtral", "qwen3_moe", "deepseek_v3", "gemma2", "gptj", "mamba2")


def case(family: str) -> Case:
    return next(row for row in ZOO if row.family == family)


def filled(folder: Path) -> Any:
    model = modules.load_model(folder, dtype=torch.bfloat16, device="meta")
    names = names_to_fill(model)
    model._apply(lambda t: torch.full_like(t, 7, device="cpu") if t.is_meta else t)
    fill(model, names, folder)  # type: ignore[arg-type]
    model.tie_weights()  # which FSDP does by itself
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_read_is_what_transformers_loads(family: str, tmp_path: Path) -> None:
    folder = write(case(family), tmp_path / "model")
    file = folder / "model.safetensors"
    tensors = load_file(file)
    for name, tensor in tensors.items():  # buffers that are saved start at zero: a test with zeros would prove nothing
        if not tensor.any():
            tensor.copy_(torch.arange(tensor.numel()).reshape(tensor.shape))
            tensors[name] = tensor
    save_file(tensors, file, {"format": "pt"})
    whole, ours = modules.load_model(folder, dtype=torch.bfloat16), filled(folder)
    for kind in ("named_parameters", "named_buffers"):
        expected = dict(vars(nn.Module)[kind](whole))
        found = dict(vars(nn.Module)[kind](ours))
        assert set(expected) == set(found)
        for name, tensor in expected.items():
            assert found[name].dtype == tensor.dtype, name
            assert torch.equal(found[name], tensor), name


def test_a_part_of_the_experts_is_a_part_of_the_whole(tmp_path: Path) -> None:
    """A process holds some experts of a tensor that has them all."""
    from blockexpand.checkpoint import open_checkpoint
    from blockexpand.families import family_for

    folder = write(case("mixtral"), tmp_path / "model")
    checkpoint = open_checkpoint(folder)
    family = family_for(checkpoint.config, "x", checkpoint.tensors)
    name = "model.layers.1.mlp.experts.gate_up_proj"
    whole = dict(modules.load_model(folder, dtype=torch.bfloat16).named_parameters())[name]
    piece = Piece(local=torch.empty(2, *whole.shape[1:]), shape=tuple(whole.shape), first_row=1, mine=True)
    files = _Files(checkpoint)
    assert torch.equal(_value(name, False, piece, family, files), whole[1:3])
    assert files.num_bytes_read == whole[1:3].nbytes


def test_what_cannot_be_read_piece_by_piece_is_refused(tmp_path: Path) -> None:
    folder = write(case("llama"), tmp_path / "model")
    file = folder / "model.safetensors"
    tensors = load_file(file)
    save_file({k: v for k, v in tensors.items() if k != "model.norm.weight"}, file, {"format": "pt"})
    with pytest.raises(TrainingError, match=r"has no tensor for the model's model.norm.weight .*train in one process"):
        filled(folder)
    save_file(tensors | {"model.norm.weight": torch.ones(5)}, file, {"format": "pt"})
    with pytest.raises(TrainingError, match=r"has shape \[5\] for model.norm.weight, and the model's .* is \[32\]"):
        filled(folder)
    scaled = tensors | {"model.norm.weight": torch.ones(32).to(torch.float8_e4m3fn)}
    save_file(scaled, file, {"format": "pt"})
    with pytest.raises(TrainingError, match="holds model.norm.weight in F8_E4M3, which cannot be read piece by piece"):
        filled(folder)


def test_a_model_that_transformers_does_not_know_is_refused(tmp_path: Path) -> None:
    from blockexpand.errors import LiveError

    (tmp_path / "config.json").write_text('{"model_type": "unheard-of"}')
    with pytest.raises(LiveError, match="transformers cannot load"):
        modules.load_model(tmp_path, dtype=torch.float32, device="meta")
