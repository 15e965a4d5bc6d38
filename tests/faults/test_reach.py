"""What a decoder process can reach once a file has taken it over: tried call by call."""

from __future__ import annotations

import errno
import json
import os
import platform
import re
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pyseccomp
import pytest

from processors import DecodeError
from processors.sandbox import Decoder
from processors.sandbox.lockdown import CALL_FILTER
from tests.faults.system_calls import HERE, attempts, numbered

ROOT = Path(__file__).parents[2]
SECRET = "patchflow-secret-49c1"
SECRETS = (
    *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"),
    *("RAY_AUTH_TOKEN", "RAY_ADDRESS", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY"),
    *("GOOGLE_APPLICATION_CREDENTIALS", "AZURE_STORAGE_KEY", "GITHUB_TOKEN", "SSH_AUTH_SOCK"),
    *("HTTPS_PROXY", "DATABASE_URL", "KUBECONFIG", "HOME", "USER", "LD_PRELOAD_", "PYTHONSTARTUP"),
)
VARIABLES = {
    *("PATH", "LANG", "LANGUAGE", "LC_CTYPE", "TZ", "LD_LIBRARY_PATH", "GLIBC_TUNABLES"),
    *("PYTHONHOME", "PYTHONPATH", "PYTHONSAFEPATH", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"),
}

# All that is left with the filter: memory without code, messages on the one socket, time, an end.
ALLOWED = {
    *("brk", "madvise", "mremap", "munmap", "futex", "sched_getaffinity", "sched_yield"),
    *("close", "fstat", "lseek", "read", "recvfrom", "sendto", "write"),
    *("clock_getres", "clock_gettime", "clock_nanosleep", "gettimeofday", "nanosleep"),
    *("getpid", "getrandom", "gettid", "restart_syscall"),
    *("rt_sigaction", "rt_sigprocmask", "sigaltstack"),
}
ENDS = ("exit", "exit_group", "rt_sigreturn")
# Uprobes' ways back into the kernel, which it lets through every filter: they do nothing for whom
# nobody debugs, or end him.
UPROBES = (335, 336)

# All that is left without the filter, to root as to others.
LEFT = {
    # Files by their names: to look at and to mark, never to open.
    *("stat", "lstat", "statfs", "newfstatat", "statx", "faccessat", "readlinkat", "getcwd"),
    *("name_to_handle_at", "chdir", "fchmodat", "fchownat", "utimensat", "setxattr"),
    # Memory of System V, and keys that the kernel keeps for the user.
    *("shmget", "msgget", "semget", "add_key", "request_key", "keyctl"),
    # Processes of its own, and the order in which the user's others have their turns.
    *("fork", "clone", "kill all of the group", "getpgid"),
    *("prlimit64 of another", "sched_setaffinity", "setpriority", "ioprio_set"),
    # Itself: its own code, its own socket, the end of two measures, and a namespace of its own.
    *("mmap of code", "mprotect to code", "prctl to be open", "prctl to outlive", "seccomp"),
    *("fcntl to own", "ioctl", "setsockopt", "personality", "setuid", "unshare"),
    *("unshare of mounts", "uname", "sysinfo"),
}
# And where there is no Landlock either, or, for signals, one of before Linux 6.12.
LEFT_BARE = LEFT | {
    *("mkdirat", "unlinkat a folder", "mknodat", "unlinkat a node", "symlinkat"),
    *("unlinkat a link", "linkat", "renameat2", "unlinkat", "unlinkat another", "truncate"),
    *("kill", "tgkill", "rt_sigqueueinfo"),
}


class ReachingDecoder(Decoder):
    _template_module = "tests.faults.reaching_template"


class UnfilteredDecoder(Decoder):
    _template_module = "tests.faults.unfiltered_reaching_template"


class BareDecoder(Decoder):
    _template_module = "tests.faults.bare_reaching_template"


def number(call: str) -> int:
    return int(pyseccomp.resolve_syscall(pyseccomp.system_arch(), call))


def ask(decoder: Decoder, **asked: Any) -> Any:
    """What a child says came of what it was told to try."""
    with decoder.submit(json.dumps({"fstat": number("fstat"), **asked}).encode()) as decoding:
        (frame,) = decoding.frames()
        return json.loads(frame.tobytes())


@pytest.fixture(scope="module")
def decoder() -> Iterator[Decoder]:
    with pytest.MonkeyPatch.context() as patch:
        for name in SECRETS:
            patch.setenv(name, f"{SECRET}-{name}")
        with ReachingDecoder() as decoder:
            yield decoder


def processes(decoder: Decoder) -> list[psutil.Process]:
    """The decoder process and its template."""
    ask(decoder)
    assert decoder._supervisor.child is not None
    child = psutil.Process(decoder._supervisor.child.pid)
    template = child.parent()
    assert template is not None
    return [child, template]


def test_every_attempt_is_denied(decoder: Decoder) -> None:
    assert set(decoder.enforced.values()) == {True}
    calls = numbered(attempts(os.getpid()))
    assert len(calls) > 200
    found = ask(decoder, calls=calls)["calls"]
    # The files are mapped from a descriptor that cannot write, which is not the filter's doing.
    assert found.pop("mprotect of the files") == errno.EACCES
    assert {name: errno.errorcode.get(e) for name, e in found.items() if e != errno.EPERM} == {}


def test_no_other_number_gets_past_the_filter(decoder: Decoder) -> None:
    """Of all that kernels have and some that they may get; with arguments that do nothing."""
    left_out = {*UPROBES, *map(number, ENDS)}
    found = ask(decoder, sweep=[each for each in range(700) if each not in left_out])["sweep"]
    passed = {int(each) for each, e in found.items() if e != errno.EPERM}
    assert passed == {number(call) for call in ALLOWED}


@pytest.mark.skipif(platform.machine() != "x86_64", reason="other ways in are x86-64's")
def test_other_ways_into_the_kernel_end_the_process(decoder: Decoder) -> None:
    x32 = {"openat": [0x40000000 | number("openat"), *[0] * 6]}
    for asked in ({"calls": x32}, {"legacy": True}):
        with pytest.raises(DecodeError) as caught:
            ask(decoder, **asked)
        assert (caught.value.code, caught.value.attempts) == ("decoder_crashed", 2)
        assert re.fullmatch("the decoder died of SIG(SYS|SEGV)", caught.value.message)


def test_what_is_allowed_is_allowed_to_itself_only(decoder: Decoder) -> None:
    """What the conditions on arguments let through, and by how much."""
    child = processes(decoder)[0].pid
    page = 4096
    calls = {
        "mmap of memory": ("mmap", [0, page, 3, 0x22, -1]),
        "prlimit64 of its own": ("prlimit64", [0, 7, 0, "room"]),
        "tgkill of itself": ("tgkill", [child, child, 0]),
    }
    assert ask(decoder, calls=numbered(calls))["calls"] == dict.fromkeys(calls, 0)


def test_it_holds_one_socket_and_an_environment_without_secrets(decoder: Decoder) -> None:
    answer = ask(decoder)
    assert answer["descriptors"] == [0, 1, 2, 3]
    names = {name for name in answer["environment"] if not name.startswith("LC_")}
    assert names <= VARIABLES
    assert SECRET not in str(answer["environment"])


@pytest.mark.skipif(os.geteuid() != 0, reason="only root looks into a closed process")
def test_nothing_of_its_parents_secrets_is_anywhere_in_it_or_its_template(decoder: Decoder) -> None:
    for process in processes(decoder):
        folder = Path(f"/proc/{process.pid}")
        for name in ("environ", "cmdline"):
            text = (folder / name).read_bytes()
            assert text
            assert SECRET.encode() not in text
        held = memory(process.pid)
        assert b"PYTHONSAFEPATH=1" in held
        assert SECRET.encode() not in held
    child = Path(f"/proc/{processes(decoder)[0].pid}/fd")
    kinds = {int(fd.name): stat.S_IFMT(fd.stat().st_mode) for fd in child.iterdir()}
    assert kinds == {0: stat.S_IFCHR, 1: stat.S_IFCHR, 2: stat.S_IFCHR, 3: stat.S_IFSOCK}
    assert {(child / str(fd)).readlink() for fd in range(3)} == {Path("/dev/null")}


def memory(pid: int) -> bytes:
    """What a process holds in memory of its own that can be written."""
    found = []
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as file:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            area, access, _, _, inode = line.split()[:5]
            if access.startswith("rw-p") and inode == "0":
                start, end = (int(place, 16) for place in area.split("-"))
                file.seek(start)
                found.append(file.read(end - start))
    return b"".join(found)


@pytest.mark.parametrize(
    ("decoder", "missing", "left"),
    [
        (UnfilteredDecoder, {CALL_FILTER}, LEFT),
        (BareDecoder, {CALL_FILTER, "no files by name (Landlock)"}, LEFT_BARE),
    ],
)
def test_without_the_filter_nothing_is_left_but_what_is_told(
    decoder: type[Decoder], missing: set[str], left: set[str]
) -> None:
    """In a process of its own, which that decoder closes to others."""
    script = f"""
import json, os
from tests.faults.system_calls import attempts, numbered
from tests.faults.test_reach import {decoder.__name__}, ask
with {decoder.__name__}() as decoder:
    answer = ask(decoder, calls=numbered(attempts(os.getpid())))
    print(json.dumps(answer | {{"enforced": decoder.enforced}}))
"""
    Path(HERE).touch()
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert Path(HERE).exists() == ("unlinkat" not in left)
    Path(HERE).unlink(missing_ok=True)
    answer = json.loads(done.stdout)
    assert {name for name, is_done in answer["enforced"].items() if not is_done} == missing
    assert answer["descriptors"] == [0, 1, 2, 3]
    succeeded = {name for name, e in answer["calls"].items() if e == 0}
    assert succeeded <= left, succeeded - left
    assert {"fchmodat", "shmget"} <= succeeded  # What was tried could have succeeded.
