# SPDX-License-Identifier: Apache-2.0
"""The parameters that each camera of the perception node has: for images, scale and outputs."""

from __future__ import annotations

import dataclasses
import functools
import re

from omnistream_ros.nodes.image_input import QOS_PROFILES
from omnistream_ros.nodes.output_messages import DEPTH_ENCODINGS
from omnistream_ros.nodes.output_topic import MODES
from omnistream_ros.nodes.outputs import OUTPUTS
from omnistream_ros.nodes.parameter_options import Change, option
from omnistream_ros.nodes.transports import TRANSPORTS
from omnistream_ros.stream.metric_scale import SCALE_SOURCES
from omnistream_ros.stream.result import FeatureKey, FeatureKind

_CONFIGURE = Change.UNCONFIGURED
_MOST_FEATURES = 64  # every one of them is a message for every image


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
    if len(texts) > _MOST_FEATURES:
        raise ValueError(f"at most {_MOST_FEATURES} features, got {len(texts)}")
    keys = [parse_feature(text) for text in texts]
    if len(set(keys)) < len(keys):
        raise ValueError("a feature is listed twice")


@dataclasses.dataclass(frozen=True)
class CameraParameters:
    """Values of these parameters; ROS names are the names of the fields."""

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
    stall_timeout: float = option(
        3.0,
        "Seconds without a usable image after which the stream counts as stalled.",
        low=0.1,
        high=3600.0,
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
        only_with=("scale", ("fixed",)),
    )
    camera_height: float = option(
        0.0,
        "Metres from the ground to the camera, for scale: height; 0: its height above base_frame.",
        low=0.0,
        high=1000.0,
        change=Change.ANY_TIME,
        own=True,
        only_with=("scale", ("height",)),
    )

    resolution: str = option(
        "model",
        "Size of the depth image: model (as computed) or source (as the camera image).",
        choices=("model", "source"),
        change=_CONFIGURE,
        own=True,
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

    @property
    def output_modes(self) -> dict[str, str]:
        """The `output_...` parameters by what follows."""
        return {output: getattr(self, f"output_{output}") for output in OUTPUTS}

    @functools.cached_property
    def feature_keys(self) -> tuple[FeatureKey, ...]:
        """``features``, parsed."""
        return tuple(parse_feature(text) for text in self.features)
