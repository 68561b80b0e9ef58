# SPDX-License-Identifier: Apache-2.0
"""The parameters of ``omnistream_perception``; config/omnistream.yaml lists the same ones."""

from __future__ import annotations

import dataclasses
import functools
import re

from omnistream_ros.model.cache_policy import POLICIES, Policy, make_policy
from omnistream_ros.nodes.image_input import QOS_PROFILES
from omnistream_ros.nodes.output_messages import DEPTH_ENCODINGS
from omnistream_ros.nodes.output_topic import MODES
from omnistream_ros.nodes.outputs import OUTPUTS
from omnistream_ros.nodes.parameters import Change, option
from omnistream_ros.nodes.transports import TRANSPORTS
from omnistream_ros.stream.engines import ENGINES
from omnistream_ros.stream.metric_scale import SCALE_SOURCES
from omnistream_ros.stream.result import FeatureKey, FeatureKind

_CONFIGURE = Change.UNCONFIGURED


def parse_feature(text: str) -> FeatureKey:
    """A feature as people write it: ``layer:kind`` or ``layer:kind:normed``.

    Raises:
        ValueError: the text has another form; the message shows the right one.
    """
    kinds = "|".join(kind.value for kind in FeatureKind)
    match = re.fullmatch(rf"(-?\d{{1,3}}):({kinds})(:normed)?", text)
    if match is None:
        raise ValueError(
            f"feature {text!r} must be LAYER:KIND or LAYER:KIND:normed, LAYER a block from 0 or "
            f"from -1 backwards, KIND one of {kinds.replace('|', ', ')}; for example "
            "-1:patch:normed"
        )
    return FeatureKey(int(match[1]), FeatureKind(match[2]), match[3] is not None)


def _check_features(texts: tuple[str, ...]) -> None:
    keys = [parse_feature(text) for text in texts]
    if len(set(keys)) < len(keys):
        raise ValueError("a feature is listed twice")


def check_cameras(names: tuple[str, ...]) -> None:
    """ValueError for names that cannot be parts of topics and parameters, or stand twice."""
    for name in names:
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name) or "__" in name:
            raise ValueError(
                f"camera {name!r} must be letters, digits and single '_', a letter first: it "
                "becomes part of topics and parameters"
            )
    if len(set(names)) < len(names):
        raise ValueError("a camera is listed twice")


def _check_device(text: str) -> None:
    if not re.fullmatch(r"auto|cpu|cuda(:\d{1,2})?", text):
        raise ValueError(f"must be auto, cpu, cuda or cuda:N, got {text!r}")


def _check_frame(text: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_/.-]*", text):
        raise ValueError(f"must be the name of a tf frame without a leading '/', got {text!r}")


def _check_not_empty(text: str) -> None:
    if not text:
        raise ValueError("must not be empty")


@dataclasses.dataclass(frozen=True)
class PerceptionParameters:
    """Values of all parameters; ROS names are the names of the fields."""

    autostart: bool = option(
        False, "Configure and activate when the process starts.", change=Change.NEVER
    )
    bond_heartbeat_period: float = option(
        0.25,
        "Seconds between heartbeats for nav2's lifecycle manager while the node is active, where "
        "the package bond is installed; 0: none.",
        low=0.0,
        high=10.0,
        change=_CONFIGURE,
    )
    watchdog_timeout: float = option(
        0.0,
        "Seconds of work on one image after which the process ends with status 70, so that it is "
        "started again; 0: never.",
        low=0.0,
        high=3600.0,
        change=Change.ANY_TIME,
    )
    diagnostics_period: float = option(
        1.0, "Seconds between messages on /diagnostics.", low=0.1, high=60.0, change=Change.NEVER
    )

    cameras: tuple[str, ...] = option(
        (),
        "Names of the cameras, each with topics NAME/image and ~/NAME/depth/image (and so on) and "
        "parameters NAME.resolution (and so on); empty: one camera without a name.",
        check=check_cameras,
        change=_CONFIGURE,
    )
    pose_camera: str = option(
        "",
        "The one of several cameras whose pose is published on /tf; empty: the first.",
        change=_CONFIGURE,
    )
    batching: str = option(
        "auto",
        "Whether several cameras share a step of the network: always, never, auto (where it is "
        "faster).",
        choices=("auto", "always", "never"),
        change=_CONFIGURE,
    )

    model: str = option(
        "omnistream-nano",
        "Name of a model of this package, a safetensors file, or a folder with config.json and "
        "model.safetensors.",
        check=_check_not_empty,
        change=_CONFIGURE,
    )
    device: str = option(
        "auto",
        "Where the model runs: cpu, cuda, cuda:N; auto takes a GPU if there is one.",
        check=_check_device,
        change=_CONFIGURE,
    )
    precision: str = option(
        "float32",
        "Number format of the matrix products.",
        choices=("float32", "bfloat16", "float16"),
        change=_CONFIGURE,
    )
    engine: str = option(
        "default",
        "What runs the model: eager (torch), fast (CPU: packed weights and our own kernel), "
        "compiled (torch), onnx, tensorrt (ONNX Runtime), default (on a CPU fast, where its "
        "results are those of eager to 0.1 %, else eager), auto (the fastest of this machine; it "
        "measures the first time, which takes minutes).",
        choices=ENGINES,
        change=_CONFIGURE,
    )
    engine_file: str = option(
        "",
        "For onnx and tensorrt: a file written by `omnistream export`; empty: exported once and "
        "kept in the user's cache folder.",
        change=_CONFIGURE,
    )
    image_width: int = option(
        640,
        "Width of the camera's images, for which engines are prepared; only the ratio to the "
        "height matters.",
        low=16,
        high=16384,
        change=_CONFIGURE,
    )
    image_height: int = option(
        480, "Height of the camera's images.", low=16, high=16384, change=_CONFIGURE
    )
    threads: int = option(
        0,
        "CPU threads of the model; 0 leaves it to PyTorch (one per core).",
        low=0,
        high=256,
        change=_CONFIGURE,
    )
    memory: str = option(
        "window",
        "What the model sees of the past: window (the first and the most recent frames), full "
        "(every frame until `window` are seen, then a new epoch), window+memory (between first and "
        "recent frames, keyframes in reduced resolution).",
        choices=POLICIES,
        change=_CONFIGURE,
    )
    window: int = option(
        16,
        "Recent frames that the model sees, the present one included.",
        low=1,
        high=512,
        change=_CONFIGURE,
    )
    sink: int = option(
        1,
        "First frames of an epoch that stay visible for ever.",
        low=0,
        high=16,
        change=_CONFIGURE,
    )
    keyframes: int = option(
        16,
        "Frames between sink and window that are remembered; for memory: window+memory.",
        low=1,
        high=256,
        change=_CONFIGURE,
    )
    keyframe_cell: int = option(
        2,
        "Patches along each side of a square of which a keyframe remembers the mean.",
        low=1,
        high=16,
        change=_CONFIGURE,
    )
    cache_megabytes: float = option(
        0.0,
        "Budget for the memory of the past of all cameras, 10^6 bytes: the window is made as short "
        "as it wants; 0: as long as it says.",
        low=0.0,
        high=1e6,
        change=_CONFIGURE,
    )
    max_gap: float = option(
        2.0,
        "Seconds between two images after which a new epoch begins.",
        low=0.01,
        high=86400.0,
        change=_CONFIGURE,
    )
    resolution: str = option(
        "model",
        "Size of the depth image: model (as computed) or source (as the camera image).",
        choices=("model", "source"),
        change=_CONFIGURE,
        own=True,
    )
    pose: str = option(
        "auto",
        "Where the pose comes from: geometric (matching and a solver), head (the network's camera "
        "head), fused (geometric, the head where nothing can be followed), auto (geometric where "
        "the model can).",
        choices=("auto", "geometric", "fused", "head"),
        change=_CONFIGURE,
    )
    output_depth: str = option(
        "lazy",
        "~/depth/image and its camera_info: lazy (computed and sent while somebody subscribes), "
        "always, or never (there is no such topic).",
        choices=MODES,
        change=_CONFIGURE,
        own=True,
    )
    output_confidence: str = option(
        "lazy",
        "~/depth/confidence: lazy, always or never; see output_depth.",
        choices=MODES,
        change=_CONFIGURE,
        own=True,
    )
    output_image_color: str = option(
        "lazy",
        "~/depth/image_color: lazy, always or never; see output_depth.",
        choices=MODES,
        change=_CONFIGURE,
        own=True,
    )
    output_points: str = option(
        "lazy",
        "~/depth/points: lazy, always or never; see output_depth.",
        choices=MODES,
        change=_CONFIGURE,
        own=True,
    )
    output_odometry: str = option(
        "lazy",
        "~/odometry: lazy, always or never; see output_depth.",
        choices=MODES,
        change=_CONFIGURE,
        own=True,
    )
    output_path: str = option(
        "lazy",
        "~/path: lazy, always or never; see output_depth.",
        choices=MODES,
        change=_CONFIGURE,
        own=True,
    )
    output_features: str = option(
        "lazy",
        "~/features: lazy, always or never; see output_depth.",
        choices=MODES,
        change=_CONFIGURE,
        own=True,
    )
    feature_dtype: str = option(
        "float32",
        "Number format of the tensors on ~/features.",
        choices=("float32", "float16", "bfloat16"),
        change=Change.ANY_TIME,
        own=True,
    )
    features: tuple[str, ...] = option(
        ("-1:patch:normed",),
        'Feature tensors on ~/features, each LAYER:KIND or LAYER:KIND:normed; [""] for none.',
        check=_check_features,
        change=_CONFIGURE,
        own=True,
    )

    scale: str = option(
        "model",
        "Where the scale of depth and pose comes from: model, fixed (scale_factor), height (of the "
        "camera above the ground), odometry (topics scale/odometry, scale/pose), range (topics "
        "scale/scan, scale/depth).",
        choices=SCALE_SOURCES,
        change=_CONFIGURE,
        own=True,
    )
    scale_factor: float = option(
        1.0,
        "Metres in one unit of the model; for scale: fixed.",
        low=0.001,
        high=1000.0,
        change=_CONFIGURE,
        own=True,
    )
    camera_height: float = option(
        0.0,
        "Metres from the ground to the camera, for scale: height; 0: its height above base_frame.",
        low=0.0,
        high=1000.0,
        change=Change.ANY_TIME,
        own=True,
    )
    state_directory: str = option(
        "",
        "Folder of the services save_state and restore_state; empty: omnistream in $ROS_HOME or "
        "~/.ros.",
        change=Change.ANY_TIME,
    )

    stream_id: str = option(
        "",
        "Name of the stream in messages, with /NAME for each of several cameras; empty: the node's "
        "full name.",
        change=_CONFIGURE,
    )
    odom_frame: str = option(
        "odom",
        "Fixed frame of the odometry, x forward, z up (REP-105).",
        check=_check_frame,
        change=_CONFIGURE,
    )
    base_frame: str = option(
        "base_link",
        "Frame of the robot that moves in odom_frame, if /tf_static connects it with the camera.",
        check=_check_frame,
        change=_CONFIGURE,
    )
    input_transport: str = option(
        "raw",
        "Form of the images: raw (sensor_msgs/Image) or compressed (JPEG or PNG, on the topic with "
        "/compressed behind its name).",
        choices=tuple(TRANSPORTS),
        change=_CONFIGURE,
        own=True,
    )
    image_qos: str = option(
        "sensor_data",
        "What is asked of publishers of images: sensor_data (best effort: matches every "
        "publisher) or reliable (what is lost is sent again).",
        choices=tuple(QOS_PROFILES),
        change=_CONFIGURE,
        own=True,
    )
    stamps: str = option(
        "header",
        "Time of an image: header (when it was exposed, as its driver says), or receipt (for "
        "drivers that set no stamp).",
        choices=("header", "receipt"),
        change=Change.ANY_TIME,
        own=True,
    )
    rectify: bool = option(
        True,
        "Take the distortion that camera_info tells out of images that are not rectified, where "
        "the model runs; depth and all else are then of the undistorted image.",
        change=_CONFIGURE,
        own=True,
    )
    rectified: bool = option(
        False,
        "The images are undistorted (image_rect): camera_info's P holds instead of K and D.",
        change=_CONFIGURE,
        own=True,
    )

    tf_inverted: bool = option(
        False,
        "Publish base_frame -> odom_frame instead, for a base that must keep another parent.",
        change=_CONFIGURE,
    )
    publish_tf: bool = option(
        True,
        "Publish the pose on /tf, unless a frame would get two parents.",
        change=Change.ANY_TIME,
    )
    depth_encoding: str = option(
        "32FC1",
        "Depth image: 32FC1 (metres, NaN unknown) or 16UC1 (millimetres, 0 unknown).",
        choices=DEPTH_ENCODINGS,
        change=Change.ANY_TIME,
        own=True,
    )
    points_stride: int = option(
        1,
        "Every n-th pixel in both directions becomes a point of ~/depth/points.",
        low=1,
        high=64,
        change=Change.ANY_TIME,
        own=True,
    )
    points_max_range: float = option(
        100.0,
        "Metres along the optical axis up to which there are points.",
        low=0.1,
        high=1000.0,
        change=Change.ANY_TIME,
        own=True,
    )
    points_min_confidence: float = option(
        1.0,
        "Confidence of the network, from 1, that a point must have.",
        low=1.0,
        high=1000000.0,
        change=Change.ANY_TIME,
        own=True,
    )
    points_organized: bool = option(
        False,
        "Keep the shape of the image in ~/depth/points, NaN where a point is left out.",
        change=Change.ANY_TIME,
        own=True,
    )
    path_length: int = option(
        1000,
        "Poses on ~/path at most, one every 2 cm; the oldest are forgotten.",
        low=1,
        high=100000,
        change=Change.ANY_TIME,
        own=True,
    )
    camera_info_timeout: float = option(
        1.0,
        "Seconds that the first image waits for its camera_info.",
        low=0.0,
        high=60.0,
        change=Change.ANY_TIME,
        own=True,
    )
    source_timeout: float = option(
        1.0,
        "Seconds of silence of the present camera after which images of another size or frame "
        "are accepted.",
        low=0.0,
        high=60.0,
        change=Change.ANY_TIME,
        own=True,
    )
    target_rate: float = option(
        0.0,
        "Images per second that have to be processed; fewer are a warning in /diagnostics. 0: any.",
        low=0.0,
        high=1000.0,
        change=Change.ANY_TIME,
        own=True,
    )
    stall_timeout: float = option(
        3.0,
        "Seconds without a usable image after which the stream counts as stalled.",
        low=0.1,
        high=3600.0,
        change=Change.ANY_TIME,
        own=True,
    )

    @property
    def camera_names(self) -> tuple[str, ...]:
        """``cameras``; the only one of a node without names is called ""."""
        return self.cameras or ("",)

    @property
    def output_modes(self) -> dict[str, str]:
        """The `output_...` parameters by what follows."""
        return {output: getattr(self, f"output_{output}") for output in OUTPUTS}

    @functools.cached_property
    def feature_keys(self) -> tuple[FeatureKey, ...]:
        """``features``, parsed."""
        return tuple(parse_feature(text) for text in self.features)

    @property
    def policy(self) -> Policy:
        """``memory`` and its numbers."""
        return make_policy(
            self.memory,
            sink=self.sink,
            window=self.window,
            keyframes=self.keyframes,
            cell=self.keyframe_cell,
        )
