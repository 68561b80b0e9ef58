# SPDX-License-Identifier: Apache-2.0
"""The keyframes of a stream: a bounded number, linked with each other, all in one room.

A new keyframe is matched both ways with its neighbours and adjusted together with them (`bundle`);
after that the room is made as large as the network says on average over all keyframes, so that the
error of scale of a single prediction does not stay.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from omnistream_ros.model.matching import MatchingHead
from omnistream_ros.stream import geometry
from omnistream_ros.stream.bundle import adjust
from omnistream_ros.stream.frame import Intrinsics
from omnistream_ros.stream.keyframes import Keyframe, View, make_keyframe, near, project

# Keyframes kept; beyond it the one not used for longest goes.
_KEPT = 24
# What those that went said about the size of the room counts like so many of those that are kept.
# The network is wrong about a whole corner at a time, and the way to another corner keeps the size.
_REMEMBERED = 24
# A new keyframe is matched with this many others, and adjusted together with this many at most.
_LINKS = 3
_ADJUSTED = 6
_LINK_OVERLAP = 0.5
_LINK_FLOW = 40.0  # pixels; further apart, patches hardly look alike
_LINK_SEEN = 0.1  # share of the places; a link of fewer says too little


class KeyframeMap:
    """Keyframes of one stream; the least recently used first, the reference last."""

    def __init__(self, head: MatchingHead) -> None:
        self._head = head
        self._keys: list[Keyframe] = []
        self.made = 0  # keyframes since the beginning of the stream
        self._gone = 0  # keyframes that went, of this room
        self._gone_scale = 0.0  # log scale of their predictions, mean

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def numbers(self) -> list[int]:
        """The keyframes kept, as they were counted."""
        return [key.number for key in self._keys]

    @property
    def reference(self) -> Keyframe:
        """The keyframe that frames are compared with."""
        return self._keys[-1]

    @property
    def others(self) -> list[Keyframe]:
        """All but the reference, those not used for longest first."""
        return self._keys[:-1]

    def recent(self, count: int) -> list[Keyframe]:
        """The reference and those used before it, so many at most."""
        return self._keys[-count:]

    def use(self, key: Keyframe) -> None:
        """Make one of the keyframes the reference."""
        self._keys.remove(key)
        self._keys.append(key)

    def clear(self) -> None:
        """Forget them all."""
        self._keys = []
        self._gone, self._gone_scale = 0, 0.0

    def add(
        self,
        view: View,
        depth: Tensor,
        cells: Intrinsics,
        camera_from_world: np.ndarray,
        covariance: np.ndarray,
    ) -> float:
        """Make a view the reference, and adjust it together with its neighbours.

        The camera's pose is then that of the reference.

        Args:
            depth: (H, W) predicted.
            cells: the camera at stride 4.
            camera_from_world, covariance: of the view, as tracked.

        Returns:
            by which factor the room has been made larger, about the camera.
        """
        new = make_keyframe(self.made, view, depth, cells, camera_from_world, covariance)
        self.made += 1
        links = self._link(new)
        if links:
            recent = [key for key in self._keys[::-1] if key not in links]
            free = [new, *links, *recent][:_ADJUSTED]
            fixed = [key for key in self._keys if key not in free and _connected(key, free)]
            adjust(free, fixed)
        self._keys.append(new)
        if len(self._keys) > _KEPT:
            gone = self._keys.pop(0)
            self._gone += 1
            share = 1 / min(self._gone, _REMEMBERED)
            self._gone_scale += share * (float(gone.shape[0]) - self._gone_scale)
            for key in self._keys:
                key.seen_by.pop(gone.number, None)
        return self._rescale()

    def state_dict(self) -> dict[str, Any]:
        """A copy of everything."""
        return {
            "made": self.made,
            "gone": (self._gone, self._gone_scale),
            "keys": [key.state_dict() for key in self._keys],
        }

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Continue exactly where ``state_dict`` was taken."""
        self.made = int(state["made"])
        self._gone, self._gone_scale = int(state["gone"][0]), float(state["gone"][1])
        self._keys = [Keyframe.from_state_dict(key, device) for key in state["keys"]]

    def _link(self, new: Keyframe) -> list[Keyframe]:
        """Match a new keyframe both ways with the best of the others; those it has a link with."""
        if not self._keys:
            return []
        reference = self.reference
        ranked = near(self.others, new.camera_from_world, _LINK_OVERLAP, _LINK_FLOW)
        # Of those that can be seen, the newest are seen best and the oldest has drifted least.
        ranked.sort(key=lambda key: key.number)
        others = ranked[-1 : -_LINKS + 1 : -1] + ranked[:1]
        links: list[Keyframe] = []
        for key in dict.fromkeys([reference, *others]):
            new_from_key = new.camera_from_world @ key.world_from_camera()
            forward = key.sight(self._head, new.view, new_from_key)
            if forward.seen.mean() < _LINK_SEEN:
                continue
            if not links:
                new.shape[0] = _log_scale(new, key, forward.position, forward.seen, new_from_key)
            backward = new.sight(self._head, key.view, geometry.rigid_inverse(new_from_key))
            key.seen_by[new.number] = forward
            if backward.seen.mean() >= _LINK_SEEN:
                new.seen_by[key.number] = backward
            links.append(key)
        return links

    def _rescale(self) -> float:
        """Make the room as large as the network says on average, with the camera where it is."""
        gone = min(self._gone, _REMEMBERED)
        kept = sum(float(key.shape[0]) for key in self._keys)
        mean = (kept + gone * self._gone_scale) / (len(self._keys) + gone)
        growth = float(np.exp(-mean))
        centre = self.reference.world_from_camera()[:3, 3]
        for key in self._keys:
            position = centre + growth * (key.world_from_camera()[:3, 3] - centre)
            rotation = key.camera_from_world[:3, :3]
            key.camera_from_world = geometry.rigid(rotation, -rotation @ position)
            key.shape = key.shape - np.array([mean, 0.0, 0.0])
        self._gone_scale -= mean
        return growth


def _connected(key: Keyframe, others: list[Keyframe]) -> bool:
    return any(o.number in key.seen_by or key.number in o.seen_by for o in others)


def _log_scale(
    new: Keyframe, old: Keyframe, position: np.ndarray, seen: np.ndarray, motion: np.ndarray
) -> float:
    """Log of the depth of old places in the new frame over what the network says there (median)."""
    _, depth = project(old.points(), old.camera, motion)
    usable = seen & (depth > 0)
    if not usable.any():
        return 0.0
    there = new.predicted[new.nearest(position[usable])]
    return float(np.median(np.log(depth[usable]) - there))
