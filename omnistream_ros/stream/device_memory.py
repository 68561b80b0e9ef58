# SPDX-License-Identifier: Apache-2.0
"""How much memory a device has left, and what running out of it looks like."""

from __future__ import annotations

from pathlib import Path

import torch

_CGROUP = Path("/sys/fs/cgroup")
_MEMINFO = Path("/proc/meminfo")


class StreamMemoryError(RuntimeError):
    """A stream does not fit into the device's memory, or no longer; says what to change."""


def available_bytes(device: torch.device) -> float:
    """Bytes that can still be allocated on the device; infinity where the system does not say.

    On the CPU this must be asked beforehand: Linux promises more memory than there is, and ends
    the process that touches too much of it.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # What torch holds and does not use comes on top.
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type == "cpu":
        return min(_machine_bytes(), _container_bytes())
    return float("inf")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that an allocation failed, on whatever device."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    # The CPU allocator of torch has no exception of its own.
    words = ("out of memory", "can't allocate memory", "not enough memory", "std::bad_alloc")
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in words)


def _machine_bytes() -> float:
    try:
        lines = _MEMINFO.read_text().splitlines()
        return next(1024.0 * int(x.split()[1]) for x in lines if x.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return float("inf")


def _container_bytes() -> float:
    """What the limit of the container leaves (cgroup v2)."""
    try:
        limit = float((_CGROUP / "memory.max").read_text())  # "max" is no number: no limit
        used = float((_CGROUP / "memory.current").read_text())
        statistics = (_CGROUP / "memory.stat").read_text().splitlines()
        # Cached files count as used and are given up when memory is needed.
        cached = next(float(x.split()[1]) for x in statistics if x.startswith("inactive_file "))
    except (OSError, StopIteration, ValueError):
        return float("inf")
    return limit - used + cached
