# SPDX-License-Identifier: Apache-2.0
"""Tasks of Meta-World (Yu et al., arXiv:1910.10897; version 3.1.1, MIT) behind our interface.

The arm of Meta-World is moved by its hand: three axes in the room and a gripper. Here they are four
position-controlled axes, hand_x, hand_y, hand_z (metres in the room, x to the right, y away from
the base, z up) and gripper (0 closed, 1 open). The hand follows at 0.4 m/s at most, slower than in
Meta-World, so that ten frames a second show what it does.

Reaching is our own on Meta-World's table: two balls, and only the instruction says which.
"""

from __future__ import annotations

import importlib
import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omnistream_ros.simulation.environment import (
    STEPS_PER_FRAME,
    Axis,
    Observation,
    SimulationError,
    Task,
    checked,
)
from omnistream_ros.simulation.rendering import INSTALL, Ball, Picture, View, load_mujoco

TASKS = (
    Task(
        "reach-red",
        ("reach the red ball", "move the hand to the red ball", "go to the red target"),
        "reach-v3",
    ),
    Task(
        "reach-blue",
        ("reach the blue ball", "move the hand to the blue ball", "go to the blue target"),
        "reach-v3",
    ),
    Task(
        "push",
        ("push the puck to the green ball", "move the puck to the green goal", "push the puck"),
        "push-v3",
    ),
    Task(
        "button-press",
        ("press the button", "press the red button down", "push the button from above"),
        "button-press-topdown-v3",
    ),
    Task(
        "drawer-open",
        ("open the drawer", "pull the drawer open", "pull the green drawer out"),
        "drawer-open-v3",
    ),
    Task(
        "drawer-close",
        ("close the drawer", "push the drawer shut", "shut the green drawer"),
        "drawer-close-v3",
    ),
)
VIEW = View((0.0, 0.68, 0.14), 0.87, 195.0, -38.0)
_SPEED = 0.4  # m/s, of the hand
_REACH = 0.06  # m, how far ahead of the hand the expert commands at most
_BALL = 0.02  # m
_COLOURS = {"reach-red": (1.0, 0.05, 0.05, 1.0), "reach-blue": (0.1, 0.2, 1.0, 1.0)}
_BALLS_APART = 0.12  # m
_HAND_RANGE = ((-0.5, 0.5), (0.4, 1.0), (0.05, 0.5))


class MetaWorldEnvironment:
    """One task of `TASKS`.

    Args:
        task: which one.
        width, height: of the camera's images.

    Raises:
        SimulationError: Meta-World is not installed, or nothing can be rendered here.
    """

    axes = (
        *(Axis(f"hand_{name}", "m", *ends) for name, ends in zip("xyz", _HAND_RANGE, strict=True)),
        Axis("gripper", "1", 0.0, 1.0),
    )

    def __init__(self, task: Task, width: int = 192, height: int = 144) -> None:
        mujoco = load_mujoco()
        try:
            environments = importlib.import_module("metaworld.env_dict").ALL_V3_ENVIRONMENTS
            policies = importlib.import_module("metaworld.policies").ENV_POLICY_MAP
        except ImportError as error:
            raise SimulationError(f"Meta-World cannot be loaded ({error}): {INSTALL}") from error
        self.task = task
        self._size = width, height
        env = environments[task.scene]()
        env.seeded_rand_vec, env._freeze_rand_vec = True, False
        env._set_task_called = True  # the task comes from the seed
        # The expert sees the goal; the range of what is seen was computed without it.
        env._partially_observable = False
        env.__dict__.pop("sawyer_observation_space", None)
        self._env = env
        self._policy = policies[task.scene]()
        self._forward: Callable[[Any, Any], None] = mujoco.mj_forward
        self._fovy = math.radians(float(env.model.vis.global_.fovy))
        self._picture: Picture | None = None
        self.step_s = float(env.model.opt.timestep * env.frame_skip)
        self.reset(0)

    @property
    def field_of_view(self) -> tuple[float, float]:
        width, height = self._size
        return 2 * math.atan(math.tan(self._fovy / 2) * width / height), self._fovy

    @property
    def success(self) -> bool:
        return self._success

    def reset(self, seed: int) -> None:
        env = self._env
        env.seed(seed)
        env.reset()
        self.balls = self._place_balls(np.random.default_rng(seed))
        self._forward(env.model, env.data)
        self._success = False
        self._steps = 0

    def positions(self) -> NDArray[np.float64]:
        return np.array([*self._env.get_endeff_pos(), self._seen()[3]], float)

    def observe(self) -> Observation:
        if self._picture is None:
            self._picture = self.picture(*self._size)
        image = self.draw(self._picture)
        return Observation(image, self.positions(), self._steps * self.step_s)

    def picture(self, width: int, height: int, *, beautiful: bool = False) -> Picture:
        """A further camera at the place of the robot's, for `draw`."""
        return Picture(self._env.model, width, height, VIEW, beautiful=beautiful)

    def draw(self, picture: Picture) -> NDArray[np.uint8]:
        """The scene now, (H, W, 3) RGB."""
        return picture.render(self._env.data, self.balls)

    def advance(self, command: NDArray[np.float64]) -> None:
        env = self._env
        *hand, gripper = checked(command, self.axes)
        way = np.array(hand) - env.data.mocap_pos[0]
        longest = _SPEED * self.step_s
        way *= min(1.0, longest / max(float(np.linalg.norm(way)), 1e-9))
        effort = 1.0 - 2.0 * gripper  # of the fingers, positive closes
        # What `step` of Meta-World does, without the reward, which costs ten times the physics.
        env.set_xyz_action(way / env.action_scale)
        env.do_simulation([effort, -effort], env.frame_skip)
        self._steps += 1
        if self._steps % STEPS_PER_FRAME == 0:
            self._forward(env.model, env.data)
            self._success |= self._is_done(np.append(way, effort).astype(np.float32))

    def expert(self) -> NDArray[np.float64]:
        hand = np.array(self._env.get_endeff_pos())
        if self.balls:
            # Meta-World's own brings the wrist to the ball, the fingertips to within 4.9 of 5 cm.
            goal = self.balls[0].place - (self._env.tcp_center - hand)
            return np.append(hand + np.clip(goal - hand, -_REACH, _REACH), 0.5)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns of speeds that will be clipped, as they are
            action = np.clip(self._policy.get_action(self._seen().copy()), -1.0, 1.0)
        return np.append(hand + _REACH * action[:3], 0.5 - 0.5 * action[3])

    def close(self) -> None:
        if self._picture is not None:
            self._picture.close()
            self._picture = None

    def _is_done(self, action: NDArray[np.float32]) -> bool:
        env = self._env
        if self.balls:
            distance = np.linalg.norm(env.tcp_center - self.balls[0].place)
            return bool(distance < env.TARGET_RADIUS)
        return bool(env.evaluate_state(self._seen(), action)[1]["success"])

    def _seen(self) -> NDArray[np.float64]:
        """What Meta-World's experts see: hand, gripper opening, object, goal."""
        seen: NDArray[np.float64] = self._env._get_obs()
        return seen

    def _place_balls(self, rng: np.random.Generator) -> list[Ball]:
        """The ball to be reached, then the other one; none for other tasks."""
        if self.task.name not in _COLOURS:
            return []
        self._env.model.site("goal").rgba[3] = 0.0  # ours are drawn instead
        low, high = self._env.goal_space.low, self._env.goal_space.high
        while True:
            goal, other = rng.uniform(low, high, (2, 3))
            if np.linalg.norm(goal - other) > _BALLS_APART:
                break
        # The first colour is that of the goal.
        names = sorted(_COLOURS, key=lambda name: name != self.task.name)
        places = dict(zip(names, (goal, other), strict=True))
        return [Ball(place, _BALL, _COLOURS[name]) for name, place in places.items()]
