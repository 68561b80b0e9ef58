# SPDX-License-Identifier: Apache-2.0
"""The parameters of one camera, in the terms of what depends on them."""

from __future__ import annotations

import dataclasses

from omnistream_ros.nodes.image_input import InputSettings
from omnistream_ros.nodes.outputs import OutputSettings
from omnistream_ros.nodes.perception_parameters import PerceptionParameters
from omnistream_ros.nodes.point_clouds import CloudSettings


@dataclasses.dataclass(frozen=True)
class CameraSettings:
    """The parameters of one camera, as they are for one frame."""

    input: InputSettings
    output: OutputSettings
    camera_height: float
    target_rate: float
    stall_timeout: float


def camera_settings(wish: PerceptionParameters) -> CameraSettings:
    """The settings that parameters ask for."""
    return CameraSettings(
        input=InputSettings(
            transport=wish.input_transport,
            qos=wish.image_qos,
            rectified=wish.rectified,
            rectify=wish.rectify,
            stamps=wish.stamps,
            camera_info_timeout=wish.camera_info_timeout,
            source_timeout=wish.source_timeout,
        ),
        output=OutputSettings(
            depth_encoding=wish.depth_encoding,
            cloud=CloudSettings(
                stride=wish.points_stride,
                max_range=wish.points_max_range,
                min_confidence=wish.points_min_confidence,
                organized=wish.points_organized,
            ),
            publish_tf=wish.publish_tf,
            path_length=wish.path_length,
            features=wish.feature_keys,
            feature_dtype=wish.feature_dtype,
        ),
        camera_height=wish.camera_height,
        target_rate=wish.target_rate,
        stall_timeout=wish.stall_timeout,
    )
