# SPDX-License-Identifier: Apache-2.0
"""One stream of a cache that holds many, as the state of a cache that holds it alone.

So a stream saved from a batch continues in a session, and the other way round.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor


def stream_of(state: dict[str, Any], row: int) -> dict[str, Any]:
    """The state of one stream out of `KVCache.state_dict()` of many."""
    return {
        "layout": _layout(state, 1),
        "streams": [state["streams"][row]],
        "storage": {name: _row(x, row).clone() for name, x in state["storage"].items()},
        "sink_time": _row(state["sink_time"], row).clone(),
        "keyframe_time": _row(state["keyframe_time"], row).clone(),
        "appearances": [state["appearances"][row]],
    }


def put_stream(state: dict[str, Any], row: int, stream: dict[str, Any]) -> None:
    """Write the state of one stream into that of many, in place.

    Raises:
        ValueError: the two are not of one kind of cache.
    """
    if stream["layout"] != _layout(state, 1):
        raise ValueError(
            f"the state of a cache of {stream['layout']} does not fit one of {_layout(state, 1)}"
        )
    for name, values in stream["storage"].items():
        _row(state["storage"][name], row).copy_(values)
    for name in ("sink_time", "keyframe_time"):
        _row(state[name], row).copy_(stream[name])
    state["streams"][row] = stream["streams"][0]
    state["appearances"][row] = stream["appearances"][0]


def _row(x: Tensor, row: int) -> Tensor:
    """One stream of (layers, streams, ...), as (layers, 1, ...)."""
    return x[:, row : row + 1]


def _layout(state: dict[str, Any], streams: int) -> dict[str, Any]:
    layers, _, *rest = state["layout"]["shape"]
    return {**state["layout"], "shape": (layers, streams, *rest)}
