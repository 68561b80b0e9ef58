# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses
import json

import pytest

torch = pytest.importorskip("torch")

from omnistream_ros.evaluation import bench  # noqa: E402
from omnistream_ros.evaluation.bench_row import Case, Measurement, measure  # noqa: E402

TINY = Case("omnistream-nano", "cached", 3, 48, 64, repeats=1, threads=1)


def test_work_of_both_ways_is_counted() -> None:
    cached = measure(TINY)
    longer = measure(dataclasses.replace(TINY, frames=6))
    again = measure(dataclasses.replace(TINY, way="recompute"))
    assert cached.milliseconds > 0
    assert cached.peak_gflops > 0.1
    # A longer context costs attention only; recomputing three frames costs most of three steps.
    assert cached.gflop < longer.gflop < 1.5 * cached.gflop
    tokens, width, depth = 3 * 4 + 6, 192, 8
    attention = 4 * depth * tokens * (3 * tokens) * width / 1e9  # q k^T and its product with v
    assert longer.gflop - cached.gflop == pytest.approx(attention, rel=1e-6)
    assert again.gflop > 1.5 * cached.gflop
    assert longer.cache_mib == pytest.approx(2 * cached.cache_mib)
    assert again.cache_mib == 0
    fast = measure(dataclasses.replace(TINY, way="fast"))
    assert fast.gflop == cached.gflop  # counted in the model's own operations
    assert 0 < cached.fraction_of_peak < 1.5


def test_rows_come_from_processes_of_their_own_and_are_written(tmp_path) -> None:
    said: list[str] = []
    rows = bench.bench(
        "omnistream-nano", size=(48, 64), contexts=(2,), ways=("cached",), threads=1,
        say=said.append,
    )  # fmt: skip
    assert [row.case.frames for row in rows] == [2]
    assert all(row.measurement is not None for row in rows), said
    bench.write(rows, tmp_path, ["omnistream", "bench"])
    content = json.loads((tmp_path / "bench.json").read_text())
    assert content["rows"][0]["milliseconds"] > 0
    assert content["command"] == "omnistream bench"
    assert (tmp_path / "bench.png").stat().st_size > 5000


def test_what_does_not_fit_or_takes_too_long_is_a_row_with_a_reason(monkeypatch) -> None:
    tried: list[int] = []

    def run(case: Case, timeout_s: float) -> bench.Row:
        tried.append(case.frames)
        if case.frames > 1:
            return bench.Row(case, None, "more than 300 s")
        return bench.Row(case, Measurement(1.0, 2.0, 3.0, 4.0, 5.0))

    monkeypatch.setattr(bench, "_run", run)
    monkeypatch.setattr(bench, "_available_bytes", lambda: 2.0**33)
    rows = bench.bench("omnistream-nano", contexts=(1, 16, 32), ways=("cached",))
    assert tried == [1, 16]
    assert [row.reason for row in rows] == ["", "more than 300 s", "more than 300 s"]
    rows = bench.bench("omnistream-l", size=(224, 224), contexts=(512,), ways=("recompute",))
    assert "would need" in bench.line(rows[0])
    with pytest.raises(ValueError, match="multiples of 16"):
        bench.bench("omnistream-nano", size=(50, 64))


def test_a_process_that_fails_is_a_reason(monkeypatch) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")
    row = bench._run(TINY, 60.0)
    assert row.measurement is None
    assert row.reason == "ended with status 1"
