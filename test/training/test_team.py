# SPDX-License-Identifier: Apache-2.0
"""Training with several processes: real ones, under torchrun, against one with twice the batch."""

from __future__ import annotations

import csv
import os
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_train import TINY, _settings
from tiny_clips import plane_clip, write_clip
from torch.distributed.run import get_args_parser

from omnistream_ros.training.run_folder import RunFolderError, lock_run
from omnistream_ros.training.train import Trainer, train

_PROGRAM = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
from collections.abc import Iterator
from dataclasses import replace
from test_train import TINY, _settings
from omnistream_ros.training.train import train
{before}
train(TINY, _settings(Path({clips!r}), Path({run!r}), {steps}))
"""


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    folder = tmp_path / "clips"
    folder.mkdir()
    for number in range(5):  # number 0 is held out
        write_clip(folder / f"clip_{number:06d}.npz", plane_clip(seed=number, frames=16))
    (folder / "clip_000005.npz").write_bytes(b"broken")  # met by one process before the other
    return folder


def _program(clips: Path, run: Path, steps: int, before: str) -> Path:
    file = run.parent / f"{run.name}.py"
    tests = str(Path(__file__).parent)
    file.write_text(
        _PROGRAM.format(tests=tests, clips=str(clips), run=str(run), steps=steps, before=before)
    )
    return file


def wait_for(path: Path, process: subprocess.Popen[str], size: int = 0) -> None:
    """Until the file is larger than that, or the process has ended."""
    while process.poll() is None and not (path.exists() and path.stat().st_size > size):
        time.sleep(0.02)


def _start_directly(
    clips: Path, run: Path, steps: int, before: str = ""
) -> list[subprocess.Popen[str]]:
    """What torchrun does, without its own process."""
    program = _program(clips, run, steps, before)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    return [
        subprocess.Popen(
            [sys.executable, str(program)],
            env={**os.environ, **common, "RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for rank in range(2)
    ]


def _start_two(clips: Path, run: Path, steps: int) -> subprocess.Popen[str]:
    program = _program(clips, run, steps, "")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    return subprocess.Popen(
        [*launcher, str(program)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_torchrun_takes_the_commands_of_the_page() -> None:
    """Without `--` it takes the trainer's `--run` for one of its own options, shortened."""
    page = Path(__file__).resolve().parents[2] / "docs" / "training.md"
    commands = [line for line in page.read_text().splitlines() if line.startswith("torchrun ")]
    assert len(commands) == 2
    for command in commands:
        options = get_args_parser().parse_args(shlex.split(command)[1:])
        assert options.module
        assert options.training_script == "omnistream_ros.cli"
        assert options.training_script_args[0] == "train"


def _rows(run: Path) -> list[dict[str, float]]:
    with (run / "loss.csv").open() as file:
        rows = list(csv.DictReader(file))
    return [{k: float(v) for k, v in row.items() if v and k != "seconds"} for row in rows]


def test_two_processes_learn_as_one_with_twice_the_batch(clips: Path, tmp_path: Path) -> None:
    two = _start_two(clips, tmp_path / "two", 5)
    single = replace(_settings(clips, tmp_path / "one", 5), frames_per_step=8)
    Trainer(TINY, single, report=lambda line: None).run()
    output, _ = two.communicate(timeout=120)
    assert two.returncode == 0, output
    assert output.count("held-out clips") == 1, "one process speaks for all"

    one_rows, two_rows = _rows(tmp_path / "one"), _rows(tmp_path / "two")
    assert len(one_rows) == len(two_rows) == 5
    for one, other in zip(one_rows, two_rows, strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            assert other[name] == pytest.approx(value, rel=2e-3, abs=1e-5), (one["step"], name)
    one_state, two_state = (
        load_file(tmp_path / run / "state.safetensors") for run in ("one", "two")
    )
    for name, value in one_state.items():
        if name.startswith("weights/"):
            torch.testing.assert_close(two_state[name], value, rtol=1e-3, atol=2e-4)


def test_one_that_is_asked_to_stop_stops_all(clips: Path, tmp_path: Path) -> None:
    """SIGTERM to the process that does not write: both end, saved; one alone goes on."""
    run = tmp_path / "run"
    leader, other = _start_directly(clips, run, 100000)
    wait_for(run / "state.safetensors", leader)
    other.terminate()
    assert [p.wait(timeout=120) for p in (leader, other)] == [0, 0]
    step = int(_rows(run)[-1]["step"])
    again = Trainer(TINY, _settings(clips, run, step + 1), report=lambda line: None)
    assert again.progress.step == step >= 4
    again.run()
    assert again.progress.step == step + 1


def test_nan_in_one_process_stops_all(clips: Path, tmp_path: Path) -> None:
    before = """
import os
from omnistream_ros.training.data import ClipSampler
draw = ClipSampler.batch
def poisoned(self, step, *rest):
    batch = draw(self, step, *rest)
    if step == 5 and os.environ["RANK"] == "1":
        batch.pixels[0, 0, 0, 0, 0] = float("nan")
    return batch
ClipSampler.batch = poisoned
"""
    two = _start_directly(clips, tmp_path / "run", 8, before)
    assert all(process.wait(timeout=120) != 0 for process in two)
    saved = sorted(p.name for p in (tmp_path / "run").glob("non-finite*"))
    assert "non-finite-step-000005-process-1.safetensors" in saved
    poisoned = load_file(tmp_path / "run" / "non-finite-step-000005-process-1.safetensors")
    assert torch.isnan(poisoned["pixels"]).any()
    again = Trainer(TINY, _settings(clips, tmp_path / "run", 8), report=lambda line: None)
    assert again.progress.step == 4


def test_a_run_folder_belongs_to_one_trainer(clips: Path, tmp_path: Path) -> None:
    settings = _settings(clips, tmp_path / "run", 2)
    with lock_run(settings.run), pytest.raises(RunFolderError, match=r"process \d+ on"):
        train(TINY, settings)
    train(TINY, settings)  # free again


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As in the processes that a test starts: sums of several threads end in other last digits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
def test_killed_at_any_moment_it_ends_as_if_it_had_not_been(clips: Path, tmp_path: Path) -> None:
    """SIGKILL at random moments, again and again: the same weights as without."""
    whole = replace(_settings(clips, tmp_path / "whole", 16), save_period=2)
    Trainer(TINY, whole, report=lambda line: None).run()
    run = tmp_path / "killed"
    before = "import test_train\n"
    before += "_settings = lambda *a: replace(test_train._settings(*a), save_period=2)"
    program = _program(clips, run, 16, before)
    rng = np.random.default_rng(3)
    table = run / "loss.csv"
    for _ in range(2):
        process = subprocess.Popen(
            [sys.executable, str(program)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            text=True,
        )
        size = table.stat().st_size if table.exists() else 0
        wait_for(table, process, size + int(rng.integers(200, 700)))  # new rows: some moment
        process.kill()
        process.wait()
    trainer = Trainer(
        TINY, replace(_settings(clips, run, 16), save_period=2), report=lambda line: None
    )
    trainer.run()
    one, other = (load_file(r / "state.safetensors") for r in (whole.run, run))
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name
