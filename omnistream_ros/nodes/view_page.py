# SPDX-License-Identifier: Apache-2.0
"""The page of `omnistream view`: camera image, depth, points and path in 3D, latency. No ROS here.

Served by viser on the loopback interface alone: whoever may see it is logged in on this machine, or
has come through a tunnel of their own (``ssh -L 8080:localhost:8080 robot``).
"""

from __future__ import annotations

import collections

import cv2
import numpy as np
import viser
import viser.uplot

from omnistream_ros.stream.geometry import matrix_to_quaternion

_HISTORY = 300  # frames in the latency plot
_IMAGE_WIDTH = 480  # pixels of pictures sent to the browser
_PATH_COLOUR = (255, 176, 32)
_GRID = (72, 76, 84)
_INK, _SHADE = "#ffb020", "#7f8ea3"


class ViewPage:
    """One page; any number of browsers. Methods may be called from one thread.

    Args:
        port: of http://localhost; the next free one is taken when it is in use.
        title: what the page calls itself, such as the node's name.
    """

    def __init__(self, port: int, title: str) -> None:
        self._server = viser.ViserServer(host="127.0.0.1", port=port, label=title, verbose=False)
        scene, gui = self._server.scene, self._server.gui
        gui.configure_theme(
            control_width="medium",
            dark_mode=True,  # pale walls and floors disappear on white
            show_logo=False,
            show_share_button=False,  # it would open a tunnel through somebody else's server
        )
        gui.main_panel.dock_right()
        gui.set_panel_label(title)
        scene.set_up_direction("+z")
        scene.add_grid(
            "/floor",
            width=10,
            height=10,
            cell_size=0.5,
            section_size=1.0,
            cell_color=_GRID,
            section_color=_GRID,
            plane_opacity=0.0,
        )
        self._server.initial_camera.position = (-1.8, -1.2, 1.3)
        self._server.initial_camera.look_at = (1.5, -0.5, -0.3)
        self._state = gui.add_markdown("Waiting for the node.")
        nothing = np.full((360, 480, 3), 60, np.uint8)
        self._image = gui.add_image(nothing, label="camera", format="jpeg")
        self._depth = gui.add_image(nothing, label="depth: red 0.3 m, blue 10 m", format="jpeg")
        self._point_size = gui.add_slider("point size (cm)", 0.2, 5.0, 0.1, 1.2)
        self._latency: collections.deque[tuple[float, float]] = collections.deque(maxlen=_HISTORY)
        self._plot = gui.add_uplot(
            self._plot_data(),
            (
                viser.uplot.Series(label="frame"),
                viser.uplot.Series(label="image to outputs (ms)", stroke=_INK, width=2),
                viser.uplot.Series(label="model (ms)", stroke=_SHADE, width=2),
            ),
            title="latency",
            scales={"x": viser.uplot.Scale(time=False)},
            aspect=2.4,
        )
        self._frustum: viser.CameraFrustumHandle | None = None
        self._points: viser.PointCloudHandle | None = None

    @property
    def address(self) -> str:
        """Where a browser on this machine finds the page."""
        return f"http://localhost:{self._server.get_port()}"

    @property
    def watched(self) -> bool:
        """Whether a browser has the page open."""
        return bool(self._server.get_clients())

    def close(self) -> None:
        """Stop serving."""
        self._server.stop()

    def show_state(self, markdown: str) -> None:
        """The lines at the top."""
        self._state.content = markdown

    def show_image(self, rgb: np.ndarray) -> None:
        """The camera image, (H, W, 3) uint8."""
        self._image.image = _smaller(rgb)

    def show_depth(self, rgb: np.ndarray) -> None:
        """Depth in colours, (H, W, 3) uint8."""
        height = round(rgb.shape[0] * _IMAGE_WIDTH / rgb.shape[1])
        size = (_IMAGE_WIDTH, height)  # as wide as the camera image beside it
        self._depth.image = np.asarray(cv2.resize(rgb, size, interpolation=cv2.INTER_NEAREST))

    def show_camera(self, pose: np.ndarray, fov: float, rgb: np.ndarray | None) -> None:
        """Where the camera is, (4, 4) odom_from_optical, its vertical field of view in radians."""
        x, y, z, w = matrix_to_quaternion(pose[:3, :3])
        turn, place = (w, x, y, z), tuple(pose[:3, 3])
        picture = None if rgb is None else _smaller(rgb, 160)
        aspect = 4 / 3 if rgb is None else rgb.shape[1] / rgb.shape[0]
        if self._frustum is None:
            self._frustum = self._server.scene.add_camera_frustum(
                "/camera", fov, aspect, scale=0.25, color=_PATH_COLOUR, image=picture
            )
        with self._server.atomic():
            self._frustum.fov, self._frustum.aspect = fov, aspect
            self._frustum.wxyz, self._frustum.position = turn, place
            if picture is not None:
                self._frustum.image = picture

    def show_points(self, points: np.ndarray, colours: np.ndarray) -> None:
        """A cloud in the odometry frame: points (N, 3) metres, colours (N, 3) uint8."""
        size = self._point_size.value / 100
        if self._points is None:
            self._points = self._server.scene.add_point_cloud(
                "/points", points, colours, point_size=size, precision="float32"
            )
            return
        with self._server.atomic():
            self._points.points, self._points.colors = points.astype(np.float32), colours
            self._points.point_size = size

    def show_path(self, positions: np.ndarray) -> None:
        """Where the camera has been, (N, 3) metres in the odometry frame."""
        if len(positions) > 1:
            lines = np.stack([positions[:-1], positions[1:]], axis=1)
            self._server.scene.add_line_segments("/path", lines, _PATH_COLOUR, thickness=0.015)

    def add_latency(self, total_ms: float, model_ms: float) -> None:
        """One processed frame."""
        self._latency.append((total_ms, model_ms))

    def draw_latency(self) -> None:
        """Bring the plot up to date; for a few times a second, not for every frame."""
        self._plot.data = self._plot_data()

    def _plot_data(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        values = np.array(self._latency or [(0.0, 0.0)], np.float64)
        return np.arange(1 - len(values), 1, dtype=np.float64), values[:, 0], values[:, 1]


def _smaller(rgb: np.ndarray, width: int = _IMAGE_WIDTH) -> np.ndarray:
    if rgb.shape[1] <= width:
        return rgb
    height = max(1, round(rgb.shape[0] * width / rgb.shape[1]))
    return np.asarray(cv2.resize(rgb, (width, height), interpolation=cv2.INTER_AREA))
