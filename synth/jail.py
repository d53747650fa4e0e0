"""Runs one Python program that nobody has read, in a process that can do no harm. Started by `synth.sandbox`.

`python -I -S jail.py LIMITS` with the program on standard input. On Linux: own namespaces of mounts, network, processes
and IPC; every mount read-only, `/tmp` and `/run` empty (no file to change, no socket to ask); no capability, but for
root to read, and no way to gain one; limits of CPU time, memory, file size, processes. When this process dies, all that
it started dies. Exit code: the program's, 128 + its signal, `UNSAFE` where the kernel does not allow the namespaces,
`BROKEN` where the walls could not be put up in them; a program that exits with one of those two exits with 1.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys

UNSAFE, BROKEN = 97, 96
NOBODY = 1 << 30
"""Plus this process's number: a user of its own, so that sandboxes side by side are not counted together."""
_NEWNS, _NEWUSER, _NEWPID, _NEWNET, _NEWIPC = 0x20000, 0x10000000, 0x20000000, 0x40000000, 0x08000000
_MS_REC_PRIVATE = 0x4000 | 1 << 18
_MOUNT_SETATTR = 442  # the same number on every architecture (Linux 5.12)
_SET_PDEATHSIG, _SET_KEEPCAPS, _SET_NO_NEW_PRIVS, _CAP_AMBIENT = 1, 8, 38, 47
_DAC_READ_SEARCH = 2


def main() -> int:
    limits = json.loads(sys.argv[1])
    libc = ctypes.CDLL(None, use_errno=True)
    if sys.platform == "linux":
        libc.prctl(_SET_PDEATHSIG, signal.SIGKILL)
    apart = sys.platform == "linux" and _set_apart(libc)
    if not apart and limits["isolation"] == "required":
        return UNSAFE
    limits["user"] = NOBODY + os.getpid()
    failed, fails = os.pipe()  # Closed by the exec: what comes out of it was written before the program began.
    child = os.fork()  # In a namespace of its own it is process 1: its end is the end of all that it started.
    if child == 0:
        try:
            _enter(libc, limits, apart)
        except Exception as error:  # setrlimit raises ValueError, ctypes anything
            os.write(fails, f"{type(error).__name__}: {error}".encode())
        finally:  # Whatever went wrong, this must not go on as the parent does.
            os._exit(BROKEN)
    os.close(fails)
    if why := os.read(failed, 1 << 12):
        os.write(2, why)
        return BROKEN
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    return 1 if code in (UNSAFE, BROKEN) else code if code >= 0 else 128 - code


def _set_apart(libc: ctypes.CDLL) -> bool:
    """Whether this process and its children have namespaces of their own, with nothing that can be written."""
    own = _NEWNS | _NEWPID | _NEWNET | _NEWIPC
    # Root needs no user namespace, and can become nobody instead, whose processes are counted.
    if libc.unshare(own) != 0 and libc.unshare(own | _NEWUSER) != 0:
        return False
    read_only = (ctypes.c_uint64 * 4)(1, 0, 0, 0)  # struct mount_attr: attr_set = MOUNT_ATTR_RDONLY
    at_recursive = 0x8000
    return bool(
        libc.mount(None, b"/", None, _MS_REC_PRIVATE, None) == 0
        and libc.syscall(_MOUNT_SETATTR, -100, b"/", at_recursive, ctypes.byref(read_only), 32) == 0
    )


def _enter(libc: ctypes.CDLL, limits: dict[str, float], apart: bool) -> None:
    """Give up everything and become the program; returns only by an exception."""
    if sys.platform == "linux":
        libc.prctl(_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if apart:
        for folder in (b"/run", b"/tmp"):
            options = f"size={max(int(limits['file_mb']), 1)}m,mode=1777".encode()
            if libc.mount(b"none", folder, b"tmpfs", 0 if limits["file_mb"] else 1, options) != 0:
                raise OSError(ctypes.get_errno(), "mount")
        os.chdir("/tmp")
    mega = 1 << 20
    seconds = int(limits["seconds"]) + 1
    bounds = {
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_AS: int(limits["memory_mb"]) * mega,
        resource.RLIMIT_FSIZE: int(limits["file_mb"]) * mega,
        resource.RLIMIT_NOFILE: 64,
        resource.RLIMIT_CORE: 0,
    }
    for which, most in bounds.items():
        resource.setrlimit(which, (most, most))
    as_nobody = apart and os.geteuid() == 0
    # In a user namespace the parent of this process is counted, too.
    processes = int(limits["processes"]) + (0 if as_nobody else 1)
    if apart:
        resource.setrlimit(resource.RLIMIT_NPROC, (processes, processes))
    if as_nobody:
        _become_nobody(libc, int(limits["user"]))
    if sys.platform == "linux":
        libc.prctl(_SET_PDEATHSIG, signal.SIGKILL)  # Last: the kernel forgets it where the user changes.
    os.execve(sys.executable, [sys.executable, "-I", "-S", "-"], {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"})


def _become_nobody(libc: ctypes.CDLL, user: int) -> None:
    """From root to nobody, whose processes are counted; only reading stays, as Python may be installed for root."""
    os.setgroups([])
    os.setgid(user)
    libc.prctl(_SET_KEEPCAPS, 1)
    os.setuid(user)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this process
    sets = (ctypes.c_uint32 * 6)(*(1 << _DAC_READ_SEARCH,) * 3, 0, 0, 0)
    if libc.capset(ctypes.byref(header), ctypes.byref(sets)) != 0:
        raise OSError(ctypes.get_errno(), "capset")
    if libc.prctl(_CAP_AMBIENT, 2, _DAC_READ_SEARCH, 0, 0) != 0:  # PR_CAP_AMBIENT_RAISE: it outlives the exec
        raise OSError(ctypes.get_errno(), "prctl(PR_CAP_AMBIENT)")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except OSError as error:  # no process to fork: says nothing about the program
        os.write(2, f"{error}".encode())
        sys.exit(BROKEN)
