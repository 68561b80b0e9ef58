# SPDX-License-Identifier: Apache-2.0
"""Make docs/images/messages.png: cloud, TF and path as they stand in the messages, nothing else.

    python docs/pictures/from_messages.py [BAG] [--out OUT.png]

BAG is a recording of ~/depth/points, ~/path and /tf; without it the bundled clip is played to a
node, slowly, and recorded:

    omnistream record BAG /omnistream_perception/depth/points /omnistream_perception/path /tf

Every cloud is put where TF says that its frame was at its stamp, as rviz does. If depth, pose,
frames and stamps did not belong together, the walls would not.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import matplotlib as mpl
import numpy as np
from PIL import Image
from rosbags.highlevel import AnyReader

from omnistream_ros.evaluation.demo import BUNDLED
from omnistream_ros.evaluation.live import run_live
from omnistream_ros.stream.geometry import quaternion_to_matrix, rigid

mpl.use("Agg")
import matplotlib.pyplot as plt

OUT = Path(__file__).resolve().parents[1] / "images" / "messages.png"
NODE = "/omnistream_perception"
CLOUDS = 24  # of the recording, evenly spread
SIZE = 620, 900  # rows, columns of each view
AXES = ((230, 60, 60), (60, 200, 60), (70, 110, 255))
PATH = (255, 176, 32)


class Bag:
    """The messages that matter."""

    def __init__(self, folder: Path) -> None:
        self.clouds: list[tuple[int, str, np.ndarray, np.ndarray]] = []  # stamp, frame, xyz, rgb
        self.transforms: dict[tuple[str, int], tuple[str, np.ndarray]] = {}
        self.path = np.zeros((0, 3))
        with AnyReader([folder]) as reader:
            for connection, _, data in reader.messages():
                message = reader.deserialize(data, connection.msgtype)
                if connection.topic == f"{NODE}/depth/points":
                    self.clouds.append(_cloud(message))
                elif connection.topic == f"{NODE}/path":
                    places = [pose.pose.position for pose in message.poses]
                    self.path = np.array([(p.x, p.y, p.z) for p in places])
                elif connection.topic == "/tf":
                    for t in message.transforms:
                        key = t.child_frame_id, _stamp(t.header)
                        self.transforms[key] = t.header.frame_id, _motion(t.transform)


def _stamp(header: object) -> int:
    return header.stamp.sec * 10**9 + header.stamp.nanosec  # type: ignore[attr-defined]


def _motion(t: object) -> np.ndarray:
    q, p = t.rotation, t.translation  # type: ignore[attr-defined]
    return rigid(quaternion_to_matrix(np.array([q.x, q.y, q.z, q.w])), np.array([p.x, p.y, p.z]))


def _cloud(message: object) -> tuple[int, str, np.ndarray, np.ndarray]:
    """By the offsets that the message itself tells."""
    offsets = {field.name: field.offset for field in message.fields}  # type: ignore[attr-defined]
    rows = message.data.reshape(-1, message.point_step)  # type: ignore[attr-defined]

    def column(name: str, kind: type) -> np.ndarray:
        start = offsets[name]
        return np.ascontiguousarray(rows[:, start : start + 4]).view(kind)[:, 0]

    xyz = np.stack([column(name, np.float32) for name in "xyz"], 1).astype(np.float64)
    packed = column("rgb", np.uint32)
    rgb = np.stack([packed >> 16 & 255, packed >> 8 & 255, packed & 255], 1).astype(np.uint8)
    header = message.header  # type: ignore[attr-defined]
    return _stamp(header), header.frame_id, xyz, rgb


def _scene(bag: Bag) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Points (N, 3) and colours (N, 3) in the fixed frame, and the poses of the cameras."""
    points, colours, poses = [], [], []
    for i in np.unique(np.linspace(0, len(bag.clouds) - 1, CLOUDS).round().astype(int)):
        stamp, frame, xyz, rgb = bag.clouds[i]
        known = bag.transforms.get((frame, stamp))
        if known is None:
            continue
        fixed_from_camera = known[1]
        points.append(xyz @ fixed_from_camera[:3, :3].T + fixed_from_camera[:3, 3])
        colours.append(rgb)
        poses.append(fixed_from_camera)
    return np.concatenate(points), np.concatenate(colours), poses


def _line(a: np.ndarray, b: np.ndarray, colour: tuple) -> tuple[np.ndarray, np.ndarray]:
    share = np.linspace(0, 1, 160)[:, None]
    return a + share * (b - a), np.tile(np.array(colour, np.uint8), (160, 1))


def _drawn(bag: Bag, poses: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Path and axes as points."""
    lines = [_line(a, b, PATH) for a, b in zip(bag.path[:-1], bag.path[1:], strict=True)]
    for pose in [np.eye(4), *poses[::3]]:
        for axis, colour in zip(pose[:3, :3].T, AXES, strict=True):
            lines.append(_line(pose[:3, 3], pose[:3, 3] + 0.22 * axis, colour))
    places, colours = zip(*lines, strict=True)
    return np.concatenate(places), np.concatenate(colours)


def _splat(
    canvas: np.ndarray, nearness: np.ndarray, uvz: np.ndarray, rgb: np.ndarray, size: int
) -> None:
    """Points (N, 3) of column, row and depth as squares, the nearest in front."""
    order = np.argsort(-uvz[:, 2])
    u, v = np.rint(uvz[order, :2]).astype(int).T
    z, colours = uvz[order, 2], rgb[order]
    for du in range(size):
        for dv in range(size):
            x, y = u + du, v + dv
            inside = (x >= 0) & (x < SIZE[1]) & (y >= 0) & (y < SIZE[0])
            x, y, near, colour = x[inside], y[inside], z[inside], colours[inside]
            front = near <= nearness[y, x]
            canvas[y[front], x[front]] = colour[front]
            nearness[y[front], x[front]] = near[front]


def _view(project: object, layers: list[tuple[np.ndarray, np.ndarray, int, float]]) -> np.ndarray:
    canvas = np.full((*SIZE, 3), 24, np.uint8)
    nearness = np.full(SIZE, np.inf)
    for points, colours, size, towards in layers:
        uvz = project(points)  # type: ignore[operator]
        keep = uvz[:, 2] > 0.05
        uvz[:, 2] -= towards
        _splat(canvas, nearness, uvz[keep], colours[keep], size)
    return canvas


def _behind(points: np.ndarray) -> np.ndarray:
    """From behind, above and to the right of the first camera."""
    eye, target = np.array([-2.4, -1.0, 1.9]), np.array([1.6, 0.0, -0.3])
    forward = (target - eye) / np.linalg.norm(target - eye)
    right = np.cross(forward, [0, 0, 1])
    right /= np.linalg.norm(right)
    seen = (points - eye) @ np.stack([right, np.cross(forward, right), forward], 1)
    focal = 640.0
    z = np.maximum(seen[:, 2], 1e-3)
    u, v = focal * seen[:, 0] / z + SIZE[1] / 2, focal * seen[:, 1] / z + SIZE[0] / 2
    return np.stack([u, v, seen[:, 2]], 1)


def _above(points: np.ndarray) -> np.ndarray:
    """From above, x of the fixed frame to the right, y up; 120 pixels are a metre."""
    u, v = 120 * points[:, 0] + 150, SIZE[0] / 2 - 120 * (points[:, 1] + 0.3)
    return np.stack([u, v, 10 - points[:, 2]], 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("bag", nargs="?", type=Path)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    if options.bag is not None:
        bag = Bag(options.bag)
    else:
        topics = [f"{NODE}/status", f"{NODE}/depth/points", f"{NODE}/path", "/tf"]
        with tempfile.TemporaryDirectory() as folder:
            bag = Bag(run_live(BUNDLED, Path(folder), speed=0.1, topics=topics).bag)
    points, colours, poses = _scene(bag)
    lines = _drawn(bag, poses)
    figure, views = plt.subplots(1, 2, figsize=(15, 5.6), layout="constrained")
    low = points[:, 2] < np.quantile(points[:, 2], 0.85)  # from above, without what hides the room
    titles = (
        f"{len(poses)} clouds of ~/depth/points, each placed by /tf at its own stamp",
        "the same from above; ~/path in orange, axes are frames of /tf",
    )
    for axes, title, image in zip(
        views,
        titles,
        (
            _view(_behind, [(points, colours, 2, 0.0), (*lines, 3, 0.3)]),
            _view(_above, [(points[low], colours[low], 2, 0.0), (*lines, 3, 20.0)]),
        ),
        strict=True,
    ):
        axes.imshow(image)
        axes.set_title(title, fontsize=11)
        axes.axis("off")
    figure.savefig(options.out, dpi=90)
    image = Image.open(options.out).convert("RGB").quantize(256)
    image.save(options.out, optimize=True)
    print(f"{options.out}: {len(points)} points, {len(bag.path)} poses on the path")


if __name__ == "__main__":
    main()
