# SPDX-License-Identifier: Apache-2.0
"""The one thread of an active node that runs the model, for all of its cameras."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator

from omnistream_ros.nodes.camera import Camera
from omnistream_ros.nodes.inbox import Inbox, PendingImage
from omnistream_ros.stream.streams import Streams


class StreamWorker:
    """Takes images from the inbox, steps the streams, hands results to the cameras.

    Lives from activate to deactivate. A camera that sends nothing is not waited for: whatever is
    there is processed, up to as many cameras in one step as it pays for.

    Args:
        streams: as new; from now on only this thread touches them.
        on_fault: told about an exception; the thread has then ended.
    """

    def __init__(
        self,
        streams: Streams,
        cameras: Iterable[Camera],
        inbox: Inbox,
        *,
        on_fault: Callable[[BaseException], None],
    ) -> None:
        self._streams = streams
        self._cameras = {camera.name: camera for camera in cameras}
        self._inbox = inbox
        self._on_fault = on_fault
        self._in_work = threading.Lock()
        self._begun_s: float | None = None  # of the frame in work
        self._abandoned = False
        self._thread = threading.Thread(target=self._run, name="stream", daemon=True)
        self._thread.start()

    @property
    def busy_s(self) -> float:
        """Seconds since the frame in work was begun; 0 between frames. Any thread."""
        begun_s = self._begun_s
        return 0.0 if begun_s is None else time.monotonic() - begun_s

    def join(self, timeout_s: float | None = None) -> bool:
        """Wait for the thread's end; the inbox must be closed before.

        Returns:
            False when it is still at work after ``timeout_s``: what becomes of its frame is then of
            no interest, and the process must end without waiting for it.
        """
        self._thread.join(timeout_s)
        self._abandoned = self._thread.is_alive()
        if self._abandoned:
            # Or the thread would keep the node, and with it its shared memory.
            self._cameras = {}
            self._on_fault = lambda error: None
        return not self._abandoned

    @contextlib.contextmanager
    def between_frames(self) -> Iterator[None]:
        """Wait for the frame in work; while the context is open, streams and cameras stand still.

        For another thread that wants to look at them or change them.
        """
        with self._in_work:
            yield

    def _run(self) -> None:
        try:
            at_once = self._streams.at_once
            while (images := self._inbox.take(at_once, self._patience)) is not None:
                with self._in_work:
                    self._begun_s = time.monotonic()
                    self._process(images)
                    self._begun_s = None
        except Exception as error:  # the node logs it and goes to error processing
            self._begun_s = None
            self._on_fault(error)

    def _patience(self, camera: str, image: PendingImage) -> float:
        return self._cameras[camera].patience(image)

    def _process(self, images: dict[str, PendingImage]) -> None:
        opened = {name: self._cameras[name].open(image) for name, image in images.items()}
        work = {name: w for name, w in opened.items() if w is not None}
        results = self._streams.step(
            {name: w.frame for name, w in work.items()},
            {name: self._cameras[name].wanted(w) for name, w in work.items()},
        )
        if self._abandoned:
            return
        for name, result in results.items():
            self._cameras[name].finish(work[name], result)
