"""The rules of the house, as tests: direction of imports, caps, CONTRIBUTING's map, options, errors that were read."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "blockexpand"

# Left to right; a room may import what stands before it, never its own row or after it.
ROWS: list[set[str]] = [
    {"errors", "data"},
    {"staging"},
    {"units"},
    {"records"},
    {"digests", "progress"},
    {"families"},
    {"checkpoint"},
    {"expansion"},
    {"live"},
    {"corpus"},
    {"packs"},
    {"sandbox"},
    {"training"},
    {"evaluation"},
    {"agents"},
    {"comparison"},
    {"reporting"},
    {"serving"},
    {"publishing"},
    {"learn"},
    {"cli"},
]
RANK = {room: rank for rank, row in enumerate(ROWS) for room in row}
EXEMPT = {"__init__", "__main__"}  # the public names, and `python -m blockexpand`

FILE_LINES, FUNCTION_LINES = 600, 80
PROBES_PER_THOUSAND = 2.0

FILES = sorted(SOURCE.rglob("*.py"))
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}


def room_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def functions() -> list[tuple[Path, ast.FunctionDef | ast.AsyncFunctionDef]]:
    return [
        (path, node)
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]


def imported_rooms(tree: ast.AST) -> set[str]:
    rooms = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("blockexpand"):
            parts = node.module.split(".")
            rooms |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            rooms |= {a.name.split(".")[1] for a in node.names if a.name.startswith("blockexpand.")}
    return rooms - {"__version__"}


def test_every_room_has_its_row() -> None:
    assert {room_of(path) for path in FILES} - EXEMPT == set(RANK)


def test_rooms_import_only_what_stands_before_them() -> None:
    wrong = []
    for path, tree in TREES.items():
        room = room_of(path)
        if room in EXEMPT:
            continue
        later = sorted(other for other in imported_rooms(tree) - {room} if RANK[other] >= RANK[room])
        wrong += [f"{path.relative_to(ROOT)} imports {other}" for other in later]
    assert wrong == []


def test_no_two_rooms_import_each_other() -> None:
    """The order alone allows it to no one; this says it of files below the rooms, too: `a/b.py` and `b/a.py`."""
    arrows = {(room_of(p), other) for p, tree in TREES.items() for other in imported_rooms(tree) if room_of(p) != other}
    assert {(a, b) for a, b in arrows if (b, a) in arrows and not EXEMPT & {a, b}} == set()


def test_no_two_tests_share_a_file_name() -> None:
    """pytest imports a test file by its base name: of two with one name, one is an error or is not collected."""
    names = Counter(path.name for path in (ROOT / "tests").rglob("test_*.py"))
    assert [name for name, count in names.items() if count > 1] == []


def test_files_keep_their_cap() -> None:
    lengths = {path.relative_to(ROOT): len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    assert {path: n for path, n in lengths.items() if n >= FILE_LINES} == {}


def test_functions_keep_their_caps() -> None:
    lengths = {f"{p.relative_to(ROOT)}:{f.name}": (f.end_lineno or 0) - f.lineno + 1 for p, f in functions()}
    assert {name: n for name, n in lengths.items() if n >= FUNCTION_LINES} == {}


def test_attributes_are_known_not_probed() -> None:
    probes = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in ("getattr", "hasattr", "setattr")
    ]
    lines = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in FILES)
    assert 1000 * len(probes) / lines <= PROBES_PER_THOUSAND, probes


def test_every_module_says_what_it_is() -> None:
    silent = [str(path.relative_to(ROOT)) for path, tree in TREES.items() if not ast.get_docstring(tree)]
    assert silent == []


def test_no_environment_variables_steer() -> None:
    """Settings are settings; the one place that sets variables for other libraries is the entry point."""
    readers = {
        str(path.relative_to(SOURCE))
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv")
    }
    assert readers <= {"cli/main.py", "comparison/compare.py"}  # the second, for its processes: how threads wait


MAP = ROOT / "CONTRIBUTING.md"


def test_the_map_is_the_tree() -> None:
    """Every file git knows is in CONTRIBUTING's map, alone or under a folder it ends with a slash, and the reverse."""
    text = MAP.read_text(encoding="utf-8")
    block = re.search(r"<!-- map -->\n```text\n(.*?)```", text, re.DOTALL)
    assert block, "CONTRIBUTING has no map between '<!-- map -->' and the end of its block"
    entries, stack = [], []
    for line in block.group(1).splitlines():
        indent = (len(line) - len(line.lstrip())) // 2
        name = line.split()[0]
        stack = [*stack[:indent], name]
        entries.append("".join(stack))
    assert len(entries) == len(set(entries))
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    for entry in entries:
        assert any(t == entry or t.startswith(entry) for t in tracked), (
            f"CONTRIBUTING's map names {entry}, which is not there"
        )
    leaves = [e for e in entries if not any(o != e and o.startswith(e) for o in entries)]
    missing = [
        t for t in tracked if not any(t == leaf or (leaf.endswith("/") and t.startswith(leaf)) for leaf in leaves)
    ]
    assert missing == []


def test_the_public_names_are_one_list() -> None:
    import blockexpand

    tree = TREES[SOURCE / "__init__.py"]
    typed = {
        alias.asname or alias.name: (node.module or "").removeprefix("blockexpand.")
        + (f":{alias.name}" if alias.asname else "")
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("blockexpand.")
        for alias in node.names
    }
    assert typed == blockexpand._ROOMS
    assert set(blockexpand.__all__) == {*typed, "__version__"}
    for name in blockexpand.__all__:
        assert vars(blockexpand).get(name) is not None or blockexpand.__getattr__(name) is not None
    assert blockexpand.detach is not blockexpand.detach_packs
    with pytest.raises(AttributeError, match="no attribute 'expnad'"):
        blockexpand.__getattr__("expnad")


@pytest.mark.parametrize(
    "first", ["blockexpand.expansion.planner", "blockexpand.training", "blockexpand.corpus.preparation"]
)
def test_functions_are_functions_whatever_was_imported_first(first: str) -> None:
    """Why rooms are nouns: a package `blockexpand.plan` would shadow the function once anything imported it."""
    code = (
        f"import {first}, blockexpand\n"
        "assert all(callable(getattr(blockexpand, n)) for n in ('plan', 'expand', 'train', 'prepare', 'compare'))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("blockexpand", ("numpy", "torch", "rich", "yaml", "cyclopts")),
        ("blockexpand.expansion", ("numpy", "torch", "transformers", "rich", "yaml", "huggingface_hub")),
        ("blockexpand.expansion", ("numpy", "torch", "transformers", "rich", "huggingface_hub")),
        ("blockexpand.learn", ("torch", "transformers", "matplotlib", "datasets")),
        ("blockexpand.cli.main", ("numpy", "torch", "transformers", "yaml", "blockexpand.expansion")),
    ],
)
def test_what_is_light_stays_light(module: str, forbidden: tuple[str, ...]) -> None:
    code = f"import sys, {module}\nprint([m for m in {forbidden!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
