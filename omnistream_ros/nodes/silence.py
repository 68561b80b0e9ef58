# SPDX-License-Identifier: Apache-2.0
"""Why no image comes, in words: what is published where, and what does not fit.

A subscription that matches nothing is silent in ROS. Everything needed to say why is in the graph:
who publishes on the topic, of which type and with which quality of service, and where else there
are images.
"""

from __future__ import annotations

import difflib

from rclpy.node import Node
from rclpy.qos import QoSCompatibility, QoSProfile, qos_check_compatible
from rclpy.topic_endpoint_info import TopicEndpointInfo

from omnistream_ros.nodes.transports import COMPRESSED, RAW, Transport

# Topics and publishers named in one message; a robot may have hundreds.
_NAMED = 5


def explain_silence(node: Node, topic: str, transport: Transport, asked: QoSProfile) -> str:
    """Why nothing arrives on an image topic, and what to change.

    Args:
        topic: full name of what is subscribed to.
        asked: quality of service of the subscription.
    """
    publishers = node.get_publishers_info_by_topic(topic)
    right = [p for p in publishers if p.topic_type == transport.type_name]
    if not publishers:
        return f"nobody publishes on '{topic}'; {_elsewhere(node, topic, transport)}"
    if not right:
        return (
            f"'{topic}' carries {publishers[0].topic_type} (from {_who(publishers[0])}), and this "
            f"node subscribes to {transport.type_name}; {_elsewhere(node, topic, transport)}"
        )
    misfits = [(p, why) for p in right if (why := _misfit(p, asked, topic))]
    if len(misfits) == len(right):
        return "; ".join(why for _, why in misfits[:_NAMED])
    fitting = next(p for p in right if not _misfit(p, asked, topic))
    return (
        f"{_who(fitting)} publishes on '{topic}', but nothing arrives: does it send (ros2 topic hz "
        f"{topic})? Large images need the Fast DDS profile of this package's config/fastdds.xml on "
        "both sides, or input_transport compressed"
    )


def _misfit(publisher: TopicEndpointInfo, asked: QoSProfile, topic: str) -> str:
    """Why a publisher and the subscription cannot be connected; empty when they can."""
    compatibility, reason = qos_check_compatible(publisher.qos_profile, asked)
    if compatibility != QoSCompatibility.ERROR:
        return ""
    advice = f"set 'qos_overrides.{topic}.subscription.POLICY' to what it offers"
    if "reliab" in reason.lower():
        advice = (
            "it offers best effort and this node asks for reliable: set the parameter 'image_qos' "
            f"to sensor_data, or 'qos_overrides.{topic}.subscription.reliability' to best_effort"
        )
    return f"{_who(publisher)} publishes on '{topic}' with another quality of service: {advice}"


def _elsewhere(node: Node, topic: str, transport: Transport) -> str:
    """Where there are images, most similar names first."""
    known = {RAW.type_name: RAW, COMPRESSED.type_name: COMPRESSED}
    found: dict[str, Transport] = {}
    # What this node publishes, and what its other cameras read, is no camera for this one.
    taken = {topic, *(subscription.topic_name for subscription in node.subscriptions)}
    for name, types in node.get_topic_names_and_types():
        own = name in taken or name.startswith(f"{node.get_fully_qualified_name()}/")
        if not own and types[0] in known and node.count_publishers(name):
            found[name] = known[types[0]]
    if not found:
        return "no other images are published: is the camera's driver running, in this domain?"
    base = topic.removesuffix(transport.suffix)
    for other in (RAW, COMPRESSED):
        if other is not transport and found.get(base + other.suffix) is other:
            return f"it is there as '{base + other.suffix}': set 'input_transport' to {other.name}"
    near = sorted(found, key=lambda name: -difflib.SequenceMatcher(None, name, topic).ratio())
    listed = ", ".join(
        f"'{name}'" + (" (compressed)" if found[name] is COMPRESSED else "")
        for name in near[:_NAMED]
    )
    more = f" and {len(near) - _NAMED} more" if len(near) > _NAMED else ""
    return f"images are published on {listed}{more}: remap '{topic}' to one of them"


def _who(publisher: TopicEndpointInfo) -> str:
    namespace = publisher.node_namespace.rstrip("/")
    return f"{namespace}/{publisher.node_name}"
