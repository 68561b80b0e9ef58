# SPDX-License-Identifier: Apache-2.0
"""The parameters of ``omnistream_simulator``."""

from __future__ import annotations

import dataclasses

from omnistream_ros.nodes.parameter_options import Change, option
from omnistream_ros.simulation.tasks import DEFAULT, TASKS, task_named


@dataclasses.dataclass(frozen=True)
class SimulatorParameters:
    """Values of all parameters; ROS names are the names of the fields."""

    tasks: tuple[str, ...] = option(
        DEFAULT,
        f"What is to be done, one task after the other, of: {', '.join(TASKS)}.",
        check=lambda names: [task_named(name) for name in names],
        change=Change.NEVER,
    )
    attempts: int = option(
        10, "Attempts at each task; 0: for ever.", low=0, high=100_000, change=Change.NEVER
    )
    first_seed: int = option(
        1_000_000, "Seed of the first attempt.", low=0, high=2**31 - 1, change=Change.NEVER
    )
    instruction: str = option(
        "",
        "Told to the action node instead of the task's own words.",
        change=Change.NEVER,
    )
    speed: float = option(
        1.0,
        "Simulated seconds per second; below 1 where the machine is too slow for the policy.",
        low=0.01,
        high=10.0,
        change=Change.ANY_TIME,
    )
    frame_id: str = option("simulated_camera", "Frame of the camera's images.", change=Change.NEVER)
    perception: str = option(
        "/omnistream_perception",
        "Node whose stream begins anew with each attempt; empty: none is told.",
        change=Change.NEVER,
    )
    action: str = option(
        "/omnistream_action",
        "Lifecycle node that is inactive between attempts and told the instruction; empty: none, "
        "the simulator only simulates.",
        change=Change.NEVER,
    )
    patience: float = option(
        120.0,
        "Seconds in which those nodes have to answer.",
        low=1.0,
        high=3600.0,
        change=Change.NEVER,
    )
