# SPDX-License-Identifier: Apache-2.0
"""What `omnistream info` says of the runs behind weights, those of older cards included."""

from __future__ import annotations

import pytest

from omnistream_ros import cli
from omnistream_ros.training.training_record import rows


def test_sums_and_the_last_run_stand_apart() -> None:
    told = rows({"steps": 30, "hours": 2.5, "last run": {"steps": 10, "clips": 7}, "data": "rooms"})
    assert list(told.items()) == [
        ("steps, all runs", 30),
        ("hours, all runs", 2.5),
        ("last run", "steps 10, clips 7"),
        ("data", "rooms"),
    ]
    assert rows({}) == {}
    assert rows({"heads": {"steps": 5}}) == {"heads": {"steps": 5}}


def test_cards_of_before_are_told_in_the_same_way(capsys: pytest.CaptureFixture[str]) -> None:
    """Those of the bundled weights, among others, have seed and clips beside the sums."""
    old = rows({"steps": 30, "frames": 99, "seed": 0, "clips": 7, "recorded": ["attic"]})
    assert old == {
        "steps, all runs": 30,
        "frames, all runs": 99,
        "last run": "seed 0, clips 7",
        "recorded": "attic (licence not stated)",
    }
    assert cli.main(["info"]) == 0
    lines = (line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    said = {name: value.strip() for name, value in lines}
    assert int(said["trained: frames, all runs"]) > 0
    assert "clips " in said["trained: last run"]
    assert "trained: clips" not in said
