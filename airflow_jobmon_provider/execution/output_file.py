"""The file into which an executor writes: without a name, and freed as far as it has been read.

It is no pipe: one that nobody reads would hold the executor up, and one whose reader has died would end it.
It is opened for appending: once the worker is gone, the executor empties it (``executor.py``).
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import tempfile

_PIECE = 65_536  # bytes

_FREED_AT_ONCE = 1 << 20  # bytes; each time costs a system call

_KEEP_SIZE, _PUNCH_HOLE = 1, 2  # of <linux/falloc.h>


class OutputFile:
    """A file without a name, which several processes write into and this one reads once."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115  # lives as long as this object
        flags = fcntl.fcntl(self._file, fcntl.F_GETFL)
        fcntl.fcntl(self._file, fcntl.F_SETFL, flags | os.O_APPEND)
        self._read_up_to = 0
        self._freed_up_to = 0
        self._can_free = True

    def fileno(self) -> int:
        """Return the descriptor, for a process that is to write into it."""
        return self._file.fileno()

    @property
    def is_closed(self) -> bool:
        """Whether it is."""
        return self._file.closed

    def size(self) -> int:
        """Return how many bytes have been written, read or not."""
        return os.fstat(self._file.fileno()).st_size

    @property
    def read_up_to(self) -> int:
        """How many bytes have been read."""
        return self._read_up_to

    def read(self) -> bytes:
        """Return the next bytes, 64 KiB at most; none: there are none yet."""
        written = os.pread(self._file.fileno(), _PIECE, self._read_up_to)
        self._read_up_to += len(written)
        if self._can_free and self._read_up_to - self._freed_up_to >= _FREED_AT_ONCE:
            self._free()
        return written

    def close(self) -> None:
        """Close it. Who writes into it goes on."""
        self._file.close()

    def _free(self) -> None:
        """Give back the disk space of what has been read; offsets and size stay as they are.

        A file system that cannot do that keeps it until the file is closed.
        """
        start, length = self._freed_up_to, self._read_up_to - self._freed_up_to
        self._can_free = False
        with contextlib.suppress(AttributeError, OSError):  # not on Linux
            # off_t has 64 bits wherever Airflow runs.
            fallocate = ctypes.CDLL(None).fallocate
            mode = _KEEP_SIZE | _PUNCH_HOLE
            offsets = ctypes.c_int64(start), ctypes.c_int64(length)
            self._can_free = fallocate(self._file.fileno(), mode, *offsets) == 0
        self._freed_up_to = self._read_up_to
