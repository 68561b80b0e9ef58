# SPDX-License-Identifier: Apache-2.0
"""The state of a stream as a text that rviz and Foxglove draw above the camera."""

from __future__ import annotations

from builtin_interfaces.msg import Duration
from visualization_msgs.msg import Marker

from omnistream_ros.msg import StreamStatus

STATE_WORDS = {
    StreamStatus.INACTIVE: "inactive",
    StreamStatus.WAITING: "waiting for images",
    StreamStatus.STREAMING: "streaming",
    StreamStatus.STALLED: "stalled: no images",
    StreamStatus.FAULT: "fault",
    StreamStatus.PAUSED: "paused",
}
_LETTER_M = 0.06
_ABOVE_M = 0.25
# Longer than between two of them in the slowest stream; what is older has no node behind it.
_LASTS_S = 65


def status_marker(status: StreamStatus) -> Marker:
    """A text that faces the viewer, in the frame of the camera, optical axes."""
    marker = Marker(
        header=status.header,
        ns=status.stream_id,
        type=Marker.TEXT_VIEW_FACING,
        action=Marker.ADD,
        lifetime=Duration(sec=_LASTS_S),
        text="\n".join(_lines(status)),
    )
    marker.pose.position.y = -_ABOVE_M
    marker.pose.orientation.w = 1.0
    marker.scale.z = _LETTER_M
    good = status.state in (StreamStatus.STREAMING, StreamStatus.PAUSED)
    colour = (0.85, 0.9, 0.95) if good else (1.0, 0.6, 0.1)
    marker.color.r, marker.color.g, marker.color.b = colour
    marker.color.a = 1.0
    return marker


def _lines(status: StreamStatus) -> list[str]:
    scale = "metric" if status.metric else "up to scale"
    if status.scale_source not in ("", "model"):
        scale += f" ({status.scale_source}: {status.scale_status})"
    dropped = sum(status.drop_counts)
    return [
        STATE_WORDS.get(status.state, "unknown"),
        f"{status.latency_ms:.0f} ms, {scale}",
        f"epoch {status.epoch}, frame {status.frame_index}, {dropped} dropped",
    ]
