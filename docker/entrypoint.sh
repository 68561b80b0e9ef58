#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Run a command in the environment of the workspace.
set -e
. "/opt/ros/${ROS_DISTRO}/setup.bash"
. /ws/install/setup.bash
exec "$@"
