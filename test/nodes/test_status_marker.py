# SPDX-License-Identifier: Apache-2.0
"""The text above the camera says what the status says."""

from __future__ import annotations

import pytest
from omnistream_ros.msg import StreamStatus
from std_msgs.msg import Header
from visualization_msgs.msg import Marker

from omnistream_ros.nodes.status_marker import STATE_WORDS, status_marker


@pytest.mark.parametrize("state", sorted(STATE_WORDS))
def test_every_state_has_words(state: int) -> None:
    status = StreamStatus(header=Header(frame_id="camera"), stream_id="/eye", state=state)
    status.epoch, status.frame_index, status.latency_ms = 2, 71, 33.4
    status.metric, status.scale_source, status.scale_status = True, "range", "frozen"
    status.drop_counts = [3, 4]
    marker = status_marker(status)
    assert marker.header == status.header
    assert (marker.ns, marker.type) == ("/eye", Marker.TEXT_VIEW_FACING)
    first, second, third = marker.text.splitlines()
    assert first == STATE_WORDS[state]
    assert second == "33 ms, metric (range: frozen)"
    assert third == "epoch 2, frame 71, 7 dropped"
    assert marker.lifetime.sec > 0


def test_no_state_is_forgotten() -> None:
    constants = [getattr(StreamStatus, name) for name in dir(StreamStatus) if name.isupper()]
    assert {state for state in constants if isinstance(state, int)} == set(STATE_WORDS)
