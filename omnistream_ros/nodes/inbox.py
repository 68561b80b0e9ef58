# SPDX-License-Identifier: Apache-2.0
"""The newest image of each camera, between the executor's thread and the one that runs the model.

A slot for each camera holds one image; a newer one replaces it. Whoever waits gets the images of
the cameras that were not served for longest, so that a fast camera cannot starve a slow one, and a
silent one keeps nobody waiting.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import NamedTuple

from sensor_msgs.msg import CompressedImage, Image


class PendingImage(NamedTuple):
    """A received image that passed the checks of `image_checks`.

    Attributes:
        message: the image; its pixels are read once, by the thread that runs the model.
        width, height: of the image, pixels.
        stamp_ns: its stamp in nanoseconds.
        receipt_s: monotonic time of the first line of the subscription callback, seconds.
    """

    message: Image | CompressedImage
    width: int
    height: int
    stamp_ns: int
    receipt_s: float


class Inbox:
    """Slots for some cameras. `put`, `empty` and `wake` by any thread, `take` by one."""

    def __init__(self, cameras: Iterable[str]) -> None:
        self._condition = threading.Condition()
        # All below are guarded by the condition. The order is that of service, longest ago first.
        self._order = list(cameras)
        self._waiting: dict[str, PendingImage] = {}
        self._closed = False

    def put(self, camera: str, image: PendingImage) -> bool:
        """Leave an image; returns whether it replaces one that nobody took."""
        with self._condition:
            replaced = camera in self._waiting
            self._waiting[camera] = image
            self._condition.notify()
            return replaced

    def empty(self, camera: str) -> bool:
        """Throw away what waits; returns whether there was something."""
        with self._condition:
            return self._waiting.pop(camera, None) is not None

    def wake(self) -> None:
        """Let `take` look again: what its ``patience`` says may have changed."""
        with self._condition:
            self._condition.notify()

    def close(self) -> None:
        """From now on there is nothing to take."""
        with self._condition:
            self._waiting.clear()
            self._closed = True
            self._condition.notify()

    def take(
        self, at_once: int, patience: Callable[[str, PendingImage], float]
    ) -> dict[str, PendingImage] | None:
        """Wait for an image, and take one of up to ``at_once`` cameras.

        Args:
            patience: seconds that an image should still wait for something; 0 for none.

        Returns:
            Images by camera; None once the inbox is closed.
        """
        with self._condition:
            while not self._closed:
                ready = []
                shortest: float | None = None
                for camera in self._order if self._waiting else ():
                    image = self._waiting.get(camera)
                    if image is None:
                        continue
                    left = patience(camera, image)
                    if left <= 0.0:
                        ready.append(camera)
                    elif shortest is None or left < shortest:
                        shortest = left
                if ready:
                    del ready[at_once:]
                    self._order = [c for c in self._order if c not in ready] + ready
                    return {camera: self._waiting.pop(camera) for camera in ready}
                self._condition.wait(shortest)
            return None
