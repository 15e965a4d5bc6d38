"""What a decoder process gives up before it sees a file.

Each measure stands alone, and several deny the same thing, so that what one kernel refuses another
measure still covers. The filter of system calls alone would do; where it cannot be had, Landlock
and the limit of descriptors keep files and other processes out of reach.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import resource
import signal
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

CALL_FILTER: Final = "system calls filtered (seccomp)"

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_DUMPABLE: Final = 4
_PR_SET_NO_NEW_PRIVS: Final = 38
_CAPABILITY_VERSION_3: Final = 0x20080522

# Landlock, whose numbers are the same on every machine, and how many ways to use a file by name,
# to use TCP, and to reach other processes each version of it denies.
_CREATE_RULESET: Final = 444
_RESTRICT_SELF: Final = 446
_LANDLOCK_RIGHTS: Final = (
    *((13, 0, 0), (14, 0, 0), (15, 0, 0)),
    *((15, 2, 0), (16, 2, 0), (16, 2, 2)),
)

# Memory, the two ends of a message, time, and an orderly or a violent end; on descriptors that are
# open already. FFmpeg must run without threads, as `clone` is not among them.
_ALLOWED_CALLS: Final = (
    "brk",
    "clock_getres",
    "clock_gettime",
    "clock_nanosleep",
    "close",
    "exit",
    "exit_group",
    "fstat",
    "futex",
    "getpid",
    "getrandom",
    "gettid",
    "gettimeofday",
    "lseek",
    "madvise",
    "mremap",
    "munmap",
    "nanosleep",
    "read",
    "recvfrom",
    "restart_syscall",
    "rt_sigaction",
    "rt_sigprocmask",
    "rt_sigreturn",
    "sched_getaffinity",
    "sched_yield",
    "sendto",
    "sigaltstack",
    "write",
)

_libc = ctypes.CDLL(None, use_errno=True)


def lock_down(memory_bytes: int, *, template: int) -> dict[str, bool]:
    """Gives up, for good, all that decoding does not need.

    Args:
        memory_bytes: Memory that may still be taken beyond what is held now.
        template: The parent process, which this one is not to outlive.

    Returns:
        For every measure, in plain words, whether it is in force here.
    """
    measures: dict[str, Callable[[], None]] = {
        "ends with its template": lambda: _end_with(template),
        "memory limit": lambda: _limit_memory(memory_bytes),
        "no new privileges": lambda: _prctl(_PR_SET_NO_NEW_PRIVS, 1),
        "no files by name (Landlock)": _forbid_files,
        "no new descriptors (files, sockets)": _limit_descriptors,
        "no capabilities": _drop_capabilities,
        "memory closed to other processes": hide_memory,
        CALL_FILTER: _filter_calls,
    }
    return {name: _is_done(measure) for name, measure in measures.items()}


def load_filter() -> None:
    """Loads the library of the filter, where the system has it; a locked down process cannot."""
    with suppress(ImportError, RuntimeError):  # RuntimeError: pyseccomp misses libseccomp.
        import pyseccomp  # noqa: F401, PLC0415 (the parent, which imports this too, has no use for it)


def hide_memory() -> None:
    """Keeps other processes of the same user from this one's memory and environment.

    Raises:
        OSError: If the kernel refuses.
    """
    _prctl(_PR_SET_DUMPABLE, 0)


def offer_to_be_killed() -> None:
    """Has the kernel kill this process and its children first when memory runs out."""
    Path("/proc/self/oom_score_adj").write_text("1000")


def _is_done(measure: Callable[[], None]) -> bool:
    try:
        measure()
    except (OSError, ImportError, RuntimeError):
        return False
    return True


def _end_with(template: int) -> None:
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != template:
        os._exit(1)  # It had ended before.


def _limit_memory(memory_bytes: int) -> None:
    # In pages: all of the address space first, data and stack sixth.
    pages = [int(field) for field in Path("/proc/self/statm").read_text().split()]
    for limit, held in ((resource.RLIMIT_DATA, pages[5]), (resource.RLIMIT_AS, pages[0])):
        _limit(limit, held * mmap.PAGESIZE + memory_bytes)
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_FSIZE, 0)


def _forbid_files() -> None:
    version = _libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), 1)
    _check(min(version, 0))
    rights = _LANDLOCK_RIGHTS[min(version, len(_LANDLOCK_RIGHTS)) - 1]
    denied = struct.pack("=3Q", *((1 << number) - 1 for number in rights))
    ruleset = _libc.syscall(_CREATE_RULESET, denied, ctypes.c_size_t(len(denied)), 0)
    _check(min(ruleset, 0))
    try:
        _check(_libc.syscall(_RESTRICT_SELF, ruleset, 0))
    finally:
        os.close(ruleset)


def _limit_descriptors() -> None:
    # Open ones go on working. Any new one would be numbered at or over the limit.
    _limit(resource.RLIMIT_NOFILE, 0)
    _limit(resource.RLIMIT_NPROC, 0)  # Of no effect on root, whom the filter keeps from forking.


def _limit(kind: int, value: int) -> None:
    hard = resource.getrlimit(kind)[1]
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    resource.setrlimit(kind, (value, value))


def _drop_capabilities() -> None:
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    nothing = (ctypes.c_uint32 * 6)()
    _check(_libc.capset(header, nothing))


def _filter_calls() -> None:
    import pyseccomp  # noqa: PLC0415 (see load_filter)

    allowed = pyseccomp.SyscallFilter(pyseccomp.ERRNO(errno.EPERM))
    for call in _ALLOWED_CALLS:
        allowed.add_rule(pyseccomp.ALLOW, call)
    no_code = pyseccomp.Arg(2, pyseccomp.MASKED_EQ, mmap.PROT_EXEC, 0)
    for call in ("mmap", "mprotect"):
        allowed.add_rule(pyseccomp.ALLOW, call, no_code)
    only_itself = pyseccomp.Arg(0, pyseccomp.EQ, os.getpid())
    allowed.add_rule(pyseccomp.ALLOW, "tgkill", only_itself)  # so that abort() aborts
    of_itself, only_asking = pyseccomp.Arg(0, pyseccomp.EQ, 0), pyseccomp.Arg(2, pyseccomp.EQ, 0)
    allowed.add_rule(pyseccomp.ALLOW, "prlimit64", of_itself, only_asking)
    allowed.load()


def _prctl(option: int, value: int) -> None:
    _check(_libc.prctl(option, ctypes.c_ulong(value), *[ctypes.c_ulong(0)] * 3))


def _check(result: int) -> None:
    if result:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
