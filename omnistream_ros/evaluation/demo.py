# SPDX-License-Identifier: Apache-2.0
"""``omnistream demo``: a recording through the real node, then a table and a picture."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import omnistream_ros
from omnistream_ros.evaluation import demo_picture, demo_report
from omnistream_ros.evaluation.live import check_speed, run_live
from omnistream_ros.evaluation.output_folder import output_folder
from omnistream_ros.evaluation.recordings import (
    Recording,
    RecordingError,
    Selection,
    open_recording,
)

#: The clip that comes with the package.
BUNDLED = Path(omnistream_ros.__file__).resolve().parent / "data" / "furnished_room"


@dataclasses.dataclass(frozen=True)
class DemoFiles:
    """What the demo wrote, and its table."""

    table: str
    picture: Path
    bag: Path


def run_demo(
    recording_path: Path | None,
    out: Path,
    *,
    selection: Selection | None = None,
    parameters: dict[str, str] | None = None,
    speed: float = 1.0,
    say: Callable[[str], None] = lambda _: None,
) -> DemoFiles:
    """Play a recording to a node in real time, and report what came out.

    Args:
        recording_path: anything that `open_recording` takes; None for the bundled clip.
        out: folder for ``demo.png``, ``table.txt``, the node's bag and the logs.

    Raises:
        RecordingError: no such recording, or it holds no image.
        ChildError: one of the processes failed.
        OutputFolderError: another process writes into ``out``.
        ValueError: ``speed`` is not positive.
        OSError: ``out`` cannot be written.
    """
    check_speed(speed)
    path = recording_path if recording_path is not None else BUNDLED
    recording = open_recording(path, selection)
    info = recording.info()
    if info.width is None:
        raise RecordingError(f"{path} holds no image")
    length = f", {info.frames} images" if info.frames else ""
    with output_folder(out):
        say(f"recording {recording.name}: {info.layout}, {info.width}x{info.height}{length}")
        live = run_live(path, out, selection=selection, parameters=parameters, speed=speed, say=say)
        say("measuring")
        return measure_run(recording, live.bag, live.played, out)


def measure_run(
    recording: Recording, node_bag: Path, played: dict[str, Any], out: Path
) -> DemoFiles:
    """Measure what a node published against the recording that was played to it.

    Args:
        node_bag: what was recorded of the node.
        played: the player's report, of which ``frames`` and ``duration_s`` are used.
        out: folder for ``demo.png`` and ``table.txt``.

    Raises:
        RecordingError: the node's bag holds no processed frame, or a file is damaged.
        OSError: ``out`` cannot be written.
    """
    out.mkdir(parents=True, exist_ok=True)
    result = demo_report.measure(recording, node_bag, played)
    picture = out / "demo.png"
    demo_picture.draw(result, picture)
    text = demo_report.table(result)
    (out / "table.txt").write_text(text + "\n", encoding="utf-8")
    return DemoFiles(text, picture, node_bag)
