"""The program that runs in the child: lock the process, then execute the candidate, then answer.

It imports nothing of the package: `python -I -S -B runner.py ANSWER_FD strict|none CPU MEMORY
PARENT`. The request comes on stdin as JSON; the answer goes to ANSWER_FD as JSON, after one byte
that says "locked". The parent sends the request only then: what the machine lacks is said before
there is a candidate that could say it. From then on the candidate owns the process: the parent
treats whatever comes back as hostile.
"""

import contextlib
import ctypes
import json
import math
import os
import resource
import struct
import sys
import types

# What computing and importing from the standard library needs; everything else gets EPERM. Not in
# it: anything that makes a process or thread, sends a signal, opens a socket, or changes the
# process (clone, execve, kill, socket, ptrace, prctl, setrlimit, ioctl, fcntl, mount, bpf, ...).
_CALLS = {
    "x86_64": (
        0xC000003E,
        # read write open close stat fstat lstat poll lseek mmap mprotect munmap brk
        (*range(13), 13, 14, 15),  # rt_sigaction rt_sigprocmask rt_sigreturn
        # pread64 readv writev access select sched_yield mremap madvise nanosleep getpid
        (17, 19, 20, 21, 23, 24, 25, 28, 35, 39),
        # exit uname getcwd readlink gettimeofday getrusage sysinfo times getuid getgid geteuid
        (60, 63, 79, 89, 96, 98, 99, 100, 102, 104, 107),
        # getegid sigaltstack gettid futex sched_getaffinity getdents64 restart_syscall
        (108, 131, 186, 202, 204, 217, 219),
        # clock_gettime clock_getres clock_nanosleep exit_group openat newfstatat readlinkat
        (228, 229, 230, 231, 257, 262, 267),
        # faccessat set_robust_list getrandom statx rseq faccessat2
        (269, 273, 318, 332, 334, 439),
    ),
    "aarch64": (
        0xC00000B7,
        # getcwd faccessat openat close getdents64 lseek read write readv writev pread64
        (17, 48, 56, 57, 61, 62, 63, 64, 65, 66, 67),
        # readlinkat newfstatat fstat exit exit_group futex set_robust_list nanosleep
        (78, 79, 80, 93, 94, 98, 99, 101),
        # clock_gettime clock_getres clock_nanosleep sched_getaffinity sched_yield restart_syscall
        (113, 114, 115, 123, 124, 128),
        # sigaltstack rt_sigaction rt_sigprocmask rt_sigreturn times uname getrusage gettimeofday
        (132, 134, 135, 139, 153, 160, 165, 169),
        # getpid getuid geteuid getgid getegid gettid sysinfo brk munmap mremap mmap mprotect
        (172, 174, 175, 176, 177, 178, 179, 214, 215, 216, 222, 226),
        # madvise getrandom statx rseq faccessat2
        (233, 278, 291, 293, 439),
    ),
}
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_CAPBSET_DROP = 1, 4, 22, 24
_PR_SET_NO_NEW_PRIVS = 38
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446
_READ_FILE, _READ_DIR = 1 << 2, 1 << 3
_CAPSET = {"x86_64": 126, "aarch64": 91}
_NAMESPACES = 0x10000000 | 0x08000000 | 0x04000000 | 0x40000000  # user, IPC, UTS, network
_PACKAGES = ("site-packages", "dist-packages")
_MAX_DEPTH, _MAX_INT = 50, 2**53


class _MissingError(Exception):
    """A protection that this machine does not have."""


def _check(result, what):
    if result < 0:
        raise _MissingError(f"{what} ({os.strerror(ctypes.get_errno())})")
    return result


def _lock(libc, machine):
    """Take away all that computing does not need.

    Raises:
        _MissingError: the machine lacks a protection.
    """
    if not sys.platform.startswith("linux") or machine not in _CALLS:
        raise _MissingError(f"Linux on x86_64 or aarch64, this is {sys.platform} on {machine}")
    # Where the kernel permits; what follows does not rest on it.
    libc.unshare(_NAMESPACES)
    _check(libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    _landlock(libc)
    for capability in range(64):
        libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
    header, none = struct.pack("Ii", 0x20080522, 0), bytes(24)
    _check(libc.syscall(_CAPSET[machine], header, none), "dropping capabilities")
    _check(libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0), "PR_SET_DUMPABLE")
    _seccomp(libc, *_CALLS[machine])


def _landlock(libc):
    """The standard library may be read; nothing else, no TCP, no signals to others."""
    version = _check(libc.syscall(_LANDLOCK_CREATE, None, 0, 1), "Landlock (Linux 5.13 or newer)")
    rights = (1 << {1: 13, 2: 14, 3: 15, 4: 15}.get(version, 16)) - 1
    ports = 3 if version >= 4 else 0
    scopes = 3 if version >= 6 else 0
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    attributes = struct.pack("QQQ", rights, ports, scopes)[:size]
    rules = _check(libc.syscall(_LANDLOCK_CREATE, attributes, size, 0), "Landlock rules")
    for place in sys.path:
        try:
            names = os.listdir(place)
            _allow(libc, rules, place, _READ_DIR)
        except OSError:
            continue  # python311.zip, which is rarely there
        for name in names:
            file = os.path.join(place, name)
            # Installed packages lie inside: this one among them, with the answers it can compute.
            # A link to a directory could lead there too, or anywhere.
            if name in _PACKAGES or (os.path.islink(file) and os.path.isdir(file)):
                continue
            with contextlib.suppress(OSError):  # a link to nothing, a file of another user
                _allow(libc, rules, file, _READ_FILE)
    _check(libc.syscall(_LANDLOCK_RESTRICT, rules, 0), "Landlock")
    os.close(rules)


def _allow(libc, rules, place, right):
    handle = os.open(place, os.O_PATH)
    try:
        rule = struct.pack("=Qi", right, handle)
        _check(libc.syscall(_LANDLOCK_ADD, rules, 1, rule, 0), "Landlock rules")
    finally:
        os.close(handle)


def _seccomp(libc, architecture, *groups):
    numbers = [number for group in groups for number in group]
    allow, refuse, kill = 0x7FFF0000, 0x00050001, 0x80000000
    steps = [(0x20, 0, 0, 4), (0x15, 1, 0, architecture), (0x06, 0, 0, kill), (0x20, 0, 0, 0)]
    for i, number in enumerate(numbers):
        steps.append((0x15, len(numbers) - i, 0, number))
    steps += [(0x06, 0, 0, refuse), (0x06, 0, 0, allow)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    program = struct.pack("HxxxxxxQ", len(steps), ctypes.addressof(code))
    _check(libc.prctl(_PR_SET_SECCOMP, 2, program, 0, 0), "seccomp filters")


def _limit(cpu, memory):
    room = memory << 20
    for name, value in (("CPU", cpu), ("AS", room), ("FSIZE", 0), ("CORE", 0), ("NPROC", 0)):
        kind = getattr(resource, f"RLIMIT_{name}", None)
        if kind is not None:
            try:
                resource.setrlimit(kind, (value, value))
            except (ValueError, OSError):
                if name != "AS":  # macOS knows none
                    raise
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))


def _plain(value, depth=0):
    """A value of exactly the types of JSON, all numbers finite and small.

    Raises:
        ValueError: it is something else.
    """
    kind = type(value)
    if depth > _MAX_DEPTH:
        raise ValueError("it is nested too deeply")
    if value is None or kind is bool or kind is str:
        return value
    if kind is int and -_MAX_INT <= value <= _MAX_INT:
        return value
    if kind is float and math.isfinite(value):
        return value
    if kind is list or kind is tuple:
        return [_plain(item, depth + 1) for item in value]
    if kind is dict:
        if not all(type(key) is str for key in value):
            raise ValueError("a key is no string")
        return {key: _plain(item, depth + 1) for key, item in value.items()}
    said = "a number that is not finite or too large" if kind in (int, float) else kind.__name__
    raise ValueError(f"it holds {said}")


def _describe(error, failure, call):
    line = error.lineno if isinstance(error, SyntaxError) else None
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "<answer>":
            line = trace.tb_lineno
        trace = trace.tb_next
    if isinstance(error, MemoryError):
        failure = "memory"
    elif isinstance(error, SystemExit):
        failure = "exit"
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    message = f"{type(error).__name__}: {text}"[:500]
    return {"failure": failure, "message": message, "line": line, "call": call}


def _execute(request):
    """The answer to a request; whatever the candidate raises becomes a failure."""
    call = None
    failure = "syntax"
    try:
        code = compile(request["source"], "<answer>", "exec", dont_inherit=True)
        failure = "exception"
        module = types.ModuleType("answer")
        sys.modules["answer"] = module
        exec(code, module.__dict__)
        function = module.__dict__.get(request["function"])
        if not callable(function):
            message = f"the program defines no function {request['function']}"
            return {"failure": "no_function", "message": message, "line": None, "call": None}
        values = []
        for call, arguments in enumerate(request["arguments"]):
            value = function(*arguments)
            try:
                values.append(_plain(value))
            except (ValueError, RecursionError) as error:
                message = f"{request['function']} returned no plain JSON value: {error}"
                return {"failure": "bad_value", "message": message, "line": None, "call": call}
        return {"values": values}
    except BaseException as error:
        return _describe(error, failure, call)


def _main():
    answer, kind, cpu, memory, parent = int(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:])
    dumps, write, leave = json.dumps, os.write, os._exit
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if sys.platform.startswith("linux"):
            libc.prctl(_PR_SET_PDEATHSIG, 9, 0, 0, 0)
            if os.getppid() != parent:
                leave(1)  # it died before that
        _limit(cpu, memory)
        if kind == "strict":
            _lock(libc, os.uname().machine)
        write(answer, b"!")
        result = _execute(json.loads(sys.stdin.buffer.read()))
    except _MissingError as error:
        result = {"missing": str(error)}
    try:
        data = dumps(result, allow_nan=False).encode()
        sys.stdout.flush()
    except BaseException:
        data = dumps({"failure": "protocol", "message": "", "line": None, "call": None}).encode()
    while data:
        data = data[write(answer, data) :]
    leave(0)  # no atexit, no __del__, no waiting for anything


if __name__ == "__main__":
    _main()
