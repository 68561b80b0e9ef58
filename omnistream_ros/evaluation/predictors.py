# SPDX-License-Identifier: Apache-2.0
"""What is evaluated: a streaming model, or predictions made elsewhere that lie in files."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from omnistream_ros.evaluation.image_files import natural_key, png_depth
from omnistream_ros.evaluation.recordings import RecordingError
from omnistream_ros.evaluation.trajectory import Trajectory, TrajectoryError, parse_stamp, read_tum
from omnistream_ros.stream.frame import Frame

if TYPE_CHECKING:
    from omnistream_ros.model.cache_policy import Policy

#: A prediction file named by its stamp belongs to the frame within this time.
_STAMP_TOLERANCE_NS = 1_000_000
_SUFFIXES = (".npy", ".png")


@dataclasses.dataclass(frozen=True, eq=False)
class FramePrediction:
    """What was predicted for one frame.

    Attributes:
        depth: (h, w) float32 metres, NaN where nothing was predicted; None for no depth at all.
        translation, quaternion: (3,) and (4,) x, y, z, w; camera-to-world, optical axes; or None.
        tracked: False when the pose is only a guess.
        epoch, frame_index, context_frames: place in the stream.
        epoch_reason: why an epoch began with this frame.
        timings_s: seconds by stage.
    """

    depth: np.ndarray | None = None
    translation: np.ndarray | None = None
    quaternion: np.ndarray | None = None
    tracked: bool = True
    epoch: int = 0
    frame_index: int = 0
    context_frames: int = 0
    epoch_reason: str | None = None
    timings_s: dict[str, float] = dataclasses.field(default_factory=dict)


class Predictor(Protocol):
    """Predicts frame after frame of one sequence.

    Attributes:
        name: for reports.
        sha256: of the weights, empty when there are none.
        metric: whether depth is said to be in metres; None when unknown.
        context_capacity: frames that it can see at most, 0 when unknown.
        memory: what the stream remembers, see `describe_policy`; empty when unknown.
    """

    name: str
    sha256: str
    metric: bool | None
    context_capacity: int
    memory: dict[str, str | int]

    def predict(self, number: int, frame: Frame) -> FramePrediction:
        """The prediction for frame ``number`` (from 0 in the recording)."""
        ...

    def trajectory(self) -> Trajectory | None:
        """Poses that do not come with the frames, or None."""
        ...


class ModelPredictor:
    """A model that runs through the recording as a stream.

    Args:
        model: name, safetensors file or checkpoint folder.
        device: torch device; ``auto`` takes a GPU if there is one.
        policy: what the stream remembers; by default `Window()`.

    Raises:
        ModelError: the weights cannot be used.
    """

    def __init__(self, model: str, *, device: str = "auto", policy: Policy | None = None) -> None:
        import torch  # scoring files needs no torch

        from omnistream_ros.model import load_model
        from omnistream_ros.model.cache_policy import describe_policy
        from omnistream_ros.stream.result import Outputs
        from omnistream_ros.stream.session import StreamSession

        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        network, card = load_model(model, device=device)
        self.name = card.name
        self.sha256 = card.sha256
        self.metric: bool | None = network.config.metric
        self.device = device
        self._session = StreamSession(network, policy=policy)
        self.context_capacity = self._session.context_capacity
        self.memory = describe_policy(self._session.policy)
        self._outputs = Outputs(depth=network.depth_head is not None, pose=network.has_pose)

    def predict(self, number: int, frame: Frame) -> FramePrediction:
        result = self._session.step(frame, self._outputs)
        self.metric = result.metric
        depth = None if result.depth is None else result.depth.float().cpu().numpy()
        pose = result.pose
        return FramePrediction(
            depth=depth,
            translation=None if pose is None else np.asarray(pose.translation, dtype=np.float64),
            quaternion=None if pose is None else np.asarray(pose.quaternion, dtype=np.float64),
            tracked=pose is None or pose.tracked,
            epoch=result.epoch,
            frame_index=result.frame_index,
            context_frames=result.context_frames,
            epoch_reason=None if result.epoch_reason is None else result.epoch_reason.value,
            timings_s=dict(result.timings),
        )

    def trajectory(self) -> Trajectory | None:
        return None


class FilePredictor:
    """A folder of ``.npy`` or 16-bit ``.png`` depth and a TUM trajectory.

    Depth files lie in the folder or in ``depth/`` below it and are named by the number of the frame
    (``000012.npy``) or by its stamp in seconds (``1305031102.175304.png``). Poses lie in a file
    ``trajectory.tum`` or ``trajectory.txt``, and belong to frames by their stamps.

    Args:
        per_metre: steps to a metre of the PNG files.

    Raises:
        RecordingError: no prediction in the folder, or file names that are neither.
    """

    def __init__(self, folder: Path, per_metre: float = 1000.0) -> None:
        self.name = folder.resolve().name
        self.sha256 = ""
        self.metric: bool | None = None
        self.context_capacity = 0
        self.memory: dict[str, str | int] = {}
        self._read_png = png_depth(per_metre)
        place = folder / "depth" if (folder / "depth").is_dir() else folder
        files = sorted((f for f in place.glob("*") if f.suffix in _SUFFIXES), key=natural_key)
        self._by_number = {int(f.stem): f for f in files if f.stem.isdecimal()}
        self._stamped: list[tuple[int, Path]] = []
        if len(self._by_number) < len(files):
            self._by_number = {}
            self._stamped = [(self._stamp(file), file) for file in files]
        self._stamps = np.array([stamp for stamp, _ in self._stamped], dtype=np.int64)
        names = (folder / "trajectory.tum", folder / "trajectory.txt")
        self._poses = next((file for file in names if file.is_file()), None)
        if not files and self._poses is None:
            raise RecordingError(
                f"{folder} holds no predictions: expected NUMBER.npy, NUMBER.png (16-bit) or a "
                "trajectory.tum"
            )

    @staticmethod
    def _stamp(file: Path) -> int:
        try:
            return parse_stamp(file.stem)
        except ValueError:
            raise RecordingError(
                f"{file} is named neither by a frame number nor by a stamp in seconds"
            ) from None

    def predict(self, number: int, frame: Frame) -> FramePrediction:
        file = self._by_number.get(number)
        if len(self._stamps):
            nearest = int(np.argmin(np.abs(self._stamps - frame.stamp_ns)))
            if abs(int(self._stamps[nearest]) - frame.stamp_ns) <= _STAMP_TOLERANCE_NS:
                file = self._stamped[nearest][1]
        return FramePrediction(depth=None if file is None else self._read(file))

    def _read(self, file: Path) -> np.ndarray:
        if file.suffix == ".png":
            return self._read_png(file)
        try:
            depth = np.load(file, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise RecordingError(f"{file} cannot be read: {error}") from error
        depth = depth.squeeze()
        if depth.ndim != 2 or not np.issubdtype(depth.dtype, np.floating):
            raise RecordingError(
                f"{file} must hold depth (H, W) as floats, it is {depth.dtype} {depth.shape}"
            )
        return depth.astype(np.float32)

    def trajectory(self) -> Trajectory | None:
        if self._poses is None:
            return None
        try:
            return read_tum(self._poses)
        except TrajectoryError as error:
            raise RecordingError(str(error)) from error
