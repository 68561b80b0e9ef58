# SPDX-License-Identifier: Apache-2.0
"""Fixtures shared by all floors."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of golden numbers and real recordings that may lie beside the project."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip(f"no folder {folder}: golden numbers and real recordings are not available")
    return folder
