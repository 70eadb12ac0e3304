# ruff: noqa: E501 (programs as data)
"""The verdict on a program: honest ones pass, and nothing but passing the tests makes a dishonest one pass."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from blockexpand.sandbox import Limits, passes

HONEST = {
    "a function": ("def f(x):\n    return x + 1", "assert f(1) == 2"),
    "one named as a builtin": ("def sum(a, b):\n    return a + b", "assert sum(10, 15) == 25"),
    "HumanEval's form": (
        "from typing import List\ndef add(xs: List[int]) -> int:\n    return helper(xs)\ndef helper(xs): return len(xs)",
        "def check(candidate):\n    assert candidate([1, 2]) == 2\n    assert candidate([]) == 0\ncheck(add)",
    ),
    "changes its argument": ("def f(xs): xs.sort()", "xs = [3, 1]\nf(xs)\nassert xs == [1, 3]"),
    "changes a dictionary": ("def f(d): d['a'] = {1, 2}", "d = {}\nf(d)\nassert d == {'a': {1, 2}}"),
    "many types": (
        "def f(x): return x",
        "from fractions import Fraction\nfrom decimal import Decimal\nfrom collections import *\nimport datetime\n"
        "for v in [None, True, -5, 10**5000, 1.5, float('inf'), 2j, 'é\\ud800', b'x', bytearray(b'y'), [1, (2, {3: {4}})],\n"
        "          frozenset([1]), range(3), Fraction(1, 3), Decimal('1.10'), Counter('aab'), deque([1], 3), slice(1, 2),\n"
        "          OrderedDict(a=1), defaultdict(int, a=1), datetime.date(2020, 1, 2), datetime.timedelta(3), ...]:\n"
        "    assert f(v) == v and type(f(v)) is type(v), v\nassert f(float('nan')) != 1",
    ),
    "named tuples": ("from collections import namedtuple\nP = namedtuple('P', 'x y')\ndef f(): return P(1, 2)", "assert f() == (1, 2) and f().y == 2"),
    "exceptions": (
        "class Bad(ValueError): pass\ndef f(x):\n    if x: raise Bad('no', x)\n    return [][0]",
        "try:\n    f(3)\n    assert False\nexcept Bad as e:\n    assert e.args == ('no', 3)\n"
        "try:\n    f(3)\nexcept ValueError:\n    pass\ntry:\n    f(0)\n    assert False\nexcept IndexError:\n    pass",
    ),
    "classes": (
        "class Stack:\n    def __init__(self): self.items = []\n    def push(self, x): self.items.append(x); return self\n"
        "    def __len__(self): return len(self.items)\n    def __eq__(self, o): return self.items == o.items\n"
        "    def __add__(self, o):\n        s = Stack(); s.items = self.items + o.items; return s\n    def __lt__(self, o): return len(self) < len(o)",
        "s = Stack().push(1).push(2)\nassert len(s) == 2 and s.items == [1, 2] and isinstance(s, Stack)\n"
        "t = Stack().push(1)\nassert t != s and t < s and (t + s).items == [1, 1, 2]\nt.items = [1, 2]\nassert t == s\n"
        "assert len({id(s), id(t)}) == 2 and not isinstance(3, Stack)",
    ),
    "generators": ("def f(n):\n    for i in range(n): yield i * i", "assert list(f(4)) == [0, 1, 4, 9] and 4 in f(3)\nassert next(iter(f(2))) == 0"),
    "functions as arguments": ("def f(g, xs): return [g(x) for x in xs]", "assert f(lambda x: x * 2, [1, 2]) == [2, 4] and f(str, [1]) == ['1']"),
    "the tests' own classes": (
        "def depth(t): return 0 if t is None else 1 + max(depth(t.left), depth(t.right))\ndef mark(t): t.seen = True",
        "class Node:\n    def __init__(self, left=None, right=None): self.left, self.right = left, right\n"
        "n = Node(Node(None, Node()))\nassert depth(n) == 3\nmark(n)\nassert n.seen",
    ),
    "a function that returns functions": ("def f(a): return lambda b: a + b", "assert f(1)(2) == 3"),
    "what the program imported": ("import math\ndef f(x): return math.sqrt(x)", "assert math.isclose(f(2), 1.41421356, rel_tol=1e-6)"),
    "globals": ("TABLE = {'a': [1, 2]}\nimport dataclasses\n@dataclasses.dataclass\nclass D:\n    x: int = 1", "assert TABLE['a'] == [1, 2] and D(3).x == 3"),
    "a script's own part is not run": ("def f(): return 1\nif __name__ == '__main__': raise SystemExit(3)", "assert f() == 1"),
}  # fmt: skip


@pytest.mark.parametrize("name", HONEST)
def test_honest_programs_pass(name: str) -> None:
    outcome = passes(*HONEST[name])
    assert (outcome.status, outcome.exit_code) == ("ok", 0), outcome


TESTS = "assert f(2) == 4\nassert f(3) == 9\n"
FORGED = {
    "ends before the tests, well": ("import os\nos._exit(0)", TESTS),
    "ends by sys.exit": ("import sys\nsys.exit(0)", TESTS),
    "ends when called": ("import os\ndef f(x): os._exit(0)", TESTS),
    "exits when called": ("def f(x): raise SystemExit(0)", TESTS),
    "ends at exit": ("import atexit, os\natexit.register(os._exit, 0)\ndef f(x): return 1", TESTS),
    "prints a result": ("print('{\"passed\": true}\\nok\\nPASSED\\n1 passed')\ndef f(x): return 1", TESTS),
    "writes a verdict everywhere": (
        "import os\nfor n in range(3, 400):\n    try: os.write(n, b'\\0' * 7 + b'\\x1bd2:u6:passedTu4:textN')\n    except OSError: pass\n",
        TESTS,
    ),
    "lies about lengths": ("import os\nos.write(5, b'\\xff' * 100)\ndef f(x): return 1", TESTS),
    "patches builtins": (
        "import builtins\nfor n in ('AssertionError', 'compile', 'exec', 'len', 'abs', 'isinstance'):\n"
        "    setattr(builtins, n, lambda *a, **k: 0)\ndef f(x): return 1", TESTS,
    ),
    "turns assertions off": ("import sys\nsys.flags = None\n__debug__ if 1 else 0\ndef f(x): return 1", TESTS),
    "patches the scorer": (
        "import gc, sys\nfor m in list(sys.modules.values()):\n    for k in list(vars(m)) if hasattr(m, '__dict__') else []:\n"
        "        if callable(vars(m)[k]) and m.__name__.startswith('blockexpand'):\n            setattr(m, k, lambda *a, **k: True)\n"
        "def f(x): return 1", TESTS,
    ),
    "says that it is ready and guesses the secret": ("import os\nos.write(5, b'r' + b'a' * 32)\nos._exit(0)", TESTS),
    "says so when called": ("import os\ndef f(x):\n    os.write(5, b'r' + os.urandom(16).hex().encode())\n    os._exit(0)", TESTS),
    "patches what tells": (
        "import os, marshal\nfrom blockexpand.sandbox.inside import frames, program\nread = os.read\n"
        "os.read = lambda *a: (_ for _ in ()).throw(SystemExit(0))\nmarshal.loads = lambda d: ('', b'')\n"
        "frames.receive = lambda d: b''\nprogram._names_for = lambda *a: {}\ndef f(x): return 1", TESTS,
    ),
    "patches a module that tests import": ("import math\nmath.isclose = lambda *a, **k: True\ndef f(x): return 1", "import math\nassert math.isclose(f(2), 4)"),
    "stands in for a module": ("import sys, types\nsys.modules['math'] = m = types.ModuleType('math')\nm.isclose = lambda *a: True\ndef f(x): return 1", "from math import isclose\nassert isclose(f(2), 4)"),
    "traces the tests": ("import sys\nsys.settrace(lambda *a: (_ for _ in ()).throw(SystemExit(0)))\ndef f(x): return 1", TESTS),
    "leaves a process that reads the tests": (
        "import os, marshal\nif os.fork() == 0:\n    d = marshal.loads(os.read(4, 4096)[8:])\n    os.write(5, d[1]); os._exit(0)\n"
        "def f(x): return 1", TESTS,
    ),
    "its own abs": ("def f(x): return 1\nabs = lambda x: 0", "assert abs(f(2) - 4) < 1e-6"),
    "its own math": ("class math:\n    isclose = lambda *a, **k: True\ndef f(x): return 1", "assert math.isclose(f(2), 4)"),
    "answers for what it lacks": ("def __getattr__(n): return lambda *a: 4", TESTS),
    "hides among exceptions": ("class AssertionError(Exception): pass\ndef f(x): raise AssertionError", TESTS),
    "does not end": ("def f(x):\n    while True: pass", TESTS),
    "leaves a thread that ends all": (
        "import threading, os, time\nthreading.Thread(target=lambda: (time.sleep(0.05), os._exit(0))).start()\n"
        "def f(x):\n    time.sleep(1)\n    return 4", TESTS,
    ),
    "kills all it can": ("import os\nfor n in range(2, 20):\n    try:\n        n != os.getpid() and os.kill(n, 9)\n    except OSError: pass\ndef f(x): return x * x", "assert f(2) == 5"),
    "reads the tests' process": (
        "import os\nfor n in os.listdir('/proc'):\n    if n.isdigit() and int(n) != os.getpid():\n        for p in ('mem', 'environ', 'fd', 'maps'):\n"
        "            try: open(f'/proc/{n}/{p}', 'rb').read(1); raise SystemExit('read it')\n            except OSError: pass\ndef f(x): return 1", TESTS,
    ),
    "has no syntax": ("def f(x:\n", TESTS),
    "does not have the function": ("g = 1", TESTS),
    "answers wrongly": ("def f(x): return 5", TESTS),
}  # fmt: skip


@pytest.mark.parametrize("name", FORGED)
def test_forgeries_fail(name: str) -> None:
    program, tests = FORGED[name]
    outcome = passes(program, tests, Limits(wall_seconds=1.5, memory_bytes=256 << 20))
    assert outcome.status in ("error", "timeout", "killed"), outcome
    assert "read it" not in outcome.stderr


@pytest.mark.parametrize("name", ["ends before the tests, well", "writes a verdict everywhere", "reads the tests' process"])  # fmt: skip
def test_forgeries_fail_for_everybody(box: Any, name: str) -> None:
    assert box.passes(*FORGED[name]).status == "error"
    assert box.passes(*HONEST["a function"]).status == "ok"


@pytest.mark.parametrize(
    "program",
    [
        "class Evil:\n    __eq__ = lambda s, o: True\ndef f(x): return Evil()",
        "import os, marshal\nos.write(5, b'r')\nd = b''\nwhile len(d) < 8: d += os.read(4, 4096)\nos.write(5, marshal.loads(d[8:])[1])\nos._exit(0)",
    ],
)
def test_what_docs_sandbox_says_can_still_be_forged(program: str) -> None:
    """An object that equals everything, and a program that speaks the harness's part. Not a promise: a record."""
    assert passes(program, TESTS).status == "ok"


def test_why_a_program_ended_is_told_on_a_busy_machine_too() -> None:
    """Ten side by side."""
    with ThreadPoolExecutor(10) as pool:
        outcomes = list(pool.map(lambda _: passes("held = bytearray(8 << 30)", "assert True"), range(40)))
    assert {outcome.status for outcome in outcomes} == {"memory"}


def test_a_failure_says_where_and_why() -> None:
    outcome = passes("def f(x):\n    return {}[x]", "assert f(2) == 4")
    assert "assert f(2) == 4" in outcome.stderr
    assert "KeyError: 2" in outcome.stderr
    assert 'File "program.py", line 2, in f' in outcome.stderr
    assert "the program ended before its tests did" in passes("raise SystemExit(0)", "assert True").stderr
    outcome = passes("1/0", "assert True")
    assert outcome.status == "error"
    assert "ZeroDivisionError" in outcome.stderr
    assert passes("held = bytearray(8 << 30)", "assert True").status == "memory"


def test_tests_that_end_early_have_not_passed() -> None:
    assert passes("def f(x): return 1", "import sys\nsys.exit(0)").status == "error"
    assert passes("def f(x): return 1", "import os\nos._exit(0)").status == "error"


def test_the_program_prints_where_its_tests_do() -> None:
    assert passes("print('one')\ndef f(): print('two')", "f()\nprint('three')").status == "ok"
