# SPDX-License-Identifier: Apache-2.0
"""The browser page: on the loopback interface only, and idle while nobody looks.

With Chromium installed the whole path is tried: a node, images, a real browser.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("viser", reason="the page needs viser (pip install omnistream_ros[view])")

from omnistream_ros.msg import StreamStatus
from ros_processes import NODE, NodeStarter, User

from omnistream_ros.nodes import viewer
from omnistream_ros.nodes.view_page import ViewPage

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture
def page() -> Iterator[ViewPage]:
    made = ViewPage(_free_port(), "test")
    yield made
    made.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _view(arguments: list[str]) -> int:
    port, *rest = arguments
    return viewer.view(NODE, "/image", int(port), rest)


def test_served_to_this_machine_only(page: ViewPage) -> None:
    with urllib.request.urlopen(page.address, timeout=20) as answer:
        assert b"<html" in answer.read().lower()
    port = int(page.address.rpartition(":")[2])
    # 127.0.0.2 is this machine too: a server bound to all addresses would answer there.
    with socket.socket() as other, pytest.raises(ConnectionRefusedError):
        other.connect(("127.0.0.2", port))


def test_a_port_in_use_gives_way_to_the_next(page: ViewPage) -> None:
    port = int(page.address.rpartition(":")[2])
    second = ViewPage(port, "second")
    try:
        assert second.address != page.address
        urllib.request.urlopen(second.address, timeout=20).close()
    finally:
        second.close()


def test_everything_can_be_shown_before_anyone_looks(page: ViewPage) -> None:
    rgb = np.zeros((36, 48, 3), np.uint8)
    for width in (1, 47, 2000):
        page.show_image(np.zeros((30, width, 3), np.uint8))
    page.show_depth(rgb)
    for picture in (None, rgb):
        page.show_camera(np.eye(4), 0.8, picture)
    page.show_points(np.zeros((0, 3)), np.zeros((0, 3), np.uint8))
    page.show_points(np.ones((5, 3)), np.zeros((5, 3), np.uint8))
    for count in (0, 1, 2):
        page.show_path(np.zeros((count, 3)))
    page.add_latency(30.0, 20.0)
    page.draw_latency()
    assert not page.watched


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_subscribes_while_a_browser_looks(
    start_node: NodeStarter, user: User, tmp_path: Path
) -> None:
    shown = start_node.fork(_view, [str(_free_port()), "--ros-args"])
    address = shown.wait_for("at http://localhost").split(" at ")[1].split()[0]
    node = start_node(autostart=True)
    node.wait_for("waiting for images")

    def heard(topic: str) -> int:
        return user.node.count_subscribers(topic)

    user.wait_until(lambda: heard(f"{NODE}/status") >= 1, "the viewer's status subscription")
    assert heard(f"{NODE}/depth/points") == 0, "nobody looks, nothing is computed"
    browser = subprocess.Popen(
        [
            str(CHROMIUM),
            "--headless=new",
            "--no-sandbox",
            "--use-angle=swiftshader",
            "--enable-unsafe-swiftshader",
            f"--user-data-dir={tmp_path}",
            "--remote-debugging-port=0",
            address,
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        user.wait_until(lambda: heard(f"{NODE}/depth/points") == 1, "a browser")
        status = user.collect(StreamStatus, f"{NODE}/status")
        user.process(user.camera(), status)
    finally:
        browser.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            browser.wait(20)
        browser.kill()
    user.wait_until(lambda: heard(f"{NODE}/depth/points") == 0, "the end of the subscription")
    assert shown.end() == 0
    assert shown.count("not shown") == 0, shown.log
