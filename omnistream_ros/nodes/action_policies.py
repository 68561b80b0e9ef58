# SPDX-License-Identifier: Apache-2.0
"""From the parameters of the action node to its policy and its limits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from omnistream_ros.action.limits import Limits
from omnistream_ros.action.policy import Needs, Policy
from omnistream_ros.action.policy_facts import FeatureInput
from omnistream_ros.action.scripted_policy import ScriptedPolicy
from omnistream_ros.action.spaces import CARTESIAN, ROTATION, ActionSpec, Space
from omnistream_ros.nodes import named_values
from omnistream_ros.nodes.action_parameters import ActionParameters

T = TypeVar("T")
_SERVERS = ("ws://", "wss://")


def make_policy(wish: ActionParameters) -> Policy:
    """The policy that the parameters ask for, ready to act.

    Raises:
        ValueError: it cannot be used, or a parameter is missing; the text says which.
        PolicyError: a server does not answer as it should.
    """
    if not wish.policy:
        raise ValueError(
            "no policy is given: set the parameter 'policy' to an .onnx file, to ws://HOST:PORT of "
            "an openpi server, or to scripted"
        )
    if wish.policy == "scripted":
        needs = Needs(features=_features(wish), joints=wish.proprioception)
        spec = _spec(wish)
        try:
            return ScriptedPolicy(spec, needs, named_values.script(wish.script))
        except ValueError as error:
            raise ValueError(f"parameter 'script': {error}") from error
    try:
        return _openpi(wish) if wish.policy.startswith(_SERVERS) else _onnx(wish)
    except ModuleNotFoundError as error:
        extra = "openpi" if wish.policy.startswith(_SERVERS) else "onnx"
        raise ValueError(
            f"policy {wish.policy!r} needs the Python package {error.name}: pip install "
            f"'omnistream_ros[{extra}]'"
        ) from error


def make_limits(spec: ActionSpec, wish: ActionParameters) -> Limits:
    """Limits for every number of an action.

    Raises:
        ValueError: a name is not one of the policy's, or a limit is missing.
    """
    names = spec.names
    count = len(names)
    low, high = np.full(count, -np.inf), np.full(count, np.inf)
    endless = _endless(spec, wish)
    bounded = [column for column in spec.joints if not endless[column]]
    joints = [names[column] for column in bounded]
    given = wish.position_limits
    if spec.space is Space.JOINT_DELTA and joints and not given:
        raise ValueError(
            "parameter 'position_limits' is empty: the policy moves joints by steps, and only "
            f"this parameter can say how far {joints} may go"
        )
    own = [f"{names[c]}: {spec.low[c]!r} {spec.high[c]!r}" for c in bounded]
    pairs = _named("position_limits", given or own, joints, named_values.pair)
    for column, (lowest, highest) in zip(bounded, pairs, strict=True):
        low[column], high[column] = lowest, highest
    return Limits(
        low=low,
        high=high,
        velocity=np.array(_named("max_velocity", wish.max_velocity, names, named_values.number)),
        acceleration=np.array(
            _named("max_acceleration", wish.max_acceleration, names, named_values.number)
        ),
        step=np.array(_named("max_step", wish.max_step, names, named_values.number)),
        endless=endless,
    )


def _endless(spec: ActionSpec, wish: ActionParameters) -> np.ndarray:
    """(n,) bool: numbers that are joints which turn without end."""
    turning = [spec.names[c] for c in spec.joints if spec.units[c] == "rad"]
    for name in wish.continuous_joints:
        if name not in turning:
            raise ValueError(
                f"parameter 'continuous_joints': {name!r} is none of the joints in rad, {turning}"
            )
    return np.isin(spec.names, wish.continuous_joints)


def stream_topics(needs: Needs, wish: ActionParameters) -> dict[str, str]:
    """Topic of every feature stream of the policy.

    Raises:
        ValueError: a stream without a topic, or two with the same.
    """
    names = [*dict.fromkeys(feature.stream for feature in needs.features)]
    if not names:
        return {}
    given = named_values.parse(wish.streams)
    entries = [f"{name}: {topic}" for name, topic in given.items() if name in {*names, "*"}]
    topics = dict(zip(names, _named("streams", entries, names, str), strict=True))
    if len(set(topics.values())) < len(names):
        raise ValueError(f"parameter 'streams': {names} need a topic each, got {topics}")
    return topics


def robot_names(names: Sequence[str], wish: ActionParameters) -> dict[str, str]:
    """The robot's name of every joint, by the policy's.

    Raises:
        ValueError: a name is none of the policy's, or two joints would be one.
    """
    given = named_values.parse(wish.joint_names)
    unknown = sorted(set(given) - set(names))
    if unknown:
        raise ValueError(f"parameter 'joint_names': {unknown} are none of {list(names)}")
    mapped = {name: given.get(name, name) for name in names}
    if len(set(mapped.values())) < len(mapped):
        raise ValueError(f"parameter 'joint_names': two joints get one name in {mapped}")
    return mapped


def _onnx(wish: ActionParameters) -> Policy:
    from omnistream_ros.action.onnx_policy import OnnxPolicy

    return OnnxPolicy(wish.policy, wish.provider)


def _openpi(wish: ActionParameters) -> Policy:
    from omnistream_ros.action.openpi_policy import OpenPiPolicy

    needs = Needs(
        features=_features(wish),
        images=tuple(named_values.parse(wish.images)),
        joints=wish.proprioception,
        instruction=True,
    )
    return OpenPiPolicy(
        wish.policy,
        _spec(wish),
        needs,
        state_key=wish.state_key,
        timeout_s=wish.inference_timeout,
    )


def _spec(wish: ActionParameters) -> ActionSpec:
    """The form of the actions of a policy that does not say it itself."""
    names, space = wish.action_names, Space(wish.action_space)
    if not names:
        raise ValueError("parameter 'action_names' is empty: name the numbers of an action")
    joints = [n for n in names if not (space.cartesian and n in CARTESIAN)]
    units = dict(zip(joints, _named("action_units", wish.action_units, joints, str), strict=True))
    per = "/s" if space is Space.TWIST else ""
    ranges = _named("action_range", wish.action_range, names, named_values.pair)
    try:
        return ActionSpec(
            space=space,
            names=names,
            units=tuple(units.get(n, ("rad" if n in ROTATION else "m") + per) for n in names),
            frame=wish.action_frame,
            horizon=wish.horizon,
            dt=wish.dt,
            low=tuple(low for low, _ in ranges),
            high=tuple(high for _, high in ranges),
        )
    except ValueError as error:
        raise ValueError(f"parameters 'action_...', 'horizon', 'dt': {error}") from error


def _features(wish: ActionParameters) -> tuple[FeatureInput, ...]:
    """Features of a policy that does not say it itself, of any shape and model."""
    return tuple(
        FeatureInput(stream, key, (), f"{stream}/{key}")
        for stream, key in named_values.parse(wish.features).items()
    )


def _named(
    parameter: str, entries: Sequence[str], names: Sequence[str], convert: Callable[[str], T]
) -> list[T]:
    try:
        return named_values.resolve(entries, names, convert)
    except ValueError as error:
        raise ValueError(f"parameter '{parameter}': {error}") from error
