# SPDX-License-Identifier: Apache-2.0
"""How Fast DDS is told of its profile; without config/fastdds.xml it loses most large images.

Without ROS and without torch, so that launch files and programs that start nodes can ask.
"""

from __future__ import annotations

from collections.abc import Mapping

_NAME, _OLDER_NAME = "FASTDDS_DEFAULT_PROFILES_FILE", "FASTRTPS_DEFAULT_PROFILES_FILE"


def profile_variable(environment: Mapping[str, str]) -> str:
    """The environment variable to set, or "" where the user has set one; that is kept.

    ROS 2 Jazzy knows the older name only, and later distributions warn of it.
    """
    if environment.get(_NAME) or environment.get(_OLDER_NAME):
        return ""
    return _OLDER_NAME if environment.get("ROS_DISTRO") == "jazzy" else _NAME
