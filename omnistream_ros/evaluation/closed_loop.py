# SPDX-License-Identifier: Apache-2.0
"""A policy in a simulator, without ROS: the same features and chunks, many attempts in little time.

Here the world waits for the policy. `delay` gives it back what a real robot has not: the chunk that
was computed from a frame is carried out only so many frames later.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from omnistream_ros.action.blending import Blending, Plan
from omnistream_ros.action.chunk import Chunk, Origin
from omnistream_ros.action.policy import Observation, Policy
from omnistream_ros.action.spaces import Space
from omnistream_ros.simulation.environment import STEPS_PER_FRAME, Environment
from omnistream_ros.simulation.episodes import frames_of
from omnistream_ros.simulation.success import Attempt


class Eyes(Protocol):
    """Turns the images of one camera into features, see `stream_features`."""

    def reset(self) -> None: ...

    def look(self, image: NDArray[np.uint8], time_s: float) -> dict[str, NDArray[np.float32]]: ...


@dataclasses.dataclass(frozen=True)
class Loop:
    """How a policy is connected to an environment.

    Attributes:
        policy: what acts.
        eyes: makes the features that it reads; None if it reads none.
        blending: how its chunks are joined.
        delay: frames between an observation and the actions that come from it.
    """

    policy: Policy
    eyes: Eyes | None
    blending: Blending = dataclasses.field(default_factory=Blending)
    delay: int = 0

    def attempt(
        self,
        env: Environment,
        seed: int,
        embedding: NDArray[np.float32] | None,
        watch: Callable[[Environment], None] = lambda env: None,
    ) -> Attempt:
        """One try, until success or until the time of the task is over.

        Args:
            embedding: of the instruction.
            watch: called at every frame.

        Raises:
            ValueError: the policy reads or commands axes that the environment does not have, or
                its numbers are not positions.
            PolicyError: the policy failed.
        """
        spec = self.policy.spec
        if spec.space is not Space.JOINT_POSITION:
            raise ValueError(
                f"the policy commands {spec.space.value}, and a simulated robot is told "
                f"{Space.JOINT_POSITION.value}: try one whose actions are positions of its axes"
            )
        names = [axis.name for axis in env.axes]
        read = [_index(names, name) for name in self.policy.needs.joints]
        told = [_index(names, name) for name in spec.names]
        env.reset(seed)
        if self.eyes is not None:
            self.eyes.reset()
        self.policy.reset()
        plan, clock = Plan(spec, self.blending), 0.0
        actions = env.step_s / spec.dt  # consumed in a step
        waiting: deque[Chunk] = deque()
        command = env.positions()
        frames = frames_of(env.task, env.step_s)
        for frame in range(frames):
            watch(env)
            time_s, positions = frame * STEPS_PER_FRAME * env.step_s, env.positions()
            features = {}
            if self.eyes is not None:
                features = self.eyes.look(env.observe().image, time_s)
            rows = self.policy.act(
                Observation(
                    features={
                        (need.stream, need.key): features[need.key]
                        for need in self.policy.needs.features
                    },
                    joints=positions[read],
                    instruction=env.task.instructions[0],
                    embedding=embedding,
                    consumed=clock,
                )
            )
            stamp = round(1e9 * time_s)
            waiting.append(Chunk(frame + 1, (Origin("", 0, frame, stamp),), stamp, clock, 0, rows))
            if len(waiting) > self.delay:
                plan.add(waiting.popleft(), clock)
            for _ in range(STEPS_PER_FRAME):
                due = plan.due(clock, actions)
                if due is not None:
                    command[told] = due
                env.advance(command)
                clock += actions
            if env.success:
                break
        return Attempt(env.task.name, seed, env.success, (frame + 1) * STEPS_PER_FRAME * env.step_s)


def _index(names: list[str], name: str) -> int:
    if name not in names:
        raise ValueError(
            f"the policy speaks of the axis {name!r}, the robot has {', '.join(names)}: it was "
            "trained for another robot"
        )
    return names.index(name)
