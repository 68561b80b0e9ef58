# SPDX-License-Identifier: Apache-2.0
"""The parameters of ``omnistream_action``; config/omnistream_action.yaml lists the same ones."""

from __future__ import annotations

import dataclasses

from rclpy.exceptions import InvalidTopicNameException
from rclpy.expand_topic_name import expand_topic_name
from rclpy.validate_full_topic_name import validate_full_topic_name

from omnistream_ros.action.blending import BLENDINGS, Blending
from omnistream_ros.action.policy_facts import check_feature_key
from omnistream_ros.action.safety import STOP_MODES, SafetySettings
from omnistream_ros.action.spaces import Space
from omnistream_ros.nodes import named_values
from omnistream_ros.nodes.parameter_options import Change, option

_CONFIGURE = Change.UNCONFIGURED
JOINT_OUTPUTS = ("joint_trajectory", "joint_state")


def _check_topic(text: str) -> None:
    """Refuse what no topic can be called; of the node's own name nothing depends."""
    try:
        validate_full_topic_name(expand_topic_name(text, "node", "/"))
    except (ValueError, InvalidTopicNameException):
        raise ValueError(
            f"{text!r} cannot be the name of a topic: letters, digits, _ between /, no part empty "
            "or beginning with a digit"
        ) from None


@dataclasses.dataclass(frozen=True)
class ActionParameters:
    """Values of all parameters; ROS names are the names of the fields."""

    autostart: bool = option(
        False,
        "Configure and activate when the process starts; dry_run still keeps the robot still.",
        change=Change.NEVER,
    )
    diagnostics_period: float = option(
        1.0, "Seconds between messages on /diagnostics.", low=0.1, high=60.0, change=Change.NEVER
    )
    status_period: float = option(
        0.1,
        "Seconds between messages on ~/status while nothing changes.",
        low=0.01,
        high=60.0,
        change=Change.NEVER,
    )

    policy: str = option(
        "",
        "What acts: an .onnx file written by `omnistream train-policy`; ws://HOST:PORT or "
        "wss://HOST:PORT of an openpi policy server; scripted (a motion to and fro, or that of "
        "`script`).",
        change=_CONFIGURE,
    )
    provider: str = option(
        "auto",
        "What runs an .onnx file: cpu, cuda, tensorrt; auto takes a GPU if there is one.",
        choices=("auto", "cpu", "cuda", "tensorrt"),
        change=_CONFIGURE,
    )
    streams: tuple[str, ...] = option(
        ("*: omnistream_perception/features",),
        "Topic of features of each camera stream, NAME: TOPIC; names are those of the policy.",
        check=named_values.check(_check_topic),
        change=_CONFIGURE,
    )
    joint_names: tuple[str, ...] = option(
        (),
        "Joints that the robot names in another way than the policy, POLICY: ROBOT.",
        check=named_values.parse,
        change=_CONFIGURE,
    )
    instruction: str = option("", "The instruction to begin with.", change=_CONFIGURE)

    action_space: str = option(
        "joint_position",
        "Not for .onnx files, which say it themselves: what a number of an action is.",
        choices=tuple(space.value for space in Space),
        change=_CONFIGURE,
    )
    action_names: tuple[str, ...] = option(
        (), "Not for .onnx files: names of the numbers of an action, in order.", change=_CONFIGURE
    )
    action_units: tuple[str, ...] = option(
        ("*: rad",),
        "Not for .onnx files: unit of each joint, NAME: UNIT (m, rad or 1).",
        check=named_values.parse,
        change=_CONFIGURE,
    )
    action_range: tuple[str, ...] = option(
        ("*: -1.0 1.0",),
        "Not for .onnx files: range of each number, NAME: LOW HIGH.",
        check=named_values.check(named_values.pair),
        change=_CONFIGURE,
    )
    action_frame: str = option(
        "", "Not for .onnx files: frame of end_effector_delta and twist.", change=_CONFIGURE
    )
    horizon: int = option(
        16, "Not for .onnx files: actions in a chunk.", low=1, high=1000, change=_CONFIGURE
    )
    dt: float = option(
        0.05,
        "Not for .onnx files: seconds from one action to the next.",
        low=0.001,
        high=10.0,
        change=_CONFIGURE,
    )
    features: tuple[str, ...] = option(
        (),
        "Not for .onnx files: feature tensors that the policy reads, STREAM: LAYER:KIND[:normed]; "
        "LAYER from 0, or -1 for the last block, normed.",
        check=named_values.check(check_feature_key),
        change=_CONFIGURE,
    )
    proprioception: tuple[str, ...] = option(
        (),
        "Not for .onnx files: joints whose positions the policy reads, in order.",
        change=_CONFIGURE,
    )
    script: tuple[str, ...] = option(
        (),
        "scripted: SECONDS: NUMBERS, what an action is so long after the beginning of the stream, "
        "in the order of action_names; between two moments straight lines; empty: to and fro.",
        check=named_values.script,
        change=_CONFIGURE,
    )
    images: tuple[str, ...] = option(
        (),
        "openpi: camera images that the server reads, KEY: TOPIC.",
        check=named_values.check(_check_topic),
        change=_CONFIGURE,
    )
    image_size: int = option(
        224,
        "openpi: images are scaled and padded to a square of so many pixels; 0: sent as they are.",
        low=0,
        high=4096,
        change=_CONFIGURE,
    )
    state_key: str = option(
        "observation/state", "openpi: key of the joint positions.", change=_CONFIGURE
    )
    inference_timeout: float = option(
        2.0,
        "openpi: seconds to wait for an answer, and for a connection.",
        low=0.01,
        high=600.0,
        change=_CONFIGURE,
    )

    control_rate: float = option(
        50.0, "Commands per second.", low=1.0, high=1000.0, change=_CONFIGURE
    )
    replan_actions: float = option(
        0.0,
        "Actions to carry out before the policy is asked again; 0: at every frame.",
        low=0.0,
        high=10000.0,
        change=_CONFIGURE,
    )
    blending: str = option(
        "latest",
        "How chunks are joined: latest, linear (fade over), ensemble (ACT).",
        choices=BLENDINGS,
        change=_CONFIGURE,
    )
    blend_actions: float = option(
        4.0, "linear: actions of the fade.", low=0.1, high=1000.0, change=_CONFIGURE
    )
    ensemble_m: float = option(
        0.01,
        "ensemble: weights are exp(-m i), oldest first.",
        low=0.0,
        high=10.0,
        change=_CONFIGURE,
    )
    joint_output: str = option(
        "joint_trajectory",
        "Message for joints: joint_trajectory (one point) or joint_state.",
        choices=JOINT_OUTPUTS,
        change=_CONFIGURE,
    )

    position_limits: tuple[str, ...] = option(
        (),
        "Range of each joint, NAME: LOW HIGH; empty: that of the policy. joint_delta needs it.",
        check=named_values.check(named_values.pair),
        change=_CONFIGURE,
    )
    continuous_joints: tuple[str, ...] = option(
        (),
        "Joints (rad) that turn without end, by the policy's names: they go the shorter way round, "
        "and have neither position limits nor a range.",
        change=_CONFIGURE,
    )
    max_velocity: tuple[str, ...] = option(
        ("*: 0.5",),
        "Largest speed of each number, NAME: VALUE, in its unit per second.",
        check=named_values.check(named_values.number),
        change=_CONFIGURE,
    )
    max_acceleration: tuple[str, ...] = option(
        ("*: 2.0",),
        "Largest acceleration of each number, NAME: VALUE, in its unit per second squared.",
        check=named_values.check(named_values.number),
        change=_CONFIGURE,
    )
    max_step: tuple[str, ...] = option(
        ("*: 0.1",),
        "Joints: how far a command may lie from the measured position. end_effector_delta: the "
        "largest single motion. NAME: VALUE.",
        check=named_values.check(named_values.number),
        change=_CONFIGURE,
    )

    dry_run: bool = option(
        True,
        "Publish on ~/dry_run/... instead of ~/command/...: the robot gets nothing.",
        change=Change.ANY_TIME,
    )
    features_timeout: float = option(
        0.5,
        "Largest age of features and images, by their stamp; seconds.",
        low=0.001,
        high=60.0,
        change=Change.ANY_TIME,
    )
    proprioception_timeout: float = option(
        0.2,
        "Largest age of joint positions, by their stamp; seconds.",
        low=0.001,
        high=60.0,
        change=Change.ANY_TIME,
    )
    instruction_timeout: float = option(
        0.0,
        "Largest age of the instruction; seconds; 0: it holds until the next.",
        low=0.0,
        high=86400.0,
        change=Change.ANY_TIME,
    )
    clock_tolerance: float = option(
        0.05,
        "How far in the future a stamp may lie; seconds.",
        low=0.0,
        high=1.0,
        change=Change.ANY_TIME,
    )
    watchdog_timeout: float = option(
        0.2,
        "Longest time between two turns of the control loop; seconds.",
        low=0.002,
        high=10.0,
        change=Change.ANY_TIME,
    )
    stop_mode: str = option(
        "hold",
        "What happens when the robot must not go on: hold (the last position, no speed, at once) "
        "or ramp (brake within max_acceleration, then hold). An emergency stop always holds.",
        choices=STOP_MODES,
        change=Change.ANY_TIME,
    )
    stop_heartbeat: float = option(
        0.0,
        "Longest silence of ~/emergency_stop before it counts as pressed; seconds; 0: none is "
        "expected.",
        low=0.0,
        high=60.0,
        change=Change.ANY_TIME,
    )

    @property
    def safety(self) -> SafetySettings:
        """What the controller needs of it."""
        return SafetySettings(
            features_timeout=self.features_timeout,
            proprioception_timeout=self.proprioception_timeout,
            instruction_timeout=self.instruction_timeout,
            clock_tolerance=self.clock_tolerance,
            watchdog=self.watchdog_timeout,
            stop_mode=self.stop_mode,
        )

    @property
    def blend(self) -> Blending:
        """How chunks are joined."""
        return Blending(self.blending, self.blend_actions, self.ensemble_m)
