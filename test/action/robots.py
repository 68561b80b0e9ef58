# SPDX-License-Identifier: Apache-2.0
"""A controller with everything that it needs around it, on a clock that only the test moves."""

from __future__ import annotations

import dataclasses

import numpy as np
from policy_files import with_action

from omnistream_ros.action.blending import Blending
from omnistream_ros.action.chunk import Chunk, Origin
from omnistream_ros.action.controller import Controller, Ticket
from omnistream_ros.action.drive import Command
from omnistream_ros.action.limits import Limits
from omnistream_ros.action.policy import Needs
from omnistream_ros.action.policy_facts import FeatureInput
from omnistream_ros.action.safety import Drop, EmergencyStop, SafetySettings
from omnistream_ros.action.spaces import ActionSpec, Space

PERIOD_S = 0.02
NS = 1_000_000_000
JOINTS = ("shoulder", "elbow")
SPEC = with_action().action  # eight actions of 0.05 s
TWIST = with_action(
    space=Space.TWIST,
    names=("x", "rz", "grip"),
    units=("m/s", "rad/s", "1"),
    frame="base_link",
    low=(-1.0, -2.0, 0.0),
    high=(1.0, 2.0, 1.0),
).action
NEEDS = Needs(
    features=(FeatureInput("camera", "3:patch:normed", (2, 3, 4), "features"),),
    joints=JOINTS,
    instruction=True,
)


def limits(spec: ActionSpec, **changes: np.ndarray) -> Limits:
    """Generous ones."""
    count = len(spec.names)
    joints = np.isin(np.arange(count), spec.joints)
    values = {
        "low": np.where(joints, spec.low, -np.inf),
        "high": np.where(joints, spec.high, np.inf),
        "velocity": np.full(count, 0.5),
        "acceleration": np.full(count, 2.0),
        "step": np.full(count, 0.2),
    }
    return Limits(**{**values, **changes})


class Rig:
    """A robot, a camera and a policy; `live` lets some ticks pass with everything in order."""

    def __init__(
        self,
        spec: ActionSpec = SPEC,
        needs: Needs = NEEDS,
        blending: Blending | None = None,
        replan_actions: float = 0.0,
        instruction: str = "lean forward",
        **settings: object,
    ) -> None:
        self.spec = spec
        self.stop = EmergencyStop()
        self.limits = limits(spec)
        self.controller = Controller(
            spec,
            needs,
            self.limits,
            dataclasses.replace(SafetySettings(), **settings),
            blending or Blending(),
            self.stop,
            period_s=PERIOD_S,
            replan_actions=replan_actions,
        )
        self.now_ns = 1000 * NS
        self.positions = dict(zip(JOINTS, (0.1, -0.2), strict=True))
        self.epoch = self.frame = self.chunks = 0
        self.follows = True
        self.target: object = 0.0
        if instruction and needs.instruction:
            self.controller.set_instruction(instruction, self.now_ns)

    def see(self, delay_s: float = 0.0, **changes: object) -> Drop | None:
        """The next frame arrives."""
        self.frame += 1
        origin = Origin("camera", self.epoch, self.frame, self.now_ns - round(delay_s * NS))
        origin = dataclasses.replace(origin, **changes)
        return self.controller.frame_arrived("camera", origin, origin.frame_index, self.now_ns)

    def feel(self, delay_s: float = 0.0, **positions: float) -> Drop | None:
        """A joint state arrives."""
        told = positions or self.positions
        stamp_ns = self.now_ns - round(delay_s * NS)
        return self.controller.joints_arrived(
            list(told), list(told.values()), stamp_ns, self.now_ns
        )

    def chunk(self, ticket: Ticket, **changes: object) -> Chunk:
        """A policy's answer that wants to go to `target`."""
        self.chunks += 1
        shape = (self.spec.horizon, len(self.spec.names))
        chunk = Chunk(
            chunk_id=self.chunks,
            origins=ticket.origins,
            stamp_ns=ticket.stamp_ns,
            anchor=ticket.anchor,
            generation=ticket.generation,
            data=np.array(np.broadcast_to(np.float32(self.target), shape)),
        )
        return dataclasses.replace(chunk, **changes)

    def think(self, **changes: object) -> Drop | None:
        """The policy is asked, if it may be, and answers at once."""
        ticket = self.controller.begin(self.now_ns)
        if ticket is None:
            return None
        return self.controller.offer(self.chunk(ticket, **changes), self.now_ns)

    def tick(self, seconds: float = PERIOD_S) -> Command | None:
        """Time passes, and the control loop turns."""
        self.now_ns += round(seconds * NS)
        command = self.controller.tick(self.now_ns)
        if command is not None and self.follows and not self.spec.space.cartesian:
            self.positions = dict(zip(self.spec.names, command.positions.tolist(), strict=True))
        return command

    def live(self, ticks: int = 10, seconds: float = PERIOD_S) -> list[Command | None]:
        """Everything in order."""
        commands = []
        for _ in range(ticks):
            self.feel()
            self.see()
            self.think()
            commands.append(self.tick(seconds))
        return commands


def still(commands: list[Command | None]) -> bool:
    """Whether these commands are all the same, and at rest."""
    known = [c for c in commands if c is not None]
    same = all((c.positions == known[0].positions).all() for c in known)
    return same and all((c.velocities == 0.0).all() and (c.motion == 0.0).all() for c in known)
