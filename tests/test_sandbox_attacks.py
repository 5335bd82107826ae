"""Hostile programs: each is contained, none gets more than the values it could have returned."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from resd.sandbox import CallResult, Limits, SandboxUnavailable, make_sandbox
from resd.sandbox import process as process_module

try:
    STRICT = make_sandbox("strict", Limits(seconds=10, cpu_seconds=1, memory_mb=256))
except SandboxUnavailable as error:
    if not re.search("Landlock|seccomp|Linux", str(error)):
        raise  # it is the sandbox that is broken, not the machine that lacks something
    pytest.skip(str(error), allow_module_level=True)


def call(source: str, limits: Limits | None = None, **names: object) -> CallResult:
    for name, value in names.items():
        source = source.replace(name, str(value))
    return STRICT.call(source, "f", [[1]], limits)


# Each defines f, which returns what it got hold of. EPERM and EACCES are errors, so any value at
# all means that the attack went through.
REFUSED = {
    "read passwd": "def f(x): return open('/etc/passwd').read()",
    "read home": "import os\ndef f(x): return os.listdir('/root') + os.listdir('/home')",
    "read the repository": "def f(x): return open('REPO/README.md').read()",
    "read the run directory": "def f(x): return open('CANARY').read()",
    "parent's environment": "def f(x): return open('/proc/PARENT/environ').read()",
    "parent's memory": "def f(x): return len(open('/proc/PARENT/mem', 'rb').read(1))",
    "parent's maps": "def f(x): return open('/proc/PARENT/maps').read()",
    "list processes": "import os\ndef f(x): return os.listdir('/proc')",
    "own memory": "def f(x): return open('/proc/self/mem', 'rb').name",
    "through the root link": "def f(x): return open('/proc/self/root/etc/passwd').read()",
    "parent's files": "def f(x): return open('/proc/PARENT/fd/0').read()",
    "installed packages": "import os, sys\n"
    "def f(x):\n    place = os.path.join(os.path.dirname(os.__file__), 'site-packages')\n"
    "    for folder, _, files in os.walk(place):\n"
    "        for name in files: return open(os.path.join(folder, name)).read()\n"
    "    raise PermissionError('nothing is there')",
    "terminal": "def f(x): return open('/dev/tty').name",
    "write here": "def f(x): return open('x', 'w').write('y')",
    "write to tmp": "def f(x): return open('/tmp/resd-attack', 'w').write('y')",
    "write to shm": "def f(x): return open('/dev/shm/resd-attack', 'w').write('y')",
    "overwrite the canary": "def f(x): return open('CANARY', 'w').write('y')",
    "remove the canary": "import os\ndef f(x): return os.remove('CANARY')",
    "symlink": "import os\ndef f(x): os.symlink('/etc/passwd', 'p'); return open('p').read()",
    "hard link": "import os\ndef f(x): os.link('CANARY', 'p'); return open('p').read()",
    "make a folder": "import os\ndef f(x): return os.mkdir('d')",
    "socket": "import socket\ndef f(x): return socket.socket().fileno()",
    "unix socket": "import socket\ndef f(x): return socket.socket(socket.AF_UNIX).fileno()",
    "netlink socket": "import socket\ndef f(x): return socket.socket(socket.AF_NETLINK).fileno()",
    "socket pair": "import socket\ndef f(x): return len(socket.socketpair())",
    "fork": "import os\ndef f(x):\n    for i in range(5): os.fork()\n    return 1",
    "spawn": "import os\ndef f(x): return os.posix_spawn('/bin/true', ['true'], {})",
    "subprocess": "import subprocess\ndef f(x): return subprocess.run(['true']).returncode",
    "exec": "import os\ndef f(x): return os.execv('/bin/echo', ['echo', '{\"values\": [1]}'])",
    "threads": "import threading\ndef f(x): threading.Thread(target=print).start(); return 1",
    "processes": "import multiprocessing as m\ndef f(x): return m.Process(target=print).start()",
    "signal the parent": "import os\ndef f(x): return os.kill(PARENT, 0) or 1",
    "signal the canary": "import os\ndef f(x): return os.kill(VICTIM, 9) or 1",
    "signal the group": "import os\ndef f(x): return os.killpg(0, 0) or 1",
    "raise limits": "import resource as r\n"
    "def f(x): return r.setrlimit(r.RLIMIT_AS, (-1, -1)) or 1",
    "lift the CPU limit": "import resource as r\n"
    "def f(x): return r.setrlimit(r.RLIMIT_CPU, (-1, -1)) or 1",
    "change user": "import os\ndef f(x): return os.setuid(1000) or 1",
    "new session": "import os\ndef f(x): return os.setsid()",
    "async signals": "import fcntl\ndef f(x): return fcntl.fcntl(1, fcntl.F_SETOWN, PARENT) or 1",
    "terminal input": "import fcntl\ndef f(x): return fcntl.ioctl(0, 0x5412, b'x')",
    "chroot": "import os\ndef f(x): return os.chroot('.') or 1",
}


@pytest.fixture(scope="module")
def victim() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"])
    yield process
    alive = process.poll() is None
    process.kill()
    process.wait()
    assert alive


@pytest.mark.parametrize("attack", REFUSED)
def test_an_attack_is_refused(attack: str, tmp_path: Path, victim: subprocess.Popen[bytes]) -> None:
    canary = tmp_path / "canary"
    canary.write_text("alive")
    names = {"CANARY": canary, "PARENT": os.getpid(), "VICTIM": victim.pid}
    result = call(REFUSED[attack], REPO=Path(__file__).parents[1], **names)
    assert result.values is None
    assert result.failure == "exception", result
    assert canary.read_text() == "alive"
    assert victim.poll() is None
    assert not Path("/tmp/resd-attack").exists()
    assert not Path("/dev/shm/resd-attack").exists()


# By name, x86_64 and aarch64 number, arguments: through libc's syscall(), which raises nothing.
RAW = {
    "socket": (41, 198, "2, 1, 0"),
    "clone": (56, 220, "17, 0, 0, 0, 0"),
    "kill": (62, 129, "VICTIM, 9"),
    "ptrace": (101, 117, "16, PARENT, 0, 0"),
    "process_vm_readv": (310, 270, "PARENT, 0, 0, 0, 0, 0"),
    "process_vm_writev": (311, 271, "PARENT, 0, 0, 0, 0, 0"),
    "prctl dumpable": (157, 167, "4, 1, 0, 0, 0"),
    "memfd_create": (319, 279, "b'x', 0"),
    "io_uring_setup": (425, 425, "1, 0"),
    "bpf": (321, 280, "0, 0, 0"),
    "keyctl": (250, 219, "0, 0"),
    "userfaultfd": (323, 282, "0"),
    "perf_event_open": (298, 241, "0, 0, -1, -1, 0"),
    "unshare": (272, 97, "0x10000000"),
    "setns": (308, 268, "0, 0"),
    "mount": (165, 40, "0, 0, 0, 0, 0"),
    "pidfd_open": (434, 434, "PARENT, 0"),
    "tgkill": (234, 131, "VICTIM, VICTIM, 9"),
    "setrlimit": (160, 164, "0, 0"),
    "execve": (59, 221, "b'/bin/true', 0, 0"),
}


@pytest.mark.parametrize("name", RAW)
def test_a_raw_system_call_is_refused(name: str, victim: subprocess.Popen[bytes]) -> None:
    x86, arm, arguments = RAW[name]
    number = x86 if os.uname().machine == "x86_64" else arm
    source = f"""
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
def f(x):
    return [libc.syscall({number}, {arguments}), ctypes.get_errno()]
"""
    result = call(source, VICTIM=victim.pid, PARENT=os.getpid())
    assert result.values in (([-1, 1],), None), result  # EPERM, or not even ctypes works
    assert victim.poll() is None


# The kinds of failure that each may end in; never values.
FAILS = {
    "list bomb": ("def f(x): return len([0] * 10**10)", {"memory"}),
    "bytes bomb": ("def f(x):\n    a = []\n    while 1: a.append(bytes(10**7))", {"memory"}),
    "mmap bomb": ("import mmap\ndef f(x): return len(mmap.mmap(-1, 10**10))", {"exception"}),
    "nested source": ("def f(x): return eval('(' * 10**5)", {"exception", "memory", "killed"}),
    "recursion": ("def f(x): return f(x)", {"exception"}),
    "endless": ("def f(x):\n    while 1: pass", {"timeout"}),
    "endless at import": ("while 1: pass", {"timeout"}),
    "ignores signals": (
        "import signal\nfor s in range(1, 65):\n    try: signal.signal(s, signal.SIG_IGN)\n"
        "    except Exception: pass\ndef f(x):\n    while 1: pass",
        {"timeout"},
    ),
    "endless in C": ("def f(x): return len(str(7 ** 10**8))", {"timeout", "exception", "memory"}),
    "endless sum": ("def f(x): return sum(range(10**12))", {"timeout"}),
    "endless pattern": (
        "import re\ndef f(x): return re.match('(a+)+$', 'a' * 60 + 'b')",
        {"timeout"},
    ),
    "catches everything": (
        "def f(x):\n    while 1:\n        try: f(x)\n        except BaseException: pass",
        {"timeout", "killed"},
    ),
    "exit": ("import os\ndef f(x): os._exit(0)", {"exit"}),
    "exit at import": ("import os; os._exit(0)", {"exit"}),
    "sys.exit": ("import sys\ndef f(x): sys.exit(0)", {"exit"}),
    "abort": ("import os\ndef f(x): os.abort()", {"killed", "exit"}),
    "crash": ("import ctypes\ndef f(x): return ctypes.string_at(0)", {"killed", "exception"}),
    "flood of stdout": ("def f(x):\n    while 1: print('x' * 10000)", {"output"}),
    "flood of stderr": ("import os\ndef f(x):\n    while 1: os.write(2, b'x' * 10000)", {"output"}),
    "flood of every channel": (
        "import os\ndef f(x):\n    while 1:\n        for d in range(64):\n"
        "            try: os.write(d, b'x' * 1000)\n            except OSError: pass",
        {"output"},
    ),
    "huge answer": ("def f(x): return 'x' * 10**6", {"output"}),
    "float subclass": (
        "class F(float):\n    def __le__(s, o): return True\ndef f(x): return F(1)",
        {"bad_value"},
    ),
    "int subclass": ("class I(int): pass\ndef f(x): return [I(1)]", {"bad_value"}),
    "list subclass": ("class L(list): pass\ndef f(x): return L([1])", {"bad_value"}),
    "class lie": (
        "class C:\n    @property\n    def __class__(self): return float\ndef f(x): return C()",
        {"bad_value"},
    ),
    "a list in itself": ("def f(x):\n    a = []\n    a.append(a)\n    return a", {"bad_value"}),
    "NaN": ("def f(x): return float('nan')", {"bad_value"}),
    "infinity": ("def f(x): return [1e999]", {"bad_value"}),
    "huge integer": ("def f(x): return 10**400", {"bad_value"}),
    "object": ("def f(x): return object()", {"bad_value"}),
    "no function": ("g = 1", {"no_function"}),
    "forged on stdout": (
        "import os\nprint('{\"values\": [1]}', flush=True); os._exit(0)",
        {"exit"},
    ),
    "forged verdict": (
        "import os\nfor d in range(3, 1024):\n"
        '    try: os.write(d, b\'{"values": [1], "passed": true}\')\n'
        "    except OSError: pass\nos._exit(0)",
        {"protocol"},
    ),
    "forged with NaN": (
        "import os\nfor d in range(3, 1024):\n    try: os.write(d, b'{\"values\": [NaN]}')\n"
        "    except OSError: pass\nos._exit(0)",
        {"protocol"},
    ),
    "forged too many": (
        "import os\nfor d in range(3, 1024):\n    try: os.write(d, b'{\"values\": [1, 1]}')\n"
        "    except OSError: pass\nos._exit(0)",
        {"protocol"},
    ),
    "answers twice": (
        "import os\ndef f(x):\n    for d in range(3, 1024):\n"
        "        try: os.write(d, b'{\"values\": [1]}')\n        except OSError: pass\n"
        "    return 2",
        {"protocol"},
    ),
    "closes its channels": (
        "import os\ndef f(x): os.closerange(0, 64); return 1",
        {"exit", "killed"},
    ),
    "closes its channels and goes on": (
        "import os\ndef f(x):\n    os.closerange(0, 64)\n    while 1: pass",
        {"timeout"},
    ),
    "replaces json": (
        "import sys, json\njson.dumps = lambda *a, **k: 'x'\nsys.modules['json'] = None\n"
        "def f(x): return float('nan')",
        {"bad_value"},
    ),
}


@pytest.mark.parametrize("attack", FAILS)
def test_an_attack_fails(attack: str) -> None:
    source, kinds = FAILS[attack]
    result = call(source)
    assert result.values is None
    assert result.failure in kinds, result
    assert len(result.message) <= 600
    assert "\n" not in result.message


def test_a_forged_answer_is_only_an_answer() -> None:
    forge = "import os\nfor d in range(3, 1024):\n    try: os.write(d, b'{\"values\": [1]}')\n"
    result = call(f"{forge}    except OSError: pass\nos._exit(0)")
    assert result.values == (1,)  # what it could have returned anyway


def test_there_is_nothing_to_find_in_the_child() -> None:
    source = """
import gc, os, sys
def f(x):
    frames, frame = [], sys._getframe()
    while frame: frames.append(sorted(map(str, frame.f_locals))); frame = frame.f_back
    texts = [o for o in gc.get_objects() if isinstance(o, dict) and "expected" in o]
    return [dict(os.environ), [m for m in sys.modules if m.startswith("resd")], len(texts)]
"""
    os.environ["RESD_SECRET"] = "secret"
    try:
        result = call(source)
    finally:
        del os.environ["RESD_SECRET"]
    assert result.values is not None
    environment, modules, secrets = result.values[0]
    assert "RESD_SECRET" not in environment
    assert "HOME" not in environment
    assert modules == []
    assert secrets == 0


@pytest.mark.parametrize("late", ["import atexit; atexit.register(print, 'late')", ""])
def test_nothing_runs_after_the_answer(late: str) -> None:
    dying = "class D:\n    def __del__(self): print('late')\nd = D()"
    result = call(f"{late}\n{dying}\ndef f(x): return 1")
    assert result.values == (1,)
    assert result.output == ""


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    before = set(os.listdir("/proc/self/fd"))
    for _ in range(20):
        call("def f(x): return 1")
    assert len(set(os.listdir("/proc/self/fd"))) == len(before)
    mine = subprocess.run(
        ["ps", "-o", "stat=", "--ppid", str(os.getpid())], capture_output=True, text=True
    )
    assert "Z" not in mine.stdout


def test_without_protection_a_leftover_process_is_killed() -> None:
    sandbox = make_sandbox("none", Limits(seconds=5))
    source = """
import os, time
def f(x):
    child = os.fork()
    if child == 0:
        time.sleep(600)
    return child
"""
    result = sandbox.call(source, "f", [[1]])
    if result.values is None:
        return  # RLIMIT_NPROC stopped it: this is not root
    child = int(result.values[0])
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        state = Path(f"/proc/{child}/stat")
        if not state.exists() or state.read_text().split()[2] == "Z":
            return
        time.sleep(0.05)
    raise AssertionError("the child's child lives on")


def test_honest_programs_compute() -> None:
    imports = "import math, json, random, itertools, functools, collections, re, heapq, bisect\n"
    more = "import dataclasses, typing, fractions, decimal, statistics, cmath, datetime, enum\n"
    result = STRICT.call(
        f"{imports}{more}def f(x, y): return [math.hypot(x, y)]", "f", [[3, 4], [6, 8]]
    )
    assert result.values == ([5.0], [10.0])
    result = call("def f(x):\n    print('on the way')\n    return {'a': [1, None, True, 'b']}")
    assert result.values == ({"a": [1, None, True, "b"]},)
    assert result.output == "on the way\n"


def test_errors_name_the_line() -> None:
    result = call("def g(x):\n    return 1 / 0\n\ndef f(x):\n    return g(x)")
    assert (result.failure, result.line, result.call) == ("exception", 2, 0)
    assert result.message == "ZeroDivisionError: division by zero"
    assert call("def f(x)\n    return 1").line == 1
    assert "0x..." in call("def f(x): raise ValueError(object())").message


def test_calls_run_in_parallel_and_agree() -> None:
    source = "def f(x): return [sum(range(x)), str(set('abcdef'))]"
    wanted = STRICT.call(source, "f", [[1000]]).values
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: STRICT.call(source, "f", [[1000]]).values, range(24)))
    assert wanted is not None
    assert [v and v[0][0] for v in found] == [499500] * 24


def test_a_machine_without_protection_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = CallResult(None, "unsupported", "Landlock (Linux 5.13 or newer)")
    monkeypatch.setattr(process_module.ProcessSandbox, "call", lambda *a, **k: missing)
    process_module._probe.cache_clear()
    try:
        with pytest.raises(SandboxUnavailable, match=r"it lacks Landlock.*sandbox to none"):
            make_sandbox("strict")
        leaky = CallResult((["read", "fork"],))
        monkeypatch.setattr(process_module.ProcessSandbox, "call", lambda *a, **k: leaky)
        process_module._probe.cache_clear()
        with pytest.raises(SandboxUnavailable, match="a program could read, fork"):
            make_sandbox("strict")
    finally:
        process_module._probe.cache_clear()
