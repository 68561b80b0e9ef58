# SPDX-License-Identifier: Apache-2.0
"""``omnistream evaluate``: many recordings, one after the other or in several processes."""

from __future__ import annotations

import concurrent.futures.process
import dataclasses
import functools
import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from omnistream_ros.evaluation.collector import Scoring
from omnistream_ros.evaluation.predictors import FilePredictor, ModelPredictor, Predictor
from omnistream_ros.evaluation.protocols import PROTOCOLS, FrameRange
from omnistream_ros.evaluation.recordings import FAULTS, Selection, open_recording
from omnistream_ros.evaluation.replay import replay
from omnistream_ros.evaluation.sequence_result import SequenceResult

if TYPE_CHECKING:
    from omnistream_ros.model.cache_policy import Policy

# Nobody knows which of the recordings in work was too much.
_LOST = (
    "a process was ended from outside while this recording was in work or waited, perhaps because "
    "memory ran out: evaluate it again, with fewer --jobs"
)

#: The error of a recording that Ctrl-C came before.
INTERRUPTED = "interrupted before it was measured"

#: (name of the recording, frames done, total if known)
Progress = Callable[[str, int, "int | None"], None]


@dataclasses.dataclass(frozen=True)
class Options:
    """What is evaluated and how; the same options give the same numbers.

    Attributes:
        model, device: see `ModelPredictor`.
        memory, sink, window, keyframes, keyframe_cell: what the stream remembers, see `policy`.
        predictions: folder of predictions to score instead of a model: its subfolder named as the
            recording or, unless ``predictions_by_name``, itself.
        predictions_by_name: only the subfolder; with several recordings anything else would score
            the predictions of one against another.
        predictions_per_metre: steps to a metre of 16-bit PNG predictions.
        threads: CPU threads of the model in each process. One by default, because the last digits
            of a sum depend on it: the numbers are then the same with any number of processes.
        selection: topics and layout of the recordings.
        frames: which frames; overrides those of the protocol.
        protocol: name in `PROTOCOLS`.
        per_frame: one depth alignment per frame.
    """

    model: str = "omnistream-nano"
    device: str = "auto"
    sink: int = 1
    window: int = 16
    memory: str = "window"
    keyframes: int = 16
    keyframe_cell: int = 2
    predictions: Path | None = None
    predictions_by_name: bool = False
    predictions_per_metre: float = 1000.0
    threads: int = 1
    selection: Selection = dataclasses.field(default_factory=Selection)
    frames: FrameRange | None = None
    protocol: str | None = None
    per_frame: bool = False

    def __post_init__(self) -> None:
        if self.protocol is not None and self.protocol not in PROTOCOLS:
            raise ValueError(
                f"unknown protocol {self.protocol!r}; known: {', '.join(sorted(PROTOCOLS))}"
            )
        if self.threads < 1:
            raise ValueError(f"threads must be at least 1, got {self.threads}")

    @property
    def policy(self) -> Policy:
        """What the stream remembers.

        Raises:
            ValueError: an unknown `memory`, or numbers that it cannot have.
        """
        from omnistream_ros.model.cache_policy import make_policy  # torch, if it is needed

        return make_policy(
            self.memory,
            sink=self.sink,
            window=self.window,
            keyframes=self.keyframes,
            cell=self.keyframe_cell,
        )

    def scoring(self) -> Scoring:
        """How every sequence is measured."""
        scoring = Scoring(per_frame=self.per_frame)
        if self.protocol is not None:
            protocol = PROTOCOLS[self.protocol]
            scoring = dataclasses.replace(
                scoring,
                frames=protocol.frames,
                depth_limits=protocol.depth_limits,
                depth_clip=protocol.depth_clip,
            )
        if self.frames is not None:
            scoring = dataclasses.replace(scoring, frames=self.frames)
        return scoring


def evaluate_one(
    path: Path,
    options: Options,
    progress: Callable[[int, int | None], None] = lambda done, total: None,
) -> SequenceResult:
    """Evaluate one recording; what is wrong with it becomes a failed result.

    Raises:
        ModelError: the model cannot be used, which no other recording would change.
    """
    predictor: Predictor
    try:
        recording = open_recording(path, options.selection)
        if options.predictions is not None:
            predictor = _file_predictor(options, options.predictions, recording.name)
    except FAULTS as error:
        return failed(path, str(error))
    if options.predictions is None:
        predictor = _model_predictor(options)
    return replay(recording, predictor, options.scoring(), progress)


def failed(path: Path, error: str) -> SequenceResult:
    """The result of a recording of which nothing was measured."""
    return SequenceResult(path.resolve().name, str(path), "failed", error=error)


def _file_predictor(options: Options, predictions: Path, name: str) -> FilePredictor:
    own = predictions / name
    by_name = options.predictions_by_name or own.is_dir()
    return FilePredictor(own if by_name else predictions, options.predictions_per_metre)


def _model_predictor(options: Options) -> ModelPredictor:
    import torch

    torch.set_num_threads(options.threads)
    return ModelPredictor(options.model, device=options.device, policy=options.policy)


def evaluate(
    paths: Sequence[Path], options: Options, jobs: int, progress: Progress
) -> Iterator[SequenceResult]:
    """Evaluate recordings, and yield each result when it is there, in the order given.

    After Ctrl-C the recordings in work are measured as far as they came, and the ones not begun are
    reported as failed.

    Args:
        jobs: processes; with one, everything happens in this one.
    """
    if jobs > 1 and len(paths) > 1:
        yield from _in_processes(paths, options, min(jobs, len(paths)), progress)
        return
    interrupted = False
    for path in paths:
        if interrupted:
            yield not_begun(path)
            continue
        result = evaluate_one(path, options, functools.partial(progress, path.name))
        interrupted = result.status == "partial"
        yield result


def not_begun(path: Path) -> SequenceResult:
    """The result of a recording that Ctrl-C came before."""
    return failed(path, INTERRUPTED)


def _in_processes(
    paths: Sequence[Path], options: Options, jobs: int, progress: Progress
) -> Iterator[SequenceResult]:
    # Fresh processes: a forked one would inherit the locks of torch's threads.
    context = multiprocessing.get_context("spawn")
    queue = context.Manager().Queue()
    stop = context.Manager().Event()
    pool = concurrent.futures.ProcessPoolExecutor(
        jobs, mp_context=context, initializer=_ignore_interrupt
    )
    with pool:
        try:
            futures = [pool.submit(_work, path, options, queue, stop) for path in paths]
            for path, future in zip(paths, futures, strict=True):
                while True:
                    try:
                        while not queue.empty():
                            progress(*queue.get())
                        result = future.result(timeout=0.1)
                        break
                    except concurrent.futures.TimeoutError:
                        continue
                    except concurrent.futures.process.BrokenProcessPool:
                        result = failed(path, _LOST)
                        break
                    except KeyboardInterrupt:
                        stop.set()
                yield result
        finally:
            stop.set()  # whoever waits for no more results wants no more work
    while not queue.empty():
        progress(*queue.get())


def _ignore_interrupt() -> None:
    """Ctrl-C reaches all processes of a terminal; only the first one acts on it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _work(path: Path, options: Options, queue, stop) -> SequenceResult:  # type: ignore[no-untyped-def]
    """One recording in a process of its own."""
    if stop.is_set():
        return not_begun(path)

    def report(done: int, total: int | None) -> None:
        if done % 8 == 0 or done == total:
            queue.put((path.name, done, total))
            if stop.is_set():
                raise KeyboardInterrupt

    return evaluate_one(path, options, report)
