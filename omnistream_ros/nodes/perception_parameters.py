# SPDX-License-Identifier: Apache-2.0
"""The parameters of ``omnistream_perception``; config/omnistream.yaml lists the same ones."""

from __future__ import annotations

import dataclasses
import re

from omnistream_ros.nodes.camera_parameters import CameraParameters
from omnistream_ros.nodes.model_parameters import ModelParameters
from omnistream_ros.nodes.parameter_options import Change, option

_CONFIGURE = Change.UNCONFIGURED


_MOST_CAMERAS = 64  # each has its own topics, parameters and memory


def check_cameras(names: tuple[str, ...]) -> None:
    """ValueError for names that cannot be parts of topics and parameters, or are too many."""
    if len(names) > _MOST_CAMERAS:
        raise ValueError(f"at most {_MOST_CAMERAS} cameras, got {len(names)}")
    for name in names:
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name) or "__" in name:
            raise ValueError(
                f"camera {name!r} must be letters, digits and single '_', a letter first: it "
                "becomes part of topics and parameters"
            )
    if len(set(names)) < len(names):
        raise ValueError("a camera is listed twice")


def _check_frame(text: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_/.-]*", text):
        raise ValueError(f"must be the name of a tf frame without a leading '/', got {text!r}")


@dataclasses.dataclass(frozen=True)
class PerceptionParameters(ModelParameters, CameraParameters):
    """Values of all parameters, those of the node as a whole here; ROS names are the names."""

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
    pose: str = option(
        "auto",
        "Where the pose comes from: geometric (matching and a solver), head (the network's camera "
        "head), fused (geometric, the head where nothing can be followed), auto (geometric where "
        "the model can).",
        choices=("auto", "geometric", "fused", "head"),
        change=_CONFIGURE,
    )
    consistent_depth: bool = option(
        True,
        "Bend each depth image until it agrees with the frames before it, where the pose is "
        "geometric or fused; the pose is then found whenever depth is wanted. False: each image as "
        "the network says.",
        change=_CONFIGURE,
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

    @property
    def camera_names(self) -> tuple[str, ...]:
        """``cameras``; the only one of a node without names is called ""."""
        return self.cameras or ("",)
