# SPDX-License-Identifier: Apache-2.0
"""What makes a stream metric: one factor for depth and pose, and where it comes from.

Feed it every result of a stream with what is known about the world at that moment; it gives the
result back in metres. Depth takes the factor as it is now. The pose takes it for the way that is
still to come: a factor that is learnt better never moves where the camera already is.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from omnistream_ros.stream.result import Pose, StreamResult
from omnistream_ros.stream.scale_estimate import ScaleEstimate, ScaleStatus
from omnistream_ros.stream.scale_evidence import WayComparison, from_ground, from_points

# model: as the network says. fixed: by a factor that somebody knows. height: from the height of the
# camera above the ground. odometry: from another pose. range: from a laser scan or a depth image.
SCALE_SOURCES = ("model", "fixed", "height", "odometry", "range")
# Evidence that needs depth is looked for this often, so that a frame that nobody wants depth of
# stays cheap; oftener as long as nothing is known.
_DEPTH_EVERY_S, _DEPTH_AT_FIRST_S = 0.5, 0.1
# Nobody knows a scale better than this share.
_LEAST_ERROR = 0.02


@dataclasses.dataclass(frozen=True, eq=False)
class Evidence:
    """What is known about the world at one frame; None where nothing is.

    Attributes:
        points: (N, 3) metres in the optical axes of the camera, for source range.
        up: (3,) unit vector away from the ground, in optical axes, for source height.
        height: metres from the ground to the camera, for source height.
        positions: (stamp in ns, (3,) metres) of the camera, new ones, for source odometry.
    """

    points: np.ndarray | None = None
    up: np.ndarray | None = None
    height: float | None = None
    positions: tuple[tuple[int, np.ndarray], ...] = ()


NO_EVIDENCE = Evidence()


@dataclasses.dataclass(frozen=True)
class ScaleState:
    """How the scale of a stream stands.

    Attributes:
        source: one of `SCALE_SOURCES`.
        status: known for sources model and fixed.
        factor: what depth and pose of the model are multiplied with.
        spread: by which share single observations differ (one sigma); None without any.
        observations, refused: since the stream began.
    """

    source: str
    status: ScaleStatus
    factor: float
    spread: float | None
    observations: int
    refused: int


class MetricScale:
    """The scale of one stream.

    Args:
        source: where it comes from, one of `SCALE_SOURCES`.
        factor: with source fixed, metres in one unit of the model.

    Raises:
        ValueError: an unknown source, or a factor that is not a positive number.
    """

    def __init__(self, source: str = "model", factor: float = 1.0) -> None:
        if source not in SCALE_SOURCES:
            raise ValueError(f"scale must be one of {', '.join(SCALE_SOURCES)}, got {source!r}")
        self._source = source
        self._given: float | None = None  # with source fixed
        self._fixed: float | None = None
        self._estimate = ScaleEstimate()
        self._way = WayComparison()
        self._last_depth_ns: int | None = None
        self._last_raw: np.ndarray | None = None  # position of the last pose, model units
        self._offset: np.ndarray = np.zeros(3)  # published position is factor * raw + offset
        self._last_factor = 1.0
        if source == "fixed":
            self.fix(factor)
            self._given = self._fixed

    @property
    def source(self) -> str:
        """Where the scale comes from, whatever it was fixed to."""
        return self._source

    @property
    def factor(self) -> float:
        """Metres in one unit of the model, as far as is known; 1 as long as it is not."""
        if self._fixed is not None:
            return self._fixed
        return self._estimate.scale or 1.0

    @property
    def known(self) -> bool:
        """Whether depth and pose are metres even where the model cannot know."""
        return self._fixed is not None or self._estimate.scale is not None

    def fix(self, factor: float) -> None:
        """Let the factor be this one from now on, whatever is observed; ValueError if it cannot."""
        if not (np.isfinite(factor) and factor > 0):
            raise ValueError(f"scale factor must be a positive number, got {factor}")
        self._fixed = float(factor)

    def unfix(self) -> None:
        """Go back to what the source says."""
        self._fixed = self._given

    def restart(self) -> None:
        """The stream begins at the origin again; what is known of the scale stays."""
        self._way.lost()
        self._last_raw = None
        self._offset = np.zeros(3)

    def needs_depth(self, stamp_ns: int) -> bool:
        """Whether depth is to be computed for the frame of this stamp, wanted or not."""
        if self._source not in ("height", "range") or self._fixed is not None:
            return False
        last = self._last_depth_ns
        period_s = _DEPTH_EVERY_S if self.known else _DEPTH_AT_FIRST_S
        return last is None or not 0 <= stamp_ns - last < period_s * 1e9

    @property
    def needs_pose(self) -> bool:
        """Whether the pose is to be followed, wanted or not."""
        return self._source == "odometry" and self._fixed is None

    def apply(self, result: StreamResult, evidence: Evidence = NO_EVIDENCE) -> StreamResult:
        """Learn from a result of the stream and give it back in metres.

        Results must come in order, each once: the published way is a sum of steps.
        """
        self._observe(result, evidence)
        factor = self.factor
        depth = result.depth
        if depth is not None and factor != 1.0:
            depth = depth * factor
        pose = None if result.pose is None else self._scaled(result.pose, factor)
        return dataclasses.replace(
            result, depth=depth, pose=pose, metric=self.known or result.metric
        )

    def state(self, stamp_ns: int) -> ScaleState:
        """How the scale stands at a time of the frames' clock."""
        observed = self._source not in ("model", "fixed")
        status = ScaleStatus.KNOWN
        if observed and self._fixed is None:
            status = self._estimate.status(stamp_ns)
        return ScaleState(
            source="fixed" if self._fixed is not None else self._source,
            status=status,
            factor=self.factor,
            spread=self._estimate.spread if observed else None,
            observations=self._estimate.observations,
            refused=self._estimate.refused,
        )

    def state_dict(self) -> dict[str, Any]:
        """A copy of what the next frame depends on, without what waits for a second pose."""
        return {
            "source": self._source,
            "fixed": self._fixed,
            "estimate": self._estimate.state_dict(),
            "last_depth_ns": self._last_depth_ns,
            "last_raw": None if self._last_raw is None else self._last_raw.copy(),
            "offset": self._offset.copy(),
            "last_factor": self._last_factor,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where ``state_dict`` was taken.

        Raises:
            ValueError: the state belongs to another source of scale.
        """
        if state["source"] != self._source:
            raise ValueError(
                f"the saved stream has its scale from {state['source']!r}, this one from "
                f"{self._source!r}; set the parameter 'scale' accordingly"
            )
        fixed, raw, last = state["fixed"], state["last_raw"], state["last_depth_ns"]
        self._fixed = None if fixed is None else float(fixed)
        self._estimate.load_state_dict(state["estimate"])
        self._last_depth_ns = None if last is None else int(last)
        self._last_raw = None if raw is None else np.array(raw)
        self._offset = np.array(state["offset"])
        self._last_factor = float(state["last_factor"])
        self._way = WayComparison()

    def _observe(self, result: StreamResult, evidence: Evidence) -> None:
        if self._source == "odometry":
            self._compare_ways(result, evidence)
        if result.depth is None or not self.needs_depth(result.stamp_ns):
            return
        self._last_depth_ns = result.stamp_ns
        ratio = None
        if self._source == "range" and evidence.points is not None:
            ratio = from_points(evidence.points, result.depth, result.intrinsics)
        elif self._source == "height" and evidence.up is not None and evidence.height is not None:
            ratio = from_ground(result.depth, result.intrinsics, evidence.up, evidence.height)
        if ratio is not None:
            self._estimate.observe(ratio, result.stamp_ns)

    def _compare_ways(self, result: StreamResult, evidence: Evidence) -> None:
        for stamp_ns, position in evidence.positions:
            self._way.add_theirs(stamp_ns, position)
        if result.pose is not None and result.pose.tracked:
            self._way.add_ours(result.stamp_ns, result.pose.translation)
        elif result.pose is not None:
            self._way.lost()
        for stamp_ns, ratio in self._way.ratios():
            self._estimate.observe(ratio, stamp_ns)

    def _scaled(self, pose: Pose, factor: float) -> Pose:
        """The pose in metres, continuous where the factor changes."""
        if self._last_raw is not None and factor != self._last_factor:
            self._offset = self._offset + (self._last_factor - factor) * self._last_raw
        self._last_raw, self._last_factor = pose.translation, factor
        place = factor * pose.translation + self._offset
        error = self._error() if self.known else pose.scale_error
        covariance = pose.covariance
        if covariance is not None:
            units = np.repeat([factor, 1.0], 3)
            covariance = covariance * np.outer(units, units)
            if self.known:
                # What the model does not know of its scale goes, what we do not know comes.
                way = factor * pose.scale_error * pose.translation
                covariance[:3, :3] += error**2 * np.outer(place, place) - np.outer(way, way)
        return dataclasses.replace(
            pose, translation=place, covariance=covariance, scale_error=error
        )

    def _error(self) -> float:
        """By which share a known factor may be wrong."""
        spread = None if self._fixed is not None else self._estimate.spread
        return _LEAST_ERROR if spread is None else max(spread, _LEAST_ERROR)
