# SPDX-License-Identifier: Apache-2.0
"""Images to the device and results back, without the host standing still.

On the CPU nothing is transferred: the same calls hand over the same memory.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor


class Upload:
    """Images of one size to the device, in a CUDA stream of their own.

    Only page-locked memory is copied to a GPU while the host goes on: so each image is first
    written into one of two buffers, in turn. While frame n is computed, frame n+1 is uploaded; the
    host waits only if it is two frames ahead.
    """

    def __init__(self, size: tuple[int, int], device: torch.device) -> None:
        self._device = device
        self._cuda = device.type == "cuda"
        if not self._cuda:
            return
        self._buffers = [
            torch.empty((*size, 3), dtype=torch.uint8, pin_memory=True) for _ in range(2)
        ]
        self._views = [buffer.numpy() for buffer in self._buffers]
        self._turn = 0
        self._stream = torch.cuda.Stream(device)
        self._read = [torch.cuda.Event() for _ in range(2)]

    def __call__(self, image: np.ndarray) -> Tensor:
        """(H, W, 3) uint8 on the device; on the CPU the image's own memory where torch takes it."""
        if not self._cuda:
            usable = image.flags.writeable and min(image.strides) > 0
            return torch.from_numpy(image if usable else image.copy())
        self._turn = 1 - self._turn
        buffer, view = self._buffers[self._turn], self._views[self._turn]
        read, work = self._read[self._turn], torch.cuda.current_stream(self._device)
        read.synchronize()  # the upload of two frames ago
        np.copyto(view, image)
        with torch.cuda.stream(self._stream):
            uploaded = buffer.to(self._device, non_blocking=True)
            read.record(self._stream)
        work.wait_event(read)
        uploaded.record_stream(work)  # its memory is not given to another before it is read
        return uploaded


def to_host(tensors: Iterable[Tensor | None]) -> list[Tensor | None]:
    """The tensors in host memory: all copies are begun, then waited for at once."""
    copies: list[Tensor | None] = []
    waited_for: torch.device | None = None
    for tensor in tensors:
        if tensor is None or tensor.device.type != "cuda":
            copies.append(tensor)
            continue
        copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        copies.append(copy.copy_(tensor, non_blocking=True))
        waited_for = tensor.device
    if waited_for is not None:
        done = torch.cuda.Event()
        done.record(torch.cuda.current_stream(waited_for))
        done.synchronize()
    return copies
