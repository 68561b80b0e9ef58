# SPDX-License-Identifier: Apache-2.0
"""Processes that are started must end, whatever happens; and the demo runs over real DDS."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from corridor import write_tum_folder

from omnistream_ros.evaluation import evaluate_command
from omnistream_ros.evaluation.child_process import ChildError, ChildProcess, children, wait_until
from omnistream_ros.evaluation.demo import run_demo
from omnistream_ros.evaluation.evaluate import Options
from omnistream_ros.evaluation.live import (
    environment,
    free_domain,
    selection_arguments,
    transport_profile,
)
from omnistream_ros.evaluation.output_folder import OutputFolderError, output_folder
from omnistream_ros.evaluation.recordings import Selection

STUBBORN = (
    "import signal, time\n"
    "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    "print('{\"ready\": 1}', flush=True)\n"
    "time.sleep(600)\n"
)
PARENT = "import subprocess, sys\nsubprocess.run([sys.executable, '-c', sys.argv[1]])\n"


def start(tmp_path: Path, code: str, *arguments: str) -> ChildProcess:
    command = [sys.executable, "-c", code, *arguments]
    return ChildProcess("child", command, tmp_path / "child.log", os.environ)


def gone(pid: int) -> bool:
    """Whether no process of this id runs (a zombie does not run)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_a_polite_process_ends_at_once(tmp_path) -> None:
    code = (
        "import signal, time\n"
        # A shell may have started the tests in the background, where SIGINT is ignored.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "print('{\"ready\": 1}', flush=True)\n"
        "time.sleep(600)\n"
    )
    child = start(tmp_path, code)
    assert wait_until(lambda: child.json_line("ready"), 60, [child], "ready") == {"ready": 1}
    child.stop()
    assert child.returncode == -signal.SIGINT  # Python ends so after a KeyboardInterrupt


def test_a_stubborn_process_and_its_own_children_are_killed(tmp_path, monkeypatch) -> None:
    quick = ((signal.SIGINT, 0.3), (signal.SIGTERM, 0.3), (signal.SIGKILL, 10.0))
    monkeypatch.setattr("omnistream_ros.evaluation.child_process._PATIENCE_S", quick)
    code = STUBBORN.replace(
        "time.sleep(600)", "import os; print(os.getpid(), flush=True); time.sleep(600)"
    )
    ignoring = STUBBORN.split("print")[0]
    child = start(tmp_path, ignoring + PARENT, code)
    wait_until(lambda: len(child.output().split("\n")) > 2, 60, [child], "its child is ready")
    grandchild = int(child.output().split("\n")[1])
    child.stop()
    assert child.returncode == -signal.SIGKILL
    deadline = time.monotonic() + 10
    while not gone(grandchild) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert gone(grandchild)


def test_a_process_that_dies_shows_the_end_of_its_log(tmp_path) -> None:
    child = start(tmp_path, "print('the reason'); raise SystemExit(3)")
    with pytest.raises(ChildError, match=r"ended with status 3 before it began.*\n.*the reason"):
        wait_until(lambda: None, 60, [child], "it began")


def test_waiting_is_bounded(tmp_path) -> None:
    child = start(tmp_path, "import time; time.sleep(600)")
    try:
        with pytest.raises(ChildError, match="took more than 0 s: nothing"):
            wait_until(lambda: None, 0.2, [child], "nothing")
    finally:
        child.stop()


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_children_end_however_the_block_is_left(tmp_path, error: type[BaseException]) -> None:
    child = start(tmp_path, "import time; time.sleep(600)")

    def leave() -> None:
        with children() as running:
            running.append(child)
            raise error

    with pytest.raises(error):
        leave()
    assert child.returncode is not None


def test_sigterm_ends_the_children_too(tmp_path) -> None:
    code = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from omnistream_ros.evaluation.child_process import ChildProcess, children\n"
        "with children() as running:\n"
        "    command = [sys.executable, '-c', 'import time; time.sleep(600)']\n"
        "    running.append(ChildProcess('c', command, Path(sys.argv[1]), os.environ))\n"
        "    print(running[0]._process.pid, flush=True)\n"
        "    import time; time.sleep(600)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "log")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.send_signal(signal.SIGTERM)
        parent.wait(timeout=60)
    assert gone(pid)


def test_json_lines_are_found_among_other_output(tmp_path) -> None:
    (tmp_path / "child.log").write_bytes(b"")
    child = start(tmp_path, "print('x'); print('{broken'); print('[1]'); print('{\"a\": 2}')")
    wait_until(lambda: child.json_line("a"), 60, [], "a")
    assert child.json_line("b") is None
    child.stop()


def test_a_taken_domain_is_not_free() -> None:
    domain = free_domain()
    assert 1 <= domain <= 101
    taken = [d for d in range(1, 102) if d != domain]
    sockets = []
    try:
        for other in taken:
            one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            sockets.append(one)
            try:
                one.bind(("", 7400 + 250 * other + 10))
            except OSError:
                continue  # somebody else has it: also taken
        assert free_domain() == domain
    finally:
        for one in sockets:
            one.close()


@pytest.mark.parametrize(
    ("distribution", "name"),
    [
        ("jazzy", "FASTRTPS_DEFAULT_PROFILES_FILE"),
        ("kilted", "FASTDDS_DEFAULT_PROFILES_FILE"),
        ("", "FASTDDS_DEFAULT_PROFILES_FILE"),
    ],
)
def test_environment_has_the_transport_profile(monkeypatch, distribution: str, name: str) -> None:
    for either in ("FASTDDS_DEFAULT_PROFILES_FILE", "FASTRTPS_DEFAULT_PROFILES_FILE"):
        monkeypatch.delenv(either, raising=False)
    monkeypatch.setenv("ROS_DISTRO", distribution)
    profile = transport_profile()
    assert profile is not None
    assert "segment_size" in profile.read_text()
    assert environment()[name] == str(profile)
    monkeypatch.setenv(name, "/my/own.xml")
    assert environment()[name] == "/my/own.xml"


def test_selection_becomes_options_again() -> None:
    assert selection_arguments(Selection()) == []
    words = selection_arguments(Selection(image_topic="/a", camera_frame="c"))
    assert words == ["--image-topic", "/a", "--camera-frame", "c"]


@pytest.mark.parametrize("speed", [0.0, -1.0, float("nan"), float("inf")])
def test_a_speed_that_is_none_is_refused_before_anything_starts(tmp_path, speed: float) -> None:
    folder = write_tum_folder(tmp_path / "corridor", 3)
    with pytest.raises(ValueError, match="speed must be a positive number"):
        run_demo(folder, tmp_path / "out", speed=speed)
    assert not (tmp_path / "out").exists()


def test_an_output_folder_has_one_writer(tmp_path) -> None:
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from omnistream_ros.evaluation.output_folder import output_folder\n"
        "with output_folder(Path(sys.argv[1])):\n"
        "    print('{\"held\": 1}', flush=True)\n"
        "    time.sleep(600)\n"
    )
    folder = write_tum_folder(tmp_path / "corridor", 3)
    out = tmp_path / "out"
    other = start(tmp_path, code, str(out))
    try:
        wait_until(lambda: other.json_line("held"), 60, [other], "the folder is held")
        for call in (
            lambda: run_demo(folder, out),
            lambda: evaluate_command.run([folder], Options(), out, say=lambda _: None),
        ):
            with pytest.raises(OutputFolderError, match=r"is being written by process \d+: wait"):
                call()
        assert [file.name for file in out.iterdir()] == [".lock"]
    finally:
        other.stop()
    with output_folder(out):  # it is free again, although nobody cleaned up
        pass


def needs_ros() -> None:
    for name in ("rclpy", "omnistream_ros.msg"):
        try:
            found = importlib.util.find_spec(name)
        except ModuleNotFoundError:
            found = None
        if found is None:
            pytest.skip(f"{name} is not installed: the demo was not run over DDS")


def test_demo_over_real_dds(tmp_path, model_file) -> None:
    needs_ros()
    folder = write_tum_folder(tmp_path / "corridor", 30)
    said: list[str] = []
    files = run_demo(folder, tmp_path / "out", parameters={"model": model_file}, say=said.append)
    assert files.picture.stat().st_size > 10_000
    assert "Depth against truth" in files.table
    assert "Pose against truth" in files.table
    assert (tmp_path / "out" / "table.txt").read_text().startswith("corridor: tiny")
    words = {line[2:28].strip(): line[28:].split() for line in files.table.splitlines()}
    assert words["sent by the player"] == ["30"]
    # A machine that is busy with other tests may lose a best-effort image; the sum must be right.
    received, lost = int(words["received by the node"][0]), int(words["lost on the way"][0])
    assert received + lost == 30
    assert lost < 10
    played = json.loads((tmp_path / "out" / "player.log").read_text().splitlines()[-1])
    assert played["complete"] is True
    assert said[-1] == "measuring"


def test_a_node_that_cannot_start_says_why(tmp_path) -> None:
    needs_ros()
    folder = write_tum_folder(tmp_path / "corridor", 3)
    with pytest.raises(ChildError, match="node could not start") as caught:
        run_demo(folder, tmp_path / "out", parameters={"model": str(tmp_path / "no.safetensors")})
    assert "no.safetensors" in str(caught.value)
