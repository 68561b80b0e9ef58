# SPDX-License-Identifier: Apache-2.0
"""A saved stream comes back to the last bit, and nothing else is taken for one."""

from __future__ import annotations

import contextlib
import math
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from omnistream_ros.model import NANO, OmniStream, build_model
from omnistream_ros.stream.frame import Frame
from omnistream_ros.stream.session import StreamSession
from omnistream_ros.stream.state_file import StateFileError, load_state, save_state, state_path

SHA = "ab" * 32
PLENTY = 1 << 30

leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=5),
    st.builds(
        lambda values, kind: np.array(values, kind),
        st.lists(st.integers(0, 100), max_size=4),
        st.sampled_from([np.float64, np.float32, np.int64, np.uint8, np.bool_]),
    ),
    st.builds(
        lambda values, kind: torch.tensor(values, dtype=kind),
        st.lists(st.floats(-100, 100), max_size=4),
        st.sampled_from([torch.float32, torch.bfloat16, torch.float64, torch.int8]),
    ),
)
keys = st.one_of(st.text(max_size=3), st.integers(0, 9))
trees = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(keys, inner, max_size=3),
    ),
    max_leaves=12,
)


def same(a: Any, b: Any) -> bool:
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b)
    if isinstance(a, float):
        return a == b or (math.isnan(a) and math.isnan(b))
    return bool(a == b)


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(keys, trees, max_size=4))
def test_whatever_a_state_holds_comes_back(state: dict) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "new", "state.safetensors")
        size = save_state(path, state, SHA)
        assert path.stat().st_size == size
        assert os.listdir(path.parent) == [path.name]
        assert same(load_state(path, SHA, PLENTY), state)


@pytest.fixture(scope="module")
def model() -> OmniStream:
    torch.manual_seed(0)
    return build_model(NANO).eval()


def test_a_stream_goes_on_from_a_file_to_the_last_bit(model: OmniStream, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    frames = [Frame(rng.integers(0, 256, (48, 64, 3), np.uint8), 10**8 * i) for i in range(9)]
    whole, begun = StreamSession(model, window=3), StreamSession(model, window=3)
    expected = [whole.step(frame) for frame in frames]
    for frame in frames[:5]:
        begun.step(frame)
    path = tmp_path / "a.safetensors"
    save_state(path, begun.state_dict(), SHA)
    restored = StreamSession(model, window=3)
    restored.load_state_dict(load_state(path, SHA, PLENTY))
    for frame, wanted in zip(frames[5:], expected[5:], strict=True):
        result = restored.step(frame)
        assert torch.equal(result.depth, wanted.depth)
        np.testing.assert_array_equal(result.pose.translation, wanted.pose.translation)
        np.testing.assert_array_equal(result.pose.quaternion, wanted.pose.quaternion)
        assert (result.epoch, result.frame_index) == (wanted.epoch, wanted.frame_index)


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "a/b", "/etc/passwd", ".hidden", "a" * 65, "a b", "a\0b", "-x"]
)
def test_names_that_are_not_plain_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(StateFileError, match="letters"):
        state_path(tmp_path, name)


def test_plain_names_stay_in_the_folder(tmp_path: Path) -> None:
    for name in ("a", "kitchen-2", "run_3.b", "9"):
        assert state_path(tmp_path, name).parent == tmp_path


def test_other_weights_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_state(path, {"x": torch.ones(3)}, SHA)
    with pytest.raises(StateFileError, match="abababababab"):
        load_state(path, "cd" * 32, PLENTY)


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with path.open("wb") as file:
        file.truncate(1 << 40)  # sparse
    with pytest.raises(StateFileError, match=r"at most 1\.0 MB"):
        load_state(path, SHA, 10**6)


def test_what_is_no_state_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with pytest.raises(StateFileError, match="No such file"):
        load_state(path, SHA, PLENTY)
    path.write_bytes(b"\x80\x04pickle")
    with pytest.raises(StateFileError, match="damaged"):
        load_state(path, SHA, PLENTY)
    from safetensors.torch import save_file

    save_file({"w": torch.ones(2)}, path)
    with pytest.raises(StateFileError, match="no saved stream"):
        load_state(path, SHA, PLENTY)


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_damage_is_noticed_or_harmless(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "state.safetensors")
        save_state(path, {"a": [1, (2.5, torch.arange(6))], 3: np.eye(2)}, SHA)
        content = bytearray(path.read_bytes())
        for _ in range(data.draw(st.integers(1, 8))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
        with contextlib.suppress(StateFileError):
            load_state(path, SHA, PLENTY)


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StateFileError, match="cannot write"):
        save_state(tmp_path / "file" / "a.safetensors", {}, SHA)


def test_a_state_of_another_cache_is_refused(model: OmniStream, tmp_path: Path) -> None:
    session = StreamSession(model, window=3)
    session.step(Frame(np.zeros((48, 64, 3), np.uint8), 0))
    save_state(tmp_path / "a.safetensors", session.state_dict(), SHA)
    other = StreamSession(model, window=4)
    with pytest.raises(ValueError, match="does not fit"):
        other.load_state_dict(load_state(tmp_path / "a.safetensors", SHA, PLENTY))
