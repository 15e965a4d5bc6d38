"""What a process that a file took over would try, as raw system calls."""

from __future__ import annotations

import mmap
import resource
import socket
from typing import Any

import pyseccomp

_AT_FDCWD = -100
HERE = "/tmp/patchflow-was-here"
"""A file that is there; what is beside it is not."""
_PASSWD = "/etc/passwd"
_CREATE = 0o101  # O_CREAT | O_WRONLY

SOCKET = 3
FAMILIES = range(1, 46)


def numbered(calls: dict[str, tuple[str, list[Any]]]) -> dict[str, list[Any]]:
    """The calls that this machine has a number for, as the reaching template takes them."""
    found = {}
    for name, (call, arguments) in calls.items():
        number = pyseccomp.resolve_syscall(pyseccomp.system_arch(), call)
        if number >= 0:
            found[name] = [number, *arguments, *[0] * (6 - len(arguments))]
    return found


def attempts(parent: int) -> dict[str, tuple[str, list[Any]]]:
    """Every attempt by name: the call and its arguments, which do no harm where it succeeds.

    Args:
        parent: The process to be spied on.
    """
    return _files() | _descriptors() | _processes(parent) | _privileges() | _sockets()


def _alike(*calls: str, arguments: list[Any]) -> dict[str, tuple[str, list[Any]]]:
    return {call: (call, arguments) for call in calls}


def _files() -> dict[str, tuple[str, list[Any]]]:
    at = [_AT_FDCWD, HERE, _AT_FDCWD, f"{HERE}-too"]
    return {
        "open": ("open", [_PASSWD, 0]),
        "openat": ("openat", [_AT_FDCWD, _PASSWD, 0]),
        "openat to create": ("openat", [_AT_FDCWD, HERE, _CREATE, 0o600]),
        "openat2": ("openat2", [_AT_FDCWD, _PASSWD, [0, 0, 0], 24]),
        "open_tree": ("open_tree", [_AT_FDCWD, "/", 0]),
        **_alike("stat", "lstat", "statfs", arguments=[_PASSWD, "room"]),
        "newfstatat": ("newfstatat", [_AT_FDCWD, _PASSWD, "room"]),
        "statx": ("statx", [_AT_FDCWD, _PASSWD, 0, 0xFFF, "room"]),
        "faccessat": ("faccessat", [_AT_FDCWD, _PASSWD]),
        "readlinkat": ("readlinkat", [_AT_FDCWD, "/proc/self/exe", "room", 4096]),
        "getcwd": ("getcwd", ["room", 4096]),
        "name_to_handle_at": ("name_to_handle_at", [_AT_FDCWD, _PASSWD, [128, 0], [0], 0]),
        "mkdirat": ("mkdirat", [_AT_FDCWD, f"{HERE}-folder", 0o700]),
        "unlinkat a folder": ("unlinkat", [_AT_FDCWD, f"{HERE}-folder", 0x200]),
        "mknodat": ("mknodat", [_AT_FDCWD, f"{HERE}-node", 0o100600]),
        "unlinkat a node": ("unlinkat", [_AT_FDCWD, f"{HERE}-node"]),
        "fchmodat": ("fchmodat", [_AT_FDCWD, HERE, 0o644]),
        "fchownat": ("fchownat", [_AT_FDCWD, HERE, -1, -1]),
        "truncate": ("truncate", [HERE, 0]),
        "utimensat": ("utimensat", [_AT_FDCWD, HERE]),
        "setxattr": ("setxattr", [HERE, "user.a", "b", 1]),
        "symlinkat": ("symlinkat", [_PASSWD, _AT_FDCWD, f"{HERE}-link"]),
        "unlinkat a link": ("unlinkat", [_AT_FDCWD, f"{HERE}-link"]),
        "linkat": ("linkat", at),
        "renameat2": ("renameat2", [*at[2:], *at[:2]]),
        "unlinkat": ("unlinkat", [_AT_FDCWD, HERE]),
        "unlinkat another": ("unlinkat", at[2:]),
        "chdir": ("chdir", ["/"]),
        "chroot": ("chroot", ["/"]),
        "mount": ("mount", ["none", "/mnt", "tmpfs"]),
        "umount2": ("umount2", ["/nowhere", 0]),
        "pivot_root": ("pivot_root", ["/", "/"]),
        "fsopen": ("fsopen", ["tmpfs", 0]),
    }


def _descriptors() -> dict[str, tuple[str, list[Any]]]:
    return {
        "dup": ("dup", [SOCKET]),
        "dup3": ("dup3", [SOCKET, 9]),
        "fcntl": ("fcntl", [SOCKET, 0]),
        "fcntl to own": ("fcntl", [SOCKET, 8, 1]),
        "ioctl": ("ioctl", [SOCKET, 0x541B, "room"]),
        "pipe2": ("pipe2", ["room", 0]),
        "eventfd2": ("eventfd2", [0, 0]),
        "timerfd_create": ("timerfd_create", [1, 0]),
        "epoll_create1": ("epoll_create1", [0]),
        "inotify_init1": ("inotify_init1", [0]),
        "fanotify_init": ("fanotify_init", [0, 0]),
        "memfd_create": ("memfd_create", ["a", 0]),
        "memfd_secret": ("memfd_secret", [0]),
        "userfaultfd": ("userfaultfd", [1]),
        "io_uring_setup": ("io_uring_setup", [4, "room"]),
        "bpf": ("bpf", [0, [2, 4, 4, 1], 32]),
        "perf_event_open": ("perf_event_open", ["room", 0, -1, -1, 0]),
        "landlock_create_ruleset": ("landlock_create_ruleset", [[1], 8]),
        "mq_open": ("mq_open", ["patchflow", _CREATE, 0o600]),
        "shmget": ("shmget", [0, 4096, 0o1600]),
        "msgget": ("msgget", [0x70617463, 0]),
        "semget": ("semget", [0x70617463, 0, 0]),
        "shmat": ("shmat", [0x7FFFFFFF, 0, 0]),
        "add_key": ("add_key", ["user", "patchflow", "a", 1, -1]),
        "request_key": ("request_key", ["user", "patchflow"]),
        "keyctl": ("keyctl", [0, -3, 0]),
    }


def _processes(parent: int) -> dict[str, tuple[str, list[Any]]]:
    vector = [["room", 16], 1, ["room", 16], 1, 0]
    return {
        **_alike("fork", "clone3", arguments=[]),
        "clone": ("clone", [17]),
        "execve": ("execve", ["/nowhere", [0], [0]]),
        "execveat": ("execveat", [_AT_FDCWD, "/nowhere", [0], [0]]),
        "kill": ("kill", [parent, 0]),
        "kill all of the group": ("kill", [0, 0]),
        "tgkill": ("tgkill", [parent, parent, 0]),
        "rt_sigqueueinfo": ("rt_sigqueueinfo", [parent, 0, "room"]),
        "pidfd_open": ("pidfd_open", [parent, 0]),
        "pidfd_getfd": ("pidfd_getfd", [SOCKET, 0, 0]),
        "ptrace to attach": ("ptrace", [16, parent]),
        "ptrace to seize": ("ptrace", [0x4206, parent]),
        "process_vm_readv": ("process_vm_readv", [parent, *vector]),
        "process_vm_writev": ("process_vm_writev", [parent, *vector]),
        "kcmp": ("kcmp", [parent, parent, 0, 0, 0]),
        "get_robust_list": ("get_robust_list", [parent, "room", "room"]),
        "move_pages": ("move_pages", [parent, 0, 0, 0, 0, 0]),
        "prlimit64 of another": ("prlimit64", [parent, resource.RLIMIT_NOFILE, 0, "room"]),
        "sched_setaffinity": ("sched_setaffinity", [parent, 0, "room"]),
        "setpriority": ("setpriority", [0, parent, 0]),
        "ioprio_set": ("ioprio_set", [1, parent, 0]),
        "getpgid": ("getpgid", [parent]),
    }


def _privileges() -> dict[str, tuple[str, list[Any]]]:
    limit = [2**20, 2**20]
    page = mmap.PAGESIZE
    executable = mmap.PROT_READ | mmap.PROT_EXEC
    return {
        "mmap of code": ("mmap", [0, page, executable, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1]),
        "mprotect to code": ("mprotect", ["FILES", page, executable]),
        "mprotect of the files": ("mprotect", ["FILES", page, mmap.PROT_READ | mmap.PROT_WRITE]),
        "prctl to be open": ("prctl", [4, 1]),
        "prctl to outlive": ("prctl", [1, 0]),
        "prctl of a filter": ("prctl", [22, 2, 0]),
        "seccomp": ("seccomp", [2, 0, [0x7FFF0000]]),
        "personality": ("personality", [0xFFFFFFFF]),
        "prlimit64 up": ("prlimit64", [0, resource.RLIMIT_NOFILE, limit, 0]),
        "setrlimit up": ("setrlimit", [resource.RLIMIT_NPROC, limit]),
        "setuid": ("setuid", [0]),
        "setgroups": ("setgroups", [1, "room"]),
        "capset": ("capset", [[0x20080522], [-1, -1, -1]]),
        "setns": ("setns", [SOCKET, 0]),
        "unshare": ("unshare", [0x10000000]),
        "unshare of mounts": ("unshare", [0x00020000]),
        "syslog": ("syslog", [3, "room", 100]),
        "reboot": ("reboot", [0, 0, 0]),
        "init_module": ("init_module", ["room", 1, "a"]),
        "sethostname": ("sethostname", ["a", 1]),
        "settimeofday": ("settimeofday", [0, [0]]),
        "iopl": ("iopl", [3]),
        "swapon": ("swapon", ["/nowhere", 0]),
        "acct": ("acct", ["/nowhere"]),
        "uname": ("uname", ["room"]),
        "sysinfo": ("sysinfo", ["room"]),
    }


def _sockets() -> dict[str, tuple[str, list[Any]]]:
    families = {
        f"socket of family {family}, type {kind}": ("socket", [family, kind, 0])
        for family in FAMILIES
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW)
    }
    return families | {
        "socketpair": ("socketpair", [socket.AF_UNIX, socket.SOCK_STREAM, 0, "room"]),
        "connect": ("connect", [SOCKET, "room", 16]),
        "bind": ("bind", [SOCKET, "room", 16]),
        "accept4": ("accept4", [SOCKET, 0, 0, 0]),
        # A descriptor on its way out, and one on its way in.
        "sendmsg": ("sendmsg", [SOCKET, 0, 0]),
        "recvmsg": ("recvmsg", [SOCKET, 0, 0x40]),
        "setsockopt": ("setsockopt", [SOCKET, 1, 7, "room", 4]),
        "shutdown of none": ("shutdown", [SOCKET, 9]),
    }
