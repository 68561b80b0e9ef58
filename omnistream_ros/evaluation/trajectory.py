# SPDX-License-Identifier: Apache-2.0
"""Camera trajectories: poses with stamps, interpolation, association in time, TUM files.

A pose is camera-to-world: ``x_world = R(q) x_camera + t``, the camera in optical axes (REP-103: x
right, y down, z forward). Quaternions are (x, y, z, w), as in ROS and in TUM files.
"""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path

import numpy as np

from omnistream_ros.evaluation.rotations import quaternions_of, rotation_matrices

#: How far a stored quaternion may be from unit length and still be taken for a rounded unit one.
UNIT_TOLERANCE = 1e-2

_DECIMAL = re.compile(r"([+-]?)([0-9]+)(?:\.([0-9]*))?")


class TrajectoryError(ValueError):
    """Poses that cannot be what they claim to be; the message names the first wrong one."""


@dataclasses.dataclass(frozen=True, eq=False)
class Trajectory:
    """Poses in order of time.

    Attributes:
        stamps_ns: (N,) int64, strictly increasing.
        translations: (N, 3) float64, metres.
        quaternions: (N, 4) float64, (x, y, z, w), unit length.

    Raises:
        TrajectoryError: wrong shapes, a number that is not finite, a quaternion whose length is
            more than ``UNIT_TOLERANCE`` from 1 (smaller deviations are rounding, and normalised),
            stamps that do not increase.
    """

    stamps_ns: np.ndarray
    translations: np.ndarray
    quaternions: np.ndarray

    def __post_init__(self) -> None:
        stamps = np.asarray(self.stamps_ns)
        if stamps.ndim != 1 or (stamps.size and not np.issubdtype(stamps.dtype, np.integer)):
            raise TrajectoryError(
                f"stamps must be (N,) integers (ns), got {stamps.dtype} {stamps.shape}"
            )
        count = stamps.shape[0]
        translations = np.asarray(self.translations, dtype=np.float64)
        quaternions = np.asarray(self.quaternions, dtype=np.float64)
        if translations.shape != (count, 3) or quaternions.shape != (count, 4):
            raise TrajectoryError(
                f"{count} stamps need translations ({count}, 3) and quaternions ({count}, 4), "
                f"got {translations.shape} and {quaternions.shape}"
            )
        finite = np.isfinite(translations).all(axis=1) & np.isfinite(quaternions).all(axis=1)
        if not finite.all():
            index = int(np.argmin(finite))
            raise TrajectoryError(
                f"pose {index} (stamp {format_stamp(stamps[index])}) has a number that is not "
                f"finite: {translations[index]} {quaternions[index]}"
            )
        norms = np.linalg.norm(quaternions, axis=1)
        unit = np.abs(norms - 1.0) <= UNIT_TOLERANCE
        if not unit.all():
            index = int(np.argmin(unit))
            raise TrajectoryError(
                f"pose {index} (stamp {format_stamp(stamps[index])}) has a quaternion of length "
                f"{norms[index]:.4g}; expected 1 (order x, y, z, w)"
            )
        if count > 1 and not (np.diff(stamps) > 0).all():
            index = int(np.argmin(np.diff(stamps) > 0)) + 1
            raise TrajectoryError(
                f"stamps must increase: pose {index} is at {format_stamp(stamps[index])}, "
                f"the one before at {format_stamp(stamps[index - 1])}"
            )
        object.__setattr__(self, "stamps_ns", stamps.astype(np.int64))
        object.__setattr__(self, "translations", translations)
        object.__setattr__(self, "quaternions", quaternions / norms[:, None])

    def __len__(self) -> int:
        return int(self.stamps_ns.shape[0])

    def __getitem__(self, index: slice | np.ndarray) -> Trajectory:
        """The poses of a slice, a mask or increasing indices."""
        return Trajectory(self.stamps_ns[index], self.translations[index], self.quaternions[index])

    def rotations(self) -> np.ndarray:
        """Rotation matrices, (N, 3, 3) float64."""
        return rotation_matrices(self.quaternions)

    def matrices(self) -> np.ndarray:
        """Homogeneous camera-to-world matrices, (N, 4, 4) float64."""
        out = np.tile(np.eye(4), (len(self), 1, 1))
        out[:, :3, :3] = self.rotations()
        out[:, :3, 3] = self.translations
        return out

    def path_length(self) -> float:
        """Metres travelled, as the sum of the straight steps."""
        return float(np.linalg.norm(np.diff(self.translations, axis=0), axis=1).sum())

    @classmethod
    def from_matrices(cls, stamps_ns: np.ndarray, matrices: np.ndarray) -> Trajectory:
        """From (N, 4, 4) camera-to-world matrices; the rotation parts must be orthonormal.

        Raises:
            TrajectoryError: a rotation part is not a rotation within ``UNIT_TOLERANCE``.
        """
        matrices = np.asarray(matrices, dtype=np.float64)
        if matrices.ndim != 3 or matrices.shape[1:] not in ((4, 4), (3, 4)):
            raise TrajectoryError(f"poses must be (N, 4, 4) matrices, got {matrices.shape}")
        rotations = matrices[:, :3, :3]
        if not np.isfinite(matrices).all():
            index = int(np.argmin(np.isfinite(matrices).all(axis=(1, 2))))
            raise TrajectoryError(f"pose {index} has a number that is not finite")
        error = np.abs(rotations @ rotations.transpose(0, 2, 1) - np.eye(3)).max(axis=(1, 2))
        bad = (error > UNIT_TOLERANCE) | (np.linalg.det(rotations) < 0)
        if bad.any():
            index = int(np.argmax(bad))
            raise TrajectoryError(f"pose {index} is not a rigid motion: {matrices[index].tolist()}")
        return cls(stamps_ns, matrices[:, :3, 3], quaternions_of(rotations))


def interpolate(trajectory: Trajectory, stamps_ns: np.ndarray) -> Trajectory:
    """The trajectory at other instants: straight lines between positions, slerp between rotations.

    Raises:
        TrajectoryError: an instant lies outside the trajectory (nothing is extrapolated).
    """
    stamps = np.asarray(stamps_ns, dtype=np.int64)
    if len(trajectory) == 0 or (
        stamps.size
        and (stamps[0] < trajectory.stamps_ns[0] or stamps[-1] > trajectory.stamps_ns[-1])
    ):
        raise TrajectoryError("cannot interpolate outside the span of a trajectory")
    if len(trajectory) == 1:
        repeat = np.zeros(len(stamps), dtype=np.int64)
        return Trajectory(stamps, trajectory.translations[repeat], trajectory.quaternions[repeat])
    right = np.clip(np.searchsorted(trajectory.stamps_ns, stamps), 1, len(trajectory) - 1)
    left = right - 1
    span = (trajectory.stamps_ns[right] - trajectory.stamps_ns[left]).astype(np.float64)
    u = ((stamps - trajectory.stamps_ns[left]).astype(np.float64) / span)[:, None]
    translations = (1 - u) * trajectory.translations[left] + u * trajectory.translations[right]
    a, b = trajectory.quaternions[left], trajectory.quaternions[right]
    dot = (a * b).sum(axis=1, keepdims=True)
    b = np.where(dot < 0, -b, b)  # the shorter way round
    theta = np.arccos(np.clip(np.abs(dot), 0.0, 1.0))
    sine = np.sin(theta)
    near = sine < 1e-9  # lerp, which is the limit
    safe = np.where(near, 1.0, sine)
    wa = np.where(near, 1 - u, np.sin((1 - u) * theta) / safe)
    wb = np.where(near, u, np.sin(u * theta) / safe)
    quaternions = wa * a + wb * b
    quaternions /= np.linalg.norm(quaternions, axis=1, keepdims=True)
    return Trajectory(stamps, translations, quaternions)


# -- association ----------------------------------------------------------------------------------


def associate(
    first_ns: np.ndarray, second_ns: np.ndarray, tolerance_ns: int
) -> tuple[np.ndarray, np.ndarray]:
    """Pair two increasing lists of stamps: closest pairs first, each stamp used once.

    Args:
        first_ns, second_ns: (N,) and (M,) int64, increasing.
        tolerance_ns: the largest difference of a pair, inclusive.

    Returns:
        Two (K,) int64 index arrays, both increasing.
    """
    first = np.asarray(first_ns, dtype=np.int64)
    second = np.asarray(second_ns, dtype=np.int64)
    if tolerance_ns < 0:
        raise ValueError(f"tolerance must not be negative, got {tolerance_ns} ns")
    low = np.searchsorted(second, first - tolerance_ns, side="left")
    high = np.searchsorted(second, first + tolerance_ns, side="right")
    candidates = sorted(
        (abs(int(first[i]) - int(second[j])), i, j)
        for i in range(len(first))
        for j in range(int(low[i]), int(high[i]))
    )
    used_first: set[int] = set()
    used_second: set[int] = set()
    pairs = []
    for _, i, j in candidates:
        if i not in used_first and j not in used_second:
            used_first.add(i)
            used_second.add(j)
            pairs.append((i, j))
    # Sorting both sides uncrosses pairs, which never makes the largest difference larger.
    pairs.sort()
    left = np.array([p[0] for p in pairs], dtype=np.int64)
    right = np.array([p[1] for p in pairs], dtype=np.int64)
    return left, np.sort(right)


# -- TUM files ------------------------------------------------------------------------------------


def format_stamp(stamp_ns: int) -> str:
    """Nanoseconds as seconds with nine decimals, exactly (a float would lose the last digits)."""
    sign = "-" if stamp_ns < 0 else ""
    seconds, rest = divmod(abs(int(stamp_ns)), 10**9)
    return f"{sign}{seconds}.{rest:09d}"


def parse_stamp(text: str) -> int:
    """Seconds as written in a file (``12``, ``12.5``, ``1.2e3``) to nanoseconds, exactly.

    Raises:
        ValueError: not a finite number.
    """
    plain = _DECIMAL.fullmatch(text)
    if plain:
        sign, whole, fraction = plain.groups(default="")
        nanoseconds = int(whole) * 10**9 + int((fraction + "0" * 9)[:9])
        return -nanoseconds if sign == "-" else nanoseconds
    seconds = float(text)
    if not math.isfinite(seconds):
        raise ValueError(f"not a finite number of seconds: {text!r}")
    return round(seconds * 1e9)


def write_tum(path: str | Path, trajectory: Trajectory) -> None:
    """Write ``timestamp tx ty tz qx qy qz qw`` lines, readable by evo and the TUM tools."""
    with Path(path).open("w", encoding="ascii") as file:
        file.write("# timestamp tx ty tz qx qy qz qw (camera to world, optical axes)\n")
        for stamp, t, q in zip(
            trajectory.stamps_ns, trajectory.translations, trajectory.quaternions, strict=True
        ):
            numbers = " ".join(f"{value:.12g}" for value in (*t, *q))
            file.write(f"{format_stamp(stamp)} {numbers}\n")


def read_tum(path: str | Path) -> Trajectory:
    """Read a TUM trajectory file.

    Raises:
        TrajectoryError: a line that is not eight numbers, or poses that `Trajectory` refuses; the
            message names the file and the line.
        OSError: the file cannot be read.
    """
    path = Path(path)
    stamps, rows = [], []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise TrajectoryError(f"{path} is no text: {error}") from None
    for number, line in enumerate(lines, start=1):
        fields = line.split("#", 1)[0].replace(",", " ").split()
        if not fields:
            continue
        try:
            if len(fields) != 8:
                raise ValueError(f"{len(fields)} fields")
            stamps.append(parse_stamp(fields[0]))
            rows.append([float(field) for field in fields[1:]])
        except ValueError as error:
            raise TrajectoryError(
                f"{path}:{number}: expected 'timestamp tx ty tz qx qy qz qw', got {line!r}: {error}"
            ) from None
    poses = np.array(rows, dtype=np.float64).reshape(-1, 7)
    try:
        return Trajectory(np.array(stamps, dtype=np.int64), poses[:, :3], poses[:, 3:])
    except TrajectoryError as error:
        raise TrajectoryError(f"{path}: {error}") from None
