# SPDX-License-Identifier: Apache-2.0
"""The action node as a robot meets it: lifecycle, dry run, outputs, emergency stop."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from action_bench import JOINTS, Bench, benches
from omnistream_ros.msg import ActionChunk


@pytest.fixture(scope="module")
def bench(module_domain: int, weights: Path) -> Iterator[Bench]:
    yield from benches(module_domain, weights)


def test_from_features_to_commands(bench: Bench) -> None:
    status = bench.executes()
    assert (status.policy_name, status.dry_run, status.emergency_stop) == ("scripted", False, False)
    bench.user.wait_until(lambda: len(bench.chunks) > 3)
    chunk = bench.chunks[-1]
    assert (list(chunk.names), list(chunk.units)) == (list(JOINTS), ["rad", "rad"])
    assert (chunk.horizon, chunk.dt, chunk.space) == (16, 0.05, ActionChunk.JOINT_POSITION)
    assert len(chunk.data) == 32
    assert (list(chunk.stream_ids), list(chunk.epochs)) == (["camera"], [0])
    assert 0 < chunk.frame_indices[0] <= bench.robot.frame
    assert chunk.refused == ""
    assert list(bench.robot.commands[-1].name) == list(JOINTS)
    ids = [c.chunk_id for c in bench.chunks]
    assert ids == sorted(set(ids))
