# SPDX-License-Identifier: Apache-2.0
"""Policy files: what was written is read again, and every kind of mismatch is named."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("onnxruntime", reason="needs the extra 'onnx'")
pytest.importorskip("onnx", reason="needs the extra 'onnx'")

import onnx
from hypothesis import given, settings
from hypothesis import strategies as st
from policy_files import FACTS, run_inputs, with_action, write_graph, write_policy

from omnistream_ros.action.policy_facts import METADATA_KEY, PolicyFacts
from omnistream_ros.action.policy_file import (
    PolicyFileError,
    open_policy_file,
    write_policy_facts,
)
from omnistream_ros.action.spaces import ActionSpec, Space


def test_what_was_written_is_read_again(tmp_path: Path) -> None:
    session, facts = open_policy_file(write_policy(tmp_path / "a.onnx"))
    assert facts == FACTS
    (actions,) = session.run([facts.output], run_inputs(facts, 0.25))
    assert actions.shape == (1, 8, 2)
    assert actions == pytest.approx(0.75)


def test_the_file_is_what_onnx_itself_would_have_written(tmp_path: Path) -> None:
    path = write_policy(tmp_path / "a.onnx")
    model = onnx.load(path)
    onnx.checker.check_model(model)
    assert {p.key: json.loads(p.value)["name"] for p in model.metadata_props} == {
        METADATA_KEY: "lean"
    }


@given(st.text(max_size=400))
@settings(max_examples=30, deadline=None)
def test_any_text_survives(text: str) -> None:
    facts = dataclasses.replace(FACTS, licence=text, tasks={text: [text, 1, None]})
    assert PolicyFacts.from_json(facts.to_json()) == facts


def test_sizes_that_the_graph_leaves_open_fit(tmp_path: Path) -> None:
    path = write_graph(tmp_path / "a.onnx", FACTS, features=("batch", "rows", "columns", 4))
    write_policy_facts(path, FACTS)
    assert open_policy_file(path)[1] == FACTS


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"features": (1, 2, 3, 5)}, "input 'features' has shape [1, 2, 3, 4] by the metadata"),
        ({"features": (1, 6, 4)}, "[1, 6, 4] in the graph"),
        ({"words": None}, "the metadata names input 'words', the graph has ['features', 'state']"),
        ({"actions": (1, 4, 2)}, "output 'actions' has shape [1, 8, 2] by the metadata"),
    ],
)
def test_every_mismatch_is_named_and_the_file_left_alone(
    tmp_path: Path, sizes: dict[str, Any], words: str
) -> None:
    path = write_graph(tmp_path / "a.onnx", FACTS, **sizes)
    before = path.read_bytes()
    with pytest.raises(PolicyFileError, match=r"a\.onnx") as caught:
        write_policy_facts(path, FACTS)
    assert words in str(caught.value)
    assert path.read_bytes() == before


def test_all_mismatches_are_told_at_once(tmp_path: Path) -> None:
    path = write_graph(tmp_path / "a.onnx", FACTS, features=(1, 9, 3, 4), state=(1, 7))
    with pytest.raises(PolicyFileError) as caught:
        write_policy_facts(path, FACTS)
    assert "'features'" in str(caught.value)
    assert "'state'" in str(caught.value)


def test_an_input_that_the_metadata_does_not_know(tmp_path: Path) -> None:
    path = write_graph(tmp_path / "a.onnx", FACTS)
    silent = dataclasses.replace(FACTS, instruction=None)
    with pytest.raises(PolicyFileError, match="input 'words', of which the metadata says nothing"):
        write_policy_facts(path, silent)


def test_no_second_entry(tmp_path: Path) -> None:
    path = write_policy(tmp_path / "a.onnx")
    with pytest.raises(PolicyFileError, match="already"):
        write_policy_facts(path, FACTS)


@pytest.mark.parametrize("content", [b"", b"not a graph", b"\x08\x08" * 100])
def test_garbage_is_no_policy(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.onnx"
    path.write_bytes(content)
    with pytest.raises(PolicyFileError, match=r"a\.onnx"):
        open_policy_file(path)


def test_a_file_cut_short_is_no_policy(tmp_path: Path) -> None:
    path = write_policy(tmp_path / "a.onnx")
    whole = path.read_bytes()
    for length in range(1, len(whole), 37):
        path.write_bytes(whole[:length])
        with pytest.raises(PolicyFileError, match=r"a\.onnx"):
            open_policy_file(path)


def test_missing_file_and_graph_without_metadata(tmp_path: Path) -> None:
    with pytest.raises(PolicyFileError, match="no such file"):
        open_policy_file(tmp_path / "none.onnx")
    with pytest.raises(PolicyFileError, match="is no policy"):
        open_policy_file(write_graph(tmp_path / "a.onnx", FACTS))


def _spoilt(**changes: Any) -> str:
    record = json.loads(FACTS.to_json())
    for path, value in changes.items():
        at = record
        *folders, last = path.split("__")
        for folder in folders:
            at = at[int(folder)] if isinstance(at, list) else at[folder]
        if value is _spoilt:
            del at[last]
        else:
            at[last] = value
    return json.dumps(record)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is no JSON"),
        ("[" * 100_000, "is no JSON"),
        ("[]", "policy must be an object"),
        (_spoilt(format=2), "its format is 2"),
        (_spoilt(format=True), "'format' must be int"),
        (_spoilt(name=_spoilt), "'name' is missing"),
        (_spoilt(name=""), "has no name"),
        (_spoilt(nmae="x"), "unknown entries ['nmae']"),
        (_spoilt(model_sha256="ABC"), "64 lower-case hexadecimal digits"),
        (_spoilt(features__0__key="-1:patch:normed"), "a file gives the number of the block"),
        (_spoilt(features__0__key="-1:patch"), "'-1:patch:normed'"),
        (_spoilt(features__0__key="-2:patch:normed"), "LAYER a block from 0"),
        (_spoilt(features__0__key="3:pixels"), "KIND one of patch"),
        (_spoilt(features__0__shape=[4]), "must be 3 positive sizes"),
        (_spoilt(features__0__shape=[2, 3, 0]), "must be 3 positive sizes"),
        (_spoilt(features__0__shape=[2, 3, True]), "must be a list of integers"),
        (_spoilt(features__0__stream=""), "names no stream"),
        (_spoilt(features__0__input="state"), "an ONNX name of its own"),
        (_spoilt(proprioception__names=["a", "a"]), "proprioception names must be different"),
        (_spoilt(proprioception__units=["rad"]), "1 units for 2 names"),
        (_spoilt(instruction__encoder="word2vec"), "'word2vec' of width 384 is not known"),
        (_spoilt(action__space="torque"), "space must be one of joint_position"),
        (_spoilt(action__units=["rad", "deg"]), "unit of 'elbow' must be m or rad or 1"),
        (_spoilt(action__frame="base"), "has no frame"),
        (_spoilt(action__horizon=0), "horizon must lie between 1"),
        (_spoilt(action__dt=0), "dt must be a positive"),
        (_spoilt(action__dt=float("nan")), "dt must be a positive"),
        (_spoilt(action__low=[1.0, -2.0]), "range of 'shoulder'"),
        (_spoilt(action__high=[float("inf"), 2.0]), "range of 'shoulder'"),
        (_spoilt(action__high=[1.0]), "high: 1 for 2 names"),
        (_spoilt(action__names=["x", "x"]), "names must be different"),
    ],
)
def test_wrong_metadata_says_what_is_wrong(text: str, words: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        PolicyFacts.from_json(text)
    assert words in str(caught.value)


def test_several_faults_are_told_at_once() -> None:
    with pytest.raises(ValueError, match=r"horizon .*; .*dt "):
        with_action(horizon=0, dt=-1.0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"frame": ""}, "needs the frame"),
        ({"names": ("grip", "turn")}, "needs one of the names"),
        ({"units": ("m/s", "1")}, "unit of 'x' must be m,"),
    ],
)
def test_cartesian_spaces_need_axes_and_a_frame(changes: dict[str, Any], words: str) -> None:
    right = {
        "space": Space.END_EFFECTOR_DELTA,
        "names": ("x", "grip"),
        "units": ("m", "1"),
        "frame": "base",
    }
    spec = with_action(**right).action
    assert isinstance(spec, ActionSpec)
    assert (spec.motion, spec.joints) == ((0,), (1,))
    with pytest.raises(ValueError, match=words):
        with_action(**{**right, **changes})
