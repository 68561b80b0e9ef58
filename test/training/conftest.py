# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the tests of rendered rooms; they skip where furniture or OpenGL is missing."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from omnistream_ros.training.assets import AssetError, FurnitureLibrary
from omnistream_ros.training.render import Renderer, RenderError
from omnistream_ros.training.scenes import SceneMaker


@pytest.fixture(scope="session")
def maker() -> SceneMaker:
    try:
        return SceneMaker(FurnitureLibrary(), pictures=False)
    except AssetError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def renderer(request: pytest.FixtureRequest) -> Iterator[Renderer]:
    """Of the WIDTH and HEIGHT of the module that asks."""
    try:
        made = Renderer(request.module.WIDTH, request.module.HEIGHT)
    except RenderError as error:
        pytest.skip(str(error))
    yield made
    made.close()
