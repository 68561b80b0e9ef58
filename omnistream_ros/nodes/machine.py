# SPDX-License-Identifier: Apache-2.0
"""What the machine says of itself: memory and temperatures, where they can be read."""

from __future__ import annotations

import contextlib
import dataclasses
import resource
from pathlib import Path

import torch

_THERMAL = Path("/sys/class/thermal")
_STATM = Path("/proc/self/statm")


@dataclasses.dataclass(frozen=True)
class Machine:
    """Readings of one moment; None where the machine does not say.

    Attributes:
        process_bytes: memory of this process in RAM.
        device_free, device_total: memory of the GPU, bytes; of all processes.
        device_own: what this process has taken of it.
        temperatures: degrees Celsius by sensor.
    """

    process_bytes: int | None
    device_free: int | None
    device_total: int | None
    device_own: int | None
    temperatures: dict[str, float]


def read_machine(device: str, thermal: Path = _THERMAL) -> Machine:
    """Readings for a process whose model is on this device ("" before it is known)."""
    free = total = own = None
    temperatures = _zones(thermal)
    if device.startswith("cuda"):
        free, total = torch.cuda.mem_get_info(device)
        own = torch.cuda.memory_reserved(device)
        # Needs NVIDIA's management library, which Jetsons and bare installations do not have.
        with contextlib.suppress(Exception):
            temperatures["gpu"] = float(torch.cuda.temperature(device))
    return Machine(_resident(), free, total, own, temperatures)


def _resident() -> int | None:
    try:
        pages = int(_STATM.read_text(encoding="ascii").split()[1])
    except OSError:
        return None
    return pages * resource.getpagesize()


def _zones(thermal: Path) -> dict[str, float]:
    """Linux's thermal zones; those of one kind count as one, the hottest."""
    found: dict[str, float] = {}
    for zone in sorted(thermal.glob("thermal_zone*")):
        try:
            kind = (zone / "type").read_text(encoding="utf-8").strip()
            degrees = int((zone / "temp").read_text(encoding="ascii")) / 1000
        except (OSError, ValueError):
            continue  # a zone that is switched off cannot be read
        # What a disconnected sensor reads.
        if -40.0 < degrees < 150.0:
            found[kind] = max(degrees, found.get(kind, degrees))
    return found
