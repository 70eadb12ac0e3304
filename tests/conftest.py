"""Fixtures every room's tests may use; the things they are made of are in helpers.py."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest

# Before torch, and for every process that a test starts; as many test processes run as there are cores.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# What bases write themselves is kept among the user's assets; tests have some of their own, the same in every process.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _ASSETS = tempfile.TemporaryDirectory(prefix="blockexpand-assets-")
    os.environ["HF_ASSETS_CACHE"] = _ASSETS.name

import torch
from transformers.utils import logging

from helpers import MakeBase, make_base

torch.set_num_threads(1)
logging.set_verbosity_error()
logging.disable_progress_bar()


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> MakeBase:
    """`tiny_base(family, **settings)`: a tiny checkpoint's folder, made once and shared. Do not change it."""
    made: dict[str, Path] = {}

    def make(family: str = "llama", **settings: Any) -> Path:
        key = f"{family} {sorted(settings.items())}"
        if key not in made:
            made[key] = make_base(tmp_path_factory.mktemp(f"base-{family}"), family, **settings)
        return made[key]

    return make


@pytest.fixture
def own_base(tiny_base: MakeBase, tmp_path: Path) -> MakeBase:
    """`own_base(family, **settings)`: a copy of it, this test's to change or break."""

    def make(family: str = "llama", **settings: Any) -> Path:
        folder = tmp_path / "base"
        shutil.copytree(tiny_base(family, **settings), folder)
        return folder

    return make
