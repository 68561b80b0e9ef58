# SPDX-License-Identifier: Apache-2.0
"""Rendered clips as recordings: a rosbag2 with colour, calibration, true depth and true pose.

Topics: /camera/image_raw/compressed (JPEG), /camera/camera_info,
/camera/depth/image_raw/compressedDepth (16UC1 millimetres as PNG, half the size),
/camera/depth/camera_info, /tf (world to the camera's optical frame). Beside the bag lies
ATTRIBUTION.txt for the furniture it shows.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

from omnistream_ros.evaluation.rotations import quaternions_of
from omnistream_ros.stream.compressed_images import encode_depth
from omnistream_ros.training.assets import FurnitureLibrary, attribution
from omnistream_ros.training.camera_path import make_path
from omnistream_ros.training.clips import RenderedClip, pinhole
from omnistream_ros.training.render import Renderer
from omnistream_ros.training.scenes import SceneMaker
from omnistream_ros.training.sensor import Sensor, expose

FRAME = "camera_optical_frame"
WORLD = "world"
_START_S = 1_700_000_000  # recordings of the same clip are the same bytes
_BAG_VERSION: Literal[9] = 9
_DEPTH_SHARE = 2  # depth has half the width and height of colour


@dataclass(frozen=True)
class ClipSettings:
    """What to render: `kind` of room and `motion` None leave the choice to the seed.

    width and height in pixels, even; fov horizontal in degrees; `pictures` shows pictures
    installed on this machine on the walls (their licences are the machine's, so not by default).
    """

    seed: int
    kind: str | None = None
    motion: str | None = None
    seconds: float = 6.0
    rate: float = 15.0
    width: int = 480
    height: int = 360
    fov: float = 70.0
    pictures: bool = False

    def __post_init__(self) -> None:
        if self.seconds * self.rate < 1.5 or not 1 <= self.rate <= 120:
            raise ValueError(
                "expected at least two frames at 1 to 120 Hz, "
                f"got {self.seconds} s at {self.rate} Hz"
            )
        if min(self.width, self.height) < 32 or self.width % 2 or self.height % 2:
            raise ValueError(
                f"expected an even size of at least 32x32 pixels, got {self.width}x{self.height}"
            )
        if not 20 <= self.fov <= 120:
            raise ValueError(f"expected a field of view of 20 to 120 degrees, got {self.fov}")


def render_clip(settings: ClipSettings, library: FurnitureLibrary | None = None) -> RenderedClip:
    """Render a clip with a clean sensor; equal settings give equal clips.

    Raises AssetError, RenderError or PathError, each saying what to do.
    """
    maker = SceneMaker(library or FurnitureLibrary(), settings.pictures)
    scene = maker.make(settings.seed, settings.kind)
    rng = np.random.default_rng(np.random.SeedSequence([settings.seed, 2]))
    frames = round(settings.seconds * settings.rate)
    path = make_path(scene, rng, frames, settings.rate, settings.motion)
    camera = pinhole(settings.width, settings.height, settings.fov)
    renderer = Renderer(settings.width, settings.height)
    try:
        renderer.load(maker.stage(scene))
        views = [renderer.view(pose, camera) for pose in path.poses]
    finally:
        renderer.close()
    sensor = Sensor(shutter=0.2, shot=0.003, read=0.002, vignette=0.1)
    rgb = expose(views, path.poses, camera, sensor, rng)
    depth = np.stack([view.depth for view in views])
    return RenderedClip(scene, (path.motion,), rgb, depth, path.poses, camera, path.stamps)


def write_recording(clip: RenderedClip, folder: Path, credits: str, quality: int = 76) -> None:
    """Write a clip as a rosbag2 folder (mcap) with attribution and description beside it.

    Raises FileExistsError if the folder exists.
    """
    if folder.exists():
        raise FileExistsError(f"{folder} exists already: remove it or choose another folder")
    try:
        _write_bag(clip, folder, quality)
        (folder / "ATTRIBUTION.txt").write_text(credits)
        (folder / "scene.json").write_text(json.dumps(clip.info(), indent=1) + "\n")
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)  # never a half-written recording
        raise


def render_recording(settings: ClipSettings, folder: Path) -> RenderedClip:
    """Render a clip and write it as a recording; returns the clip."""
    if folder.exists():
        raise FileExistsError(f"{folder} exists already: remove it or choose another folder")
    library = FurnitureLibrary()
    clip = render_clip(settings, library)
    used = [library.assets[i.key] for i in clip.scene.items if i.key in library.assets]
    write_recording(clip, folder, attribution(used))
    return clip


def _write_bag(clip: RenderedClip, folder: Path, quality: int) -> None:
    store = get_typestore(Stores.LATEST)
    types: Any = store.types

    def time(stamp_ns: int) -> Any:
        return types["builtin_interfaces/msg/Time"](sec=stamp_ns // 10**9, nanosec=stamp_ns % 10**9)

    def header(stamp_ns: int, frame: str) -> Any:
        return types["std_msgs/msg/Header"](stamp=time(stamp_ns), frame_id=frame)

    def calibration(stamp_ns: int, share: int) -> Any:
        fx, fy, cx, cy = clip.intrinsics
        height, width = clip.depth.shape[1] // share, clip.depth.shape[2] // share
        # Pixel centres are at integers: halving the size maps c to (c + 0.5) / 2 - 0.5.
        cx, cy = (cx + 0.5) / share - 0.5, (cy + 0.5) / share - 0.5
        fx, fy = fx / share, fy / share
        return types["sensor_msgs/msg/CameraInfo"](
            header=header(stamp_ns, FRAME),
            height=height,
            width=width,
            distortion_model="plumb_bob",
            d=np.zeros(5),
            k=np.array([fx, 0, cx, 0, fy, cy, 0, 0, 1], np.float64),
            r=np.eye(3).reshape(9),
            p=np.array([fx, 0, cx, 0, 0, fy, cy, 0, 0, 0, 1, 0], np.float64),
            binning_x=0,
            binning_y=0,
            roi=types["sensor_msgs/msg/RegionOfInterest"](0, 0, 0, 0, False),
        )

    def compressed(stamp_ns: int, form: str, data: bytes) -> Any:
        return types["sensor_msgs/msg/CompressedImage"](
            header(stamp_ns, FRAME), form, np.frombuffer(data, np.uint8)
        )

    with Writer(folder, version=_BAG_VERSION, storage_plugin=StoragePlugin.MCAP) as bag:
        names = {
            "/camera/image_raw/compressed": "sensor_msgs/msg/CompressedImage",
            "/camera/camera_info": "sensor_msgs/msg/CameraInfo",
            "/camera/depth/image_raw/compressedDepth": "sensor_msgs/msg/CompressedImage",
            "/camera/depth/camera_info": "sensor_msgs/msg/CameraInfo",
            "/tf": "tf2_msgs/msg/TFMessage",
        }
        topics = {
            n: (bag.add_connection(n, kind, typestore=store), kind) for n, kind in names.items()
        }
        rotations = quaternions_of(clip.poses[:, :3, :3])
        for i, seconds in enumerate(clip.stamps):
            stamp = _START_S * 10**9 + round(float(seconds) * 1e9)
            position, rotation = clip.poses[i, :3, 3], rotations[i]
            transform = types["geometry_msgs/msg/TransformStamped"](
                header(stamp, WORLD),
                FRAME,
                types["geometry_msgs/msg/Transform"](
                    types["geometry_msgs/msg/Vector3"](*map(float, position)),
                    types["geometry_msgs/msg/Quaternion"](*map(float, rotation)),
                ),
            )
            colour = _encode(".jpg", clip.rgb[i, ..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
            messages = (
                types["tf2_msgs/msg/TFMessage"]([transform]),
                calibration(stamp, 1),
                calibration(stamp, _DEPTH_SHARE),
                compressed(stamp, "rgb8; jpeg compressed bgr8", colour),
                compressed(stamp, "16UC1; compressedDepth png", _coded_depth(clip.depth[i])),
            )
            order = (
                "/tf",
                "/camera/camera_info",
                "/camera/depth/camera_info",
                "/camera/image_raw/compressed",
                "/camera/depth/image_raw/compressedDepth",
            )
            for name, message in zip(order, messages, strict=True):
                connection, kind = topics[name]
                bag.write(connection, stamp, store.serialize_cdr(message, kind))


def _coded_depth(depth: np.ndarray) -> bytes:
    """Depth (H, W) metres at half the size, as a compressed image of millimetres, 0 unknown."""
    height, width = depth.shape
    blocks = depth.reshape(height // 2, 2, width // 2, 2).transpose(0, 2, 1, 3)
    blocks = np.sort(blocks.reshape(height // 2, width // 2, 4), axis=-1)
    # Over a plane the mean of inverse depth is exact; over an edge keep to the nearer side.
    flat = blocks[..., 3] < 1.03 * blocks[..., 0]
    small = np.where(flat, 1 / (1 / blocks).mean(axis=-1), blocks[..., 1])
    millimetres = np.round(small * 1000)
    millimetres[millimetres > 65535] = 0
    return encode_depth(millimetres.astype(np.uint16), level=9)


def _encode(suffix: str, image: np.ndarray, options: list[int]) -> bytes:
    done, data = cv2.imencode(suffix, image, options)
    if not done:
        raise ValueError(f"OpenCV cannot write {suffix} images here")
    return data.tobytes()
