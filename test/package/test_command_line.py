# SPDX-License-Identifier: Apache-2.0
"""`omnistream`: exit statuses, and errors as one line that a user can act on."""

from __future__ import annotations

import argparse
import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from source_imports import ROOT

from omnistream_ros import cli
from omnistream_ros.model import ModelError


def _run_raising(monkeypatch: pytest.MonkeyPatch, function) -> int:
    """Exit status of the command line with one command, which calls `function`."""
    parser = argparse.ArgumentParser()
    parser.set_defaults(run=lambda _: function(), traceback=False, command="try")
    monkeypatch.setattr(cli, "_parser", lambda: parser)
    return cli.main([])


def _raise(error: BaseException) -> None:
    raise error


def _own_value_error() -> None:
    """A ValueError raised by a module of the package."""
    from omnistream_ros.stream.frame import Frame

    Frame(image=np.zeros((0, 4, 3), np.uint8), stamp_ns=0)


@pytest.mark.parametrize(
    ("function", "line"),
    [
        (lambda: _raise(ModelError("weights.safetensors: key\n is  missing")), "key is missing"),
        (lambda: _raise(FileNotFoundError(2, "No such file", "/x.bag")), "/x.bag: No such file"),
        (lambda: _raise(ModuleNotFoundError("no", name="moderngl")), "needs the Python package"),
        (_own_value_error, "image"),
    ],
)
def test_known_errors_are_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], function, line: str
) -> None:
    assert _run_raising(monkeypatch, function) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("omnistream try: ")
    assert line in captured.err
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize(
    "function",
    [
        lambda: np.zeros(3).reshape(2),  # a ValueError, but numpy's: a bug
        lambda: _raise(KeyError("x")),
        lambda: _raise(ModuleNotFoundError("no", name="omnistream_ros.nothing")),
    ],
)
def test_bugs_keep_their_traceback(monkeypatch: pytest.MonkeyPatch, function) -> None:
    with pytest.raises((ValueError, KeyError, ModuleNotFoundError)):
        _run_raising(monkeypatch, function)


def test_interrupt_is_130(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _run_raising(monkeypatch, lambda: _raise(KeyboardInterrupt())) == 130


def _omnistream(*words: str, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "omnistream_ros.cli", *words],
        cwd=ROOT,
        text=True,
        check=False,
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
    )


def test_help_needs_no_heavy_import() -> None:
    program = (
        "import sys; from omnistream_ros import cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit: print(sorted({'torch', 'numpy', 'cv2'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"
    assert "verify" in done.stdout


def test_without_a_command_the_usage_is_shown() -> None:
    done = _omnistream()
    assert done.returncode == 2
    assert "usage: omnistream" in done.stderr


@pytest.mark.parametrize("command", [("demo",), ("play", "bag")])
@pytest.mark.parametrize("speed", ["0", "-1", "nan", "inf", "fast"])
def test_a_speed_that_is_none_is_refused(
    capsys: pytest.CaptureFixture[str], command: tuple[str, ...], speed: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main([*command, f"--speed={speed}"])
    assert caught.value.code == 2
    assert "argument --speed" in capsys.readouterr().err


def test_missing_model_ends_with_one_line(tmp_path: Path) -> None:
    done = _omnistream("info", str(tmp_path / "nothing"))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "nothing" in done.stderr


@pytest.mark.parametrize(
    ("widths", "heads", "gives"),
    [
        ({}, "none (backbone only)", "features"),
        ({"matching_width": 8}, "matching", "features"),
        ({"matching_width": 8, "head_width": 8}, "depth, camera, matching",
         "features, depth, up to scale, pose"),
    ],
)  # fmt: skip
def test_info_names_all_heads_and_what_comes_of_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], widths: dict, heads: str, gives: str
) -> None:
    from omnistream_ros.model import ModelCard, ModelConfig, build_model, save_model

    config = ModelConfig(
        name="tiny", width=32, depth=2, heads=2, taps=(0, 0, 1, 1), model_pixels=32 * 48,
        patch_embed="efficientnet_lite0", **widths,
    )  # fmt: skip
    file = tmp_path / "tiny.safetensors"
    save_model(file, build_model(config), ModelCard("tiny", "none"))
    assert cli.main(["info", str(file)]) == 0
    rows = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    assert rows["heads"].strip() == heads
    assert rows["gives"].strip() == gives
    assert rows["parameters"].endswith(f"a file of {file.stat().st_size / 1e6:.1f} MB")


def test_reader_that_has_gone_is_no_error(golden: Path) -> None:
    """`omnistream info DIR | head -0`: no traceback, the status of a broken pipe."""
    reader, writer = os.pipe()
    os.close(reader)
    done = _omnistream("info", str(golden), stdout=writer)
    os.close(writer)
    assert done.stderr == ""
    assert done.returncode == 141


@pytest.fixture
def golden(shared: Path) -> Path:
    folder = shared / "golden" / "official_tiny"
    if not folder.is_dir():
        pytest.skip(f"no folder {folder}")
    return folder


def test_a_spawned_process_does_not_run_the_command_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Processes of a pool import the program they were started from, under another name."""
    text = (ROOT / "resource" / "program.py.in").read_text()
    program = tmp_path / "program.py"
    program.write_text(text.replace("@MODULE@", "omnistream_ros.cli"))
    runpy.run_path(str(program), run_name="__mp_main__")
    monkeypatch.setattr(sys, "argv", ["omnistream", "--help"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(program), run_name="__main__")
    assert end.value.code == 0


def test_ctrl_c_while_it_is_still_importing_ends_it_without_a_word(tmp_path: Path) -> None:
    text = (ROOT / "resource" / "program.py.in").read_text()
    (tmp_path / "slow.py").write_text("print('importing', flush=True); import time; time.sleep(60)")
    (tmp_path / "quick.py").write_text(
        "import signal\ndef main(): print(signal.getsignal(signal.SIGINT).__name__)"
    )
    for module in ("slow", "quick"):
        (tmp_path / f"{module}_program.py").write_text(text.replace("@MODULE@", module))

    def heard() -> (
        None
    ):  # a shell without job control has what it starts in the background ignore it
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    command = [sys.executable, str(tmp_path / "slow_program.py")]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=heard
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"importing\n"
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60) == (b"", b"")
    assert process.returncode == -signal.SIGINT
    # Afterwards it is Python's again: some programs do something about it.
    command = [sys.executable, str(tmp_path / "quick_program.py")]
    done = subprocess.run(command, capture_output=True, preexec_fn=heard)
    assert done.stdout == b"default_int_handler\n"
