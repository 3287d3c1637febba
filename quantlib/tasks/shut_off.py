"""Becomes a Python program that can do less.

    python -m quantlib.tasks.shut_off PROGRAM

It has no environment, limits of time, memory and file sizes, and cannot open a socket other than
one of this machine's own (``AF_UNIX``): a filter of system calls, which needs no rights and which
the program cannot take off, refuses that with EPERM (Linux, Documentation/userspace-api/
seccomp_filter.rst). It can read what its user can read.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import struct
import sys

from quantlib.errors import QuantlibError

_SECONDS = 60
_BYTES = 1 << 30
_FILE_BYTES = 16 << 20

_MACHINES = {"x86_64": (0xC000003E, 41, 425), "aarch64": (0xC00000B7, 198, 425)}
"""The audit architecture, and the numbers of ``socket`` and ``io_uring_setup``."""

_ALLOW, _REFUSE = 0x7FFF0000, 0x00050001  # SECCOMP_RET_ALLOW; SECCOMP_RET_ERRNO with EPERM
_SET_DUMPABLE, _SET_SECCOMP, _NO_NEW_PRIVILEGES = 4, 22, 38
_FILTER, _AF_UNIX = 2, 1
_FIRST_OF_X32 = 0x40000000
"""From here on, x86-64 has the same calls under other numbers."""

_LOAD, _EQUAL, _AT_LEAST, _END = 0x20, 0x15, 0x35, 0x06


def require_available() -> None:
    """Requires that programs can be shut off from the network.

    Raises:
        QuantlibError: This is no Linux on a machine whose system calls are known.
    """
    if sys.platform != "linux" or platform.machine() not in _MACHINES:
        raise QuantlibError(
            f"programs of models are run on Linux on {' or '.join(_MACHINES)} only, where they can "
            "be shut off from the network; leave humaneval and mbpp out of tasks.run"
        )


def hide_environment() -> None:
    """Keeps what runs beside this process as the same user from reading its environment."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_DUMPABLE, 0, 0, 0, 0)


def shut_off() -> None:
    """Limits this process, and takes the network from it.

    Raises:
        QuantlibError: It cannot be done on this machine.
        OSError: The kernel refuses it.
    """
    require_available()
    for limit, most in (
        (resource.RLIMIT_AS, _BYTES),
        (resource.RLIMIT_FSIZE, _FILE_BYTES),
        (resource.RLIMIT_CPU, _SECONDS),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(limit, (most, most))
    code = _program(*_MACHINES[platform.machine()])
    instructions = ctypes.create_string_buffer(code, len(code))
    given = struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(instructions))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0) or libc.prctl(_SET_SECCOMP, _FILTER, given):
        raise OSError(ctypes.get_errno(), "the filter of system calls was refused")


def _program(architecture: int, socket: int, ring: int) -> bytes:
    """The filter, in classic BPF over ``struct seccomp_data``.

    That has the number at 0, the architecture at 4, the first argument at 16. Each instruction is
    an operation, how many instructions are left out if it holds and if it does not, and a value.
    """
    steps = [
        (_LOAD, 0, 0, 4),
        (_EQUAL, 0, 7, architecture),
        (_LOAD, 0, 0, 0),
        (_AT_LEAST, 5, 0, _FIRST_OF_X32),
        (_EQUAL, 4, 0, ring),
        (_EQUAL, 0, 2, socket),
        (_LOAD, 0, 0, 16),
        (_EQUAL, 0, 1, _AF_UNIX),
        (_END, 0, 0, _ALLOW),
        (_END, 0, 0, _REFUSE),
    ]
    return b"".join(struct.pack("HBBI", *step) for step in steps)


def main() -> None:
    """Becomes the program of the first argument."""
    program = sys.argv[1]
    shut_off()
    home = os.getcwd()
    environment = {"HOME": home, "TMPDIR": home}
    os.execve(sys.executable, [sys.executable, "-I", "-S", "-B", program], environment)


if __name__ == "__main__":
    main()
