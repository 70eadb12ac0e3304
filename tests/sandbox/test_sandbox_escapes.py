# ruff: noqa: E501 (programs as data)
"""Ways out that model-written code could try, as root and as a plain user: each is closed, and the next sample runs.

Most probes print what they got; a probe that cannot fail would be none, so `test_the_probes_find_what_is_open` runs
them without walls.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from blockexpand.sandbox import Limits, run_program

ROOT = Path(__file__).parents[2]
PREFIX = os.path.realpath(sys.base_prefix)

HELPERS = """
import os, sys, ctypes, errno
libc = ctypes.CDLL(None, use_errno=True)
def attempt(function, *arguments):
    try:
        result = function(*arguments)
    except OSError as error:
        return errno.errorcode.get(error.errno, error.errno)
    except ValueError as error:
        return str(error)
    return f"OPEN {result!r:.60}"
def call(number, *arguments):
    ctypes.set_errno(0)
    result = libc.syscall(ctypes.c_long(number), *arguments)
    return f"OPEN {result}" if result >= 0 else errno.errorcode[ctypes.get_errno()]
"""

FILES = {
    "write to /usr": "attempt(open, '/usr/planted', 'w')",
    "write to /etc": "attempt(open, '/etc/planted', 'w')",
    "write to /": "attempt(open, '/planted', 'w')",
    "write to the interpreter": "attempt(open, os.path.join(sys.prefix, 'lib', 'planted.py'), 'w')",
    "write to the sandbox's own code": "attempt(open, '/run/blockexpand/inside/frames.py', 'a')",
    "make the root writable": "attempt(os.chmod, '/usr', 0o777)",
    "read /etc/shadow": "attempt(open, '/etc/shadow')",
    "read /etc/shadow through a link": "(os.symlink('/etc/shadow', 's'), attempt(open, 's'))[1]",
    "read /etc/shadow through ..": "attempt(open, '/proc/self/root/../../etc/shadow')",
    "read the old root": "attempt(os.listdir, '/old')",
    "read /sys": "attempt(os.listdir, '/sys')",
    "read the machine's settings": "attempt(open, '/proc/sys/kernel/hostname')",
    "read the kernel's log": "attempt(open, '/dev/kmsg')",
    "read the disk": "attempt(open, '/dev/vda', 'rb')",
    "make a disk": "attempt(os.mknod, '/tmp/disk', 0o60600, os.makedev(254, 0))",
    "change the root": "attempt(os.chroot, '/tmp')",
    "hard link out": "attempt(os.link, '/usr/bin/env', '/tmp/env')",
    "read process 1's environment": "attempt(lambda: open('/proc/1/environ', 'rb').read())",
    "read process 1's memory": "attempt(open, '/proc/1/mem', 'rb')",
    "see process 1's files": "attempt(os.listdir, '/proc/1/fd')",
    "go through process 1's root": "attempt(os.listdir, '/proc/1/root')",
    "see process 1's folder": "attempt(os.listdir, '/proc/1/cwd')",
}

PROCESSES = {
    "become root": "attempt(os.setuid, 0)",
    "become another group": "attempt(os.setgid, 0)",
    "raise a limit": "attempt(lambda: __import__('resource').setrlimit(7, (9999, 9999)))",
    "be more important": "attempt(os.nice, -5)",
    "stop process 1": "(attempt(os.kill, 1, 19), attempt(os.kill, 1, 9), 'no' if os.path.exists('/proc/1') else 'OPEN')[2]",
}

SOCKETS = {
    name: f"attempt(socket.socket, {family}, {kind})"
    for name, family, kind in [
        ("inet", 2, 1), ("inet, datagrams", 2, 2), ("inet6", 10, 1), ("netlink", 16, 3), ("packet", 17, 3),
        ("vsock", 40, 1), ("raw", 2, 3), ("alg", 38, 5), ("bluetooth", 31, 3),
    ]
}  # fmt: skip

CALLS = {
    "ptrace": (101, 0, 0, 0, 0), "process_vm_readv": (310, 1, 0, 0, 0, 0, 0), "process_vm_writev": (311, 1, 0, 0, 0, 0, 0),
    "unshare user": (272, 0x10000000), "unshare mounts": (272, 0x20000), "setns": (308, 0, 0), "clone user": (56, 0x10000011, 0, 0, 0, 0),
    "mount": (165, 0, 0, 0, 0, 0), "umount": (166, b"/tmp", 2), "pivot_root": (155, b"/", b"/"), "open_tree": (428, -100, b"/", 1),
    "fsopen": (430, b"tmpfs", 0), "keyctl": (250, 0, -3, 1), "add_key": (248, 0, 0, 0, 0, 0), "bpf": (321, 0, 0, 0),
    "perf_event_open": (298, 0, 0, -1, -1, 0), "io_uring_setup": (425, 1, 0), "io_setup": (206, 1, 0), "userfaultfd": (323, 0),
    "memfd_create": (319, b"m", 0), "memfd_secret": (447, 0), "shmget": (29, 0, 4096, 0o1600), "msgget": (68, 0, 0o1600),
    "semget": (64, 0, 1, 0o1600), "mq_open": (240, b"q", 0o102, 0o600, 0), "personality": (135, 0x40000), "pidfd_getfd": (438, 0, 0, 0),
    "kcmp": (312, 1, 1, 0, 0, 0), "name_to_handle_at": (303, -100, b"/", 0, 0, 0), "open_by_handle_at": (304, -100, 0, 0),
    "init_module": (175, 0, 0, b""), "kexec_load": (246, 0, 0, 0, 0), "reboot": (169, 0, 0, 0, 0), "swapon": (167, b"/tmp/x", 0),
    "clock_settime": (227, 0, 0), "sethostname": (170, b"x", 1), "syslog": (103, 3, 0, 0), "seccomp": (317, 0, 0, 0),
    "fanotify_init": (300, 0, 0), "quotactl": (179, 0, 0, 0, 0), "type into the terminal": (16, 0, 0x5412, b"x"),
}  # fmt: skip
NEW_CALLS = {
    "clone3": (435, 0, 0),
    "listmount": (458, 0, 0, 0, 0),
    "a call of the future": (600, 0),
    "x32": (0x40000000 + 39,),
}

LISTS = {
    **{f"file: {name}": code for name, code in FILES.items()},
    **{f"process: {name}": code for name, code in PROCESSES.items()},
    **{f"socket: {name}": code for name, code in SOCKETS.items()},
}
if os.uname().machine == "x86_64":
    LISTS |= {f"call: {name}": f"call{arguments!r}" for name, arguments in CALLS.items()}
    LISTS |= {f"new call: {name}": f"call{arguments!r}" for name, arguments in NEW_CALLS.items()}


def all_of(probes: dict[str, str]) -> str:
    lines = "\n".join(f"print({name!r}, '->', {code})" for name, code in probes.items())
    return f"{HELPERS}\nimport socket\n{lines}\n"


def answers(stdout: str) -> dict[str, str]:
    return dict(line.split(" -> ") for line in stdout.splitlines())


def test_each_way_out_is_closed(box: Any) -> None:
    outcome = box.run_program(all_of(LISTS))
    assert outcome.status == "ok", outcome
    found = answers(outcome.stdout)
    assert found.keys() == LISTS.keys()
    assert {name: answer for name, answer in found.items() if answer.startswith("OPEN")} == {}
    for name, answer in found.items():
        if name.startswith(("call:", "socket:")):
            assert answer == "EPERM", (name, answer)
        if name.startswith("new call:"):
            assert answer == "ENOSYS", (name, answer)


@pytest.mark.skipif(os.geteuid() != 0 or os.uname().machine != "x86_64", reason="root finds most doors open")
def test_the_probes_find_what_is_open() -> None:
    harmless = ("file: read", "socket: ", "call: memfd", "call: shmget", "call: semget", "call: unshare", "file: see")
    probes = {name: code for name, code in LISTS.items() if name.startswith(harmless)}
    outcome = run_program(all_of(probes), unsafe=True)
    found = {name for name, answer in answers(outcome.stdout).items() if answer.startswith("OPEN")}
    assert {"file: read /etc/shadow", "file: read /sys", "socket: inet", "socket: netlink"} <= found
    assert {"call: memfd_create", "call: shmget", "call: unshare user"} <= found


def test_the_repository_and_the_home_folder_are_not_there(box: Any) -> None:
    code = f"import os\nprint(os.path.exists({str(ROOT)!r} + '/pyproject.toml'), os.path.exists('/root/.ssh'), end=' ')"
    code += "\nprint([f for f in (os.listdir('/root') if os.path.exists('/root') else []) if f != '.pyenv'])"
    code += "\nprint(os.path.exists('/home'), sorted(os.listdir('/tmp')))"
    assert box.run_program(code).stdout == "False False []\nFalse []\n"


def test_the_environment_is_empty(box: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_OF_THE_PARENT", "do not tell")
    outcome = box.run_program("import os\nprint(sorted(os.environ))\nprint(open('/proc/self/environ').read())")
    assert "SECRET" not in outcome.stdout
    assert outcome.stdout.startswith("['HOME', 'LANG', 'LC_CTYPE', 'MALLOC_ARENA_MAX'") or "'HOME'" in outcome.stdout


def test_no_other_process_is_in_sight(box: Any) -> None:
    code = "import os\nprint(os.getpid(), os.getppid(), sorted(int(n) for n in os.listdir('/proc') if n.isdigit()))"
    assert box.run_program(code).stdout == "2 1 [1, 2]\n"


def test_the_parent_cannot_be_killed(box: Any) -> None:
    code = f"{HELPERS}\nprint(attempt(os.kill, {os.getpid()}, 9), attempt(os.kill, {os.getpid()}, 0))"
    assert box.run_program(code).stdout == "ESRCH ESRCH\n"
    code = f"{HELPERS}\nprint(*[attempt(os.kill, *a) for a in ((-1, 9), (1, 9), (1, 15), (1, 19), (os.getppid(), 2))])"
    assert box.run_program(code + "\nprint('alone')").stdout.endswith("alone\n")
    assert box.run_program("import os\nos.kill(os.getpid(), 9)").status == "killed"


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[int, str, list[bytes]]]:
    """Who would be reached: a TCP port on loopback and an abstract unix socket."""
    heard: list[bytes] = []
    inet, local = socket.create_server(("127.0.0.1", 0)), socket.socket(socket.AF_UNIX)
    name = f"blockexpand-probe-{os.getpid()}"
    local.bind(f"\0{name}")
    local.listen()

    def listen(server: socket.socket) -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            heard.append(connection.recv(10))

    for server in (inet, local):
        threading.Thread(target=listen, args=(server,), daemon=True).start()
    yield inet.getsockname()[1], name, heard
    for server in (inet, local):
        server.shutdown(socket.SHUT_RDWR)
        server.close()


def test_nobody_is_reached_over_sockets(box: Any, servers: tuple[int, str, list[bytes]]) -> None:
    port, name, heard = servers
    code = f"""{HELPERS}
import socket
def reach(family, address):
    s = socket.socket(family)
    s.connect(address)
    return s.send(b'out')
print(attempt(reach, 2, ('127.0.0.1', {port})), attempt(reach, 1, chr(0) + {name!r}))
a, b = socket.socketpair()
a.send(b'in'); print(b.recv(9))
import asyncio
async def main(): return 7
print(asyncio.run(main()))
"""
    outcome = box.run_program(code)
    assert outcome.stdout == "EPERM ECONNREFUSED\nb'in'\n7\n", outcome
    assert heard == []
    if os.geteuid() == 0:
        unsafe = run_program(code, unsafe=True)
        assert unsafe.stdout.startswith("OPEN 3 OPEN 3"), unsafe
        heard.clear()


def test_the_privileged_program_is_just_a_program(box: Any) -> None:
    code = "import subprocess\nd = subprocess.run(['/usr/bin/su', '-c', 'id'], capture_output=True, text=True)\nprint('uid=0' in d.stdout)"
    assert box.run_program(code).stdout == "False\n"


def processes_named(mark: str) -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if mark.encode() in command:
                found.append(entry.name)
    return found


def test_daemons_go_with_the_program(box: Any) -> None:
    mark = f"daemon-{os.getpid()}-{time.monotonic_ns()}"
    code = textwrap.dedent(f"""
        import os, sys
        for _ in range(3):
            if os.fork() == 0:
                os.setsid()
                if os.fork() == 0:
                    os.execv(sys.executable, [sys.executable, '-S', '-c', 'import time; time.sleep(60)', {mark!r}])
                os._exit(0)
        import time
        def started():
            return sum({mark!r} in open(f'/proc/{{n}}/cmdline').read() for n in os.listdir('/proc') if n.isdigit() and n > '2')
        while started() < 3:
            time.sleep(0.01)
        print('left three')
    """)
    outcome = box.run_program(code)
    assert (outcome.status, outcome.stdout) == ("ok", "left three\n"), outcome
    assert processes_named(mark) == []


def test_a_dead_supervisor_takes_its_sandboxes_along(tmp_path: Path) -> None:
    mark = f"orphan-{os.getpid()}-{time.monotonic_ns()}"
    inner = f"import os, sys; os.execv(sys.executable, [sys.executable, '-c', 'import time; time.sleep(60)', {mark!r}])"
    code = f"from blockexpand.sandbox import Limits, run_program\nrun_program({inner!r}, Limits(wall_seconds=60))"
    environment = {"PYTHONPATH": str(ROOT / "src"), "PATH": os.environ["PATH"]}
    supervisor = subprocess.Popen([sys.executable, "-c", code], env=environment)
    deadline = time.monotonic() + 20
    while not processes_named(f"-c\0import time; time.sleep(60)\0{mark}") and time.monotonic() < deadline:
        time.sleep(0.02)
    assert processes_named(f"-c\0import time; time.sleep(60)\0{mark}")
    supervisor.kill()
    supervisor.wait()
    while processes_named(mark) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert processes_named(mark) == []


def test_the_next_sample_finds_nothing_of_the_last(box: Any) -> None:
    box.run_program("open('/tmp/left', 'w').write('x')\nopen('/dev/shm/left', 'w').write('x')")
    assert box.run_program("import os\nprint(os.listdir('/tmp'), os.listdir('/dev/shm'))").stdout == "[] []\n"


def test_links_lead_nowhere(box: Any, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("told")
    code = f"""
import os
os.symlink({str(tmp_path / "secret")!r}, '/tmp/a')
os.symlink('/tmp/b', '/tmp/b')
for name in ('/tmp/a', '/tmp/b'):
    try: print(open(name).read())
    except OSError as error: print(type(error).__name__)
"""
    assert box.run_program(code).stdout == "FileNotFoundError\nOSError\n"


def test_python_works_as_it_does_outside(box: Any) -> None:
    code = """
import sys, json, subprocess, multiprocessing, tempfile, threading, math
print(sys.stdin.read(), __name__, sys.argv, json.dumps({"a": 1}), math.sqrt(4))
print(subprocess.run(["sh", "-c", "echo shell"], capture_output=True, text=True).stdout, end="")
with tempfile.TemporaryDirectory() as folder: open(folder + "/x", "w").write("x")
def work(x): return x * x
if __name__ == "__main__":
    with multiprocessing.Pool(2) as pool: print(pool.map(work, [1, 2, 3]))
thread = threading.Thread(target=print, args=("thread",)); thread.start(); thread.join()
sys.exit(3)
"""
    outcome = box.run_program(code, stdin="input")
    assert (outcome.status, outcome.exit_code) == ("error", 3), outcome
    assert outcome.stdout == "input __main__ ['program.py'] {\"a\": 1} 2.0\nshell\n[1, 4, 9]\nthread\n"


def test_installed_packages_can_be_imported() -> None:
    outcome = run_program("import numpy\nprint(int(numpy.arange(4).sum()))", Limits(wall_seconds=60, cpu_seconds=60))
    assert outcome.stdout == "6\n", outcome


def test_packages_below_an_empty_folder_can_be_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from blockexpand.sandbox import launch

    assert any(tmp_path.resolve().is_relative_to(folder) for folder in launch._EMPTY_INSIDE)
    tmp_path.chmod(0o755)  # the program's user is another
    (tmp_path / "of_the_environment.py").write_text("value = 7\n")
    monkeypatch.setattr(launch.sysconfig, "get_path", lambda _: str(tmp_path))
    launch._interpreter.cache_clear()
    try:
        outcome = run_program("import of_the_environment as o, os\nprint(o.value, os.listdir('/tmp'))")
    finally:
        launch._interpreter.cache_clear()
    assert outcome.stdout == "7 []\n", outcome
