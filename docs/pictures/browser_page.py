# SPDX-License-Identifier: Apache-2.0
"""Make docs/images/view.png: what `omnistream view` shows while the bundled recording is played.

    python docs/pictures/browser_page.py [OUT.png]

Needs the environment of scripts/env.sh, viser (`pip install '.[view]'`) and Chromium.
Node, player and viewer are real processes; the page is drawn by a real browser without a screen.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from websockets.sync.client import ClientConnection, connect

from omnistream_ros.evaluation.child_process import ChildProcess, children, wait_until
from omnistream_ros.evaluation.demo import BUNDLED
from omnistream_ros.evaluation.live import environment

OUT = Path(__file__).resolve().parents[1] / "images" / "view.png"
SIZE = 1400, 1060
PATIENCE_S = 60.0


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("out", nargs="?", type=Path, default=OUT)
    parser.add_argument("--after", type=float, default=24.0, help="seconds of the recording")
    parser.add_argument("--speed", type=float, default=0.2, help="1: as recorded")
    options = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        sys.exit("Chromium is not installed (Debian, Ubuntu: apt install chromium)")
    with tempfile.TemporaryDirectory() as folder, children() as running:
        env = environment()

        def start(name: str, command: Sequence[str]) -> ChildProcess:
            child = ChildProcess(name, command, Path(folder, f"{name}.log"), env)
            running.append(child)
            return child

        def omnistream(name: str, *words: str) -> ChildProcess:
            return start(name, [sys.executable, "-m", "omnistream_ros.cli", name, *words])

        node = start(
            "node",
            [sys.executable, "-m", "omnistream_ros.nodes.perception", "--ros-args",
             "-p", "autostart:=true"],
        )  # fmt: skip
        view = omnistream("view", "--port", str(_free_port()))
        wait_until(lambda: " at http" in view.output() or None, PATIENCE_S, [node, view], "a page")
        address = view.output().split(" at http")[1].split()[0]
        wait_until(
            lambda: "waiting for images" in node.output() or None, PATIENCE_S, [node], "the node"
        )
        with _browser(chromium, f"http{address}", folder) as page:
            time.sleep(5.0)  # the page draws by software
            player = omnistream("play", str(BUNDLED), "--speed", str(options.speed))
            begun = "epoch 0 begins"
            wait_until(lambda: begun in node.output() or None, PATIENCE_S, [node, player], begun)
            time.sleep(options.after)
            png = np.frombuffer(_screenshot(page), np.uint8)
    picture = Image.fromarray(cv2.imdecode(png, cv2.IMREAD_COLOR_RGB))
    picture.quantize(256, method=Image.Quantize.MEDIANCUT).save(options.out, optimize=True)
    print(f"{options.out}: {options.out.stat().st_size / 1e3:.0f} kB")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class _browser:  # noqa: N801  (used as a function)
    """A browser without a screen on one page; its DevTools socket."""

    def __init__(self, chromium: str, address: str, folder: str) -> None:
        self._port = _free_port()
        self._process = subprocess.Popen(
            [
                chromium,
                "--headless=new",
                "--no-sandbox",
                "--use-angle=swiftshader",
                "--enable-unsafe-swiftshader",
                "--hide-scrollbars",
                f"--window-size={SIZE[0]},{SIZE[1]}",
                f"--user-data-dir={folder}/browser",
                f"--remote-debugging-port={self._port}",
                "--remote-allow-origins=*",
                address,
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "HOME": folder},
        )

    def __enter__(self) -> str:
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/json") as answer:
                    pages = [page for page in json.load(answer) if page["type"] == "page"]
                return pages[0]["webSocketDebuggerUrl"]
            except (OSError, LookupError):
                time.sleep(0.2)
        raise TimeoutError("the browser did not start")

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()


def _screenshot(page: str) -> bytes:
    # The note that there is no GPU is about this machine, not about the page.
    close = "document.querySelectorAll('[class*=Notification-close]').forEach(x => x.click())"
    with connect(page, max_size=64 << 20) as devtools:
        _ask(devtools, "Runtime.evaluate", expression=close)
        time.sleep(1.0)  # it fades
        return base64.b64decode(_ask(devtools, "Page.captureScreenshot")["data"])


def _ask(devtools: ClientConnection, method: str, **parameters: str) -> dict:
    devtools.send(json.dumps({"id": 1, "method": method, "params": parameters}))
    while True:
        answer = json.loads(devtools.recv(timeout=PATIENCE_S))
        if answer.get("id") == 1:
            return answer["result"]


if __name__ == "__main__":
    main()
