# SPDX-License-Identifier: Apache-2.0
"""The pose of a stream by geometry: visual odometry on the network's own features and depth.

A few past frames are kept as keyframes (`keyframes`). Each new frame says where the places of one
of them, the reference, are now, and the motion that explains this is solved for (`motion_solver`).
When the view has changed enough, an older keyframe that looks the same way becomes the reference
again, so that a camera that comes back does not drift; where there is none, the frame becomes a
keyframe itself and is adjusted together with its neighbours (`keyframe_map`).

When a frame cannot be followed - no texture, blur, somebody in front of the lens - the pose goes on
with the last velocity, which fades, the covariance grows, and the result says so.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from torch import Tensor

from omnistream_ros.model.matching import STRIDE, MatchingHead
from omnistream_ros.stream import geometry
from omnistream_ros.stream.coarse_search import turned
from omnistream_ros.stream.frame import Intrinsics
from omnistream_ros.stream.head_pose import to_pose
from omnistream_ros.stream.keyframe_map import KeyframeMap
from omnistream_ros.stream.keyframes import Keyframe, View, near, project
from omnistream_ros.stream.motion_solver import Motion, exponential, logarithm, solve_motion
from omnistream_ros.stream.result import Pose, Tracking
from omnistream_ros.stream.room_depth import corrected, correction

# Another reference when its places have moved by this many pixels of the model image (median) ...
_REFERENCE_FLOW = 12.0
# ... or when fewer than this share of them is still in the image.
_REFERENCE_OVERLAP = 0.7
# An older keyframe is taken up again when it is clearly nearer than that.
_RETURN_SHARE = 0.7
# Lost when fewer places than this share agree on the motion,
_MIN_SUPPORT = 0.04
# or when they agree but leave it open: standard deviations of translation (share of the median
# depth) and of rotation (radians). Half of that, or twice the support, is not yet good.
_MAX_TRANSLATION_STD = 0.1
_MAX_ROTATION_STD = 0.05
_WEAK_SUPPORT = 0.15
# No other guess is tried when this share agrees; and matching is repeated when the places turn out
# to be this many cells (median) from where they were expected.
_ENOUGH_SUPPORT = 0.25
_FAR_OFF = 1.5
_WEAK_STD = 0.3
# Frames without tracking after which the old keyframes are given up.
_PATIENCE = 3
# While lost: metres and radians of uncertainty gained in one second; fading of velocity per frame.
_LOST_GROWTH = np.array([0.5, 0.5, 0.5, 1.0, 1.0, 1.0])
_VELOCITY_FADE = 0.7
# Keyframes that a frame's depth is compared with.
_COMPARED = 8
# The room is wrong as a whole by about this share, and every way through it with it: the spread of
# log scale over recordings with the weights of the package (docs/pose.md).
_SCALE_ERROR = 0.3
# Errors of rotation are larger than places that are taken for independent say, by this factor
# (benchmarks/pose_calibration.py on recordings).
_ROTATION_GROWTH = 2.4


class Odometry:
    """Poses of one stream from one matching head; feed it every frame whose pose is wanted."""

    def __init__(self, head: MatchingHead) -> None:
        self._head = head
        self._map = KeyframeMap(head)
        self._camera_from_world = np.eye(4)  # of the last frame
        self._covariance: np.ndarray = np.zeros((6, 6))
        # translation and rotation vector per second, camera axes
        self._velocity: np.ndarray = np.zeros(6)
        self._stamp_ns = 0
        self._lost_in_a_row = 0
        self.lost_frames = 0  # since the beginning of the stream

    @property
    def keyframes(self) -> list[int]:
        """The keyframes that are kept, each by a number that only grows."""
        return self._map.numbers

    def begin_epoch(self) -> None:
        """Forget the images; the pose goes on from where it was."""
        self._map.clear()
        self._velocity = np.zeros(6)
        self._lost_in_a_row = 0

    def update(
        self,
        pyramid: dict[int, Tensor],
        image: Tensor,
        depth: Callable[[], Tensor],
        camera: Intrinsics,
        stamp_ns: int,
        *,
        fallback: np.ndarray | None = None,
    ) -> Pose:
        """The pose of the next frame.

        Args:
            pyramid: trunk features by stride, (1, C, H/s, W/s).
            image: (H, W) float32 grey levels at model resolution.
            depth: gives (H, W) at model resolution, in the unit that translation shall have;
                called when the frame becomes a keyframe.
            camera: of the depth image.
            stamp_ns: of the frame; only differences matter.
            fallback: current_from_last (4, 4) by other means, for when nothing can be followed.
        """
        view = View(self._head.describe(pyramid), image)
        cells = camera.resized(camera.width // STRIDE, camera.height // STRIDE)
        seconds = max(0.0, (stamp_ns - self._stamp_ns) * 1e-9)
        self._stamp_ns = stamp_ns
        if not len(self._map):
            self._add_keyframe(view, depth(), cells)
            return self._pose(Tracking.GOOD)

        last = self._camera_from_world
        motion = self._track(view, exponential(self._velocity * seconds) @ last)
        if motion is None:
            self._hold(seconds, fallback)
            if self._lost_in_a_row >= _PATIENCE:
                self._map.clear()
                self._add_keyframe(view, depth(), cells)
            return self._pose(Tracking.LOST)
        if seconds > 1e-3:
            step = self._camera_from_world @ geometry.rigid_inverse(last)
            self._velocity = logarithm(step) / seconds
        if not self._near([self._map.reference], 1.0) and not self._return(view):
            self._add_keyframe(view, depth(), cells)
        return self._pose(self._quality(motion))

    def agreeing(self, depth: Tensor) -> Tensor:
        """Depth (H, W) predicted for the last frame, made to agree with the frames before it.

        As predicted where the camera could not be followed, see `room_depth`.
        """
        if self._lost_in_a_row:
            return depth
        keyframes = self._map.recent(_COMPARED)
        bend = correction(depth, keyframes, self._camera_from_world)
        return depth if bend is None else corrected(depth, bend)

    def state_dict(self) -> dict[str, Any]:
        """A copy of all that the next frame depends on."""
        return {
            "map": self._map.state_dict(),
            "camera_from_world": self._camera_from_world.copy(),
            "covariance": self._covariance.copy(),
            "velocity": self._velocity.copy(),
            "stamp_ns": self._stamp_ns,
            "lost_in_a_row": self._lost_in_a_row,
            "lost_frames": self.lost_frames,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where ``state_dict`` was taken."""
        self._map.load_state_dict(state["map"], self._head.log_temperature.device)
        self._camera_from_world = np.array(state["camera_from_world"])
        self._covariance = np.array(state["covariance"])
        self._velocity = np.array(state["velocity"])
        self._stamp_ns = int(state["stamp_ns"])
        self._lost_in_a_row = int(state["lost_in_a_row"])
        self.lost_frames = int(state["lost_frames"])

    def _pose(self, tracking: Tracking) -> Pose:
        world_from_camera = geometry.rigid_inverse(self._camera_from_world)
        covariance = self._covariance.copy()  # of drift; all of the way may be of the wrong size
        way = world_from_camera[:3, 3]
        covariance[:3, :3] += _SCALE_ERROR**2 * np.outer(way, way)
        covariance[:, 3:] *= _ROTATION_GROWTH
        covariance[3:] *= _ROTATION_GROWTH
        pose = to_pose(world_from_camera, covariance, tracking)
        return dataclasses.replace(pose, scale_error=_SCALE_ERROR)

    def _track(self, view: View, expected: np.ndarray) -> Motion | None:
        """Follow the reference into this frame; None, and nothing changed, when that fails."""
        key = self._map.reference
        best: Motion | None = None
        for guess in self._guesses(key, view, expected):
            motion = self._follow(key, view, guess)
            if motion is not None and (best is None or motion.support > best.support):
                best = motion
            if best is not None and best.support > _ENOUGH_SUPPORT * len(key.cells):
                break
        if best is not None:
            self._accept(key, best)
        return best

    def _guesses(self, key: Keyframe, view: View, expected: np.ndarray) -> Iterator[np.ndarray]:
        """Where to look, current_from_key: as expected; after a jerk; after a long way."""
        yield expected @ key.world_from_camera()
        yield self._camera_from_world @ key.world_from_camera()
        yield turned(key.view.descriptors, view.descriptors, key.camera)

    def _follow(self, key: Keyframe, view: View, expected: np.ndarray) -> Motion | None:
        """The motion current_from_key, or None when the places do not agree on one."""
        points = key.points()
        start = expected
        for _ in range(2):
            sightings = key.sight(self._head, view, start)
            motion = solve_motion(points, points, key.variance, sightings, key.camera, start)
            good = np.isfinite(motion.matrix).all() and motion.support > _MIN_SUPPORT * len(points)
            if not good or _openness(motion, key) > 1.0:
                return None
            if _gap(key, points, start, motion.matrix) < _FAR_OFF:
                break
            start = motion.matrix  # the windows were not around the places: look there again
        return motion

    def _accept(self, key: Keyframe, motion: Motion) -> None:
        self._camera_from_world = motion.matrix @ key.camera_from_world
        self._covariance = _world_covariance(key, motion)
        self._lost_in_a_row = 0

    def _quality(self, motion: Motion) -> Tracking:
        key = self._map.reference
        weak = motion.support < _WEAK_SUPPORT * len(key.cells) or _openness(motion, key) > _WEAK_STD
        return Tracking.WEAK if weak else Tracking.GOOD

    def _hold(self, seconds: float, fallback: np.ndarray | None) -> None:
        """Go on with the fading velocity or what is given instead, knowing less with time."""
        self._velocity = self._velocity * _VELOCITY_FADE
        step = exponential(self._velocity * seconds) if fallback is None else fallback
        self._camera_from_world = geometry.orthonormalised(step @ self._camera_from_world)
        self._covariance = self._covariance + np.diag((_LOST_GROWTH * seconds) ** 2)
        self._lost_in_a_row += 1
        self.lost_frames += 1

    def _near(self, keys: list[Keyframe], share: float) -> list[Keyframe]:
        """The keyframes that saw what the last frame sees, from about the same place."""
        overlap, flow = 1 - share * (1 - _REFERENCE_OVERLAP), share * _REFERENCE_FLOW
        return near(keys, self._camera_from_world, overlap, flow)

    def _return(self, view: View) -> bool:
        """Make an older keyframe that is near the reference, if there is one."""
        # Those not used for long first: they bind the way together.
        for key in self._near(self._map.others, _RETURN_SHARE):
            expected = self._camera_from_world @ key.world_from_camera()
            motion = self._follow(key, view, expected)
            if motion is not None:
                self._accept(key, motion)
                self._map.use(key)
                return True
        return False

    def _add_keyframe(self, view: View, depth: Tensor, cells: Intrinsics) -> None:
        """Make the last frame the reference."""
        growth = self._map.add(view, depth, cells, self._camera_from_world, self._covariance)
        self._camera_from_world = self._map.reference.camera_from_world
        self._velocity = self._velocity * np.repeat([growth, 1.0], 3)


def _gap(key: Keyframe, points: np.ndarray, a: np.ndarray, b: np.ndarray) -> float:
    """By how many cells two motions differ in where they take the points (median)."""
    places = (project(points, key.camera, motion)[0] for motion in (a, b))
    distance = np.linalg.norm(np.subtract(*places), axis=1)
    distance = distance[np.isfinite(distance)]
    return float(np.median(distance)) if distance.size else np.inf


def _openness(motion: Motion, key: Keyframe) -> float:
    """How far the motion is left open by what was seen; 1 is the limit of use."""
    spread = np.sqrt(np.diag(motion.covariance))
    depth = float(np.median(key.points()[:, 2]))
    return max(
        float(spread[:3].max()) / (_MAX_TRANSLATION_STD * depth),
        float(spread[3:].max()) / _MAX_ROTATION_STD,
    )


def _world_covariance(key: Keyframe, motion: Motion) -> np.ndarray:
    """Covariance of world_from_current from that of the keyframe and that of the motion.

    A motion perturbed on the left by (v, w) moves the camera's centre by -R^T v and turns it by
    -R^T w, with R the rotation current_from_world; an error of the keyframe's rotation also swings
    the current position around the keyframe.
    """
    world_from_current = geometry.rigid_inverse(motion.matrix @ key.camera_from_world)
    rotation = np.kron(np.eye(2), world_from_current[:3, :3])  # (6, 6) block diagonal
    arm = world_from_current[:3, 3] - key.world_from_camera()[:3, 3]
    swing = np.eye(6)
    swing[:3, 3:] = -geometry.cross(arm)
    total = swing @ key.covariance @ swing.T + rotation @ motion.covariance @ rotation.T
    return 0.5 * (total + total.T)
