# SPDX-License-Identifier: Apache-2.0
"""`omnistream <command>`: argument parsing, and nothing else.

A command is two functions here: one that declares its arguments and one that runs it. What a
command needs is imported when it runs, so that help is quick and a missing optional package only
matters to the commands that use it.

Exit status: 0 done, 1 the command ran and its answer is no (`verify`), 2 wrong arguments or input,
130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; errors that the user can mend become one line."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        return options.run(options) or 0
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # The reader (`| head`) has gone. Nothing is left to be flushed at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except Exception as error:
        if options.traceback or not _explains_itself(error):
            raise
        print(f"omnistream {options.command}: {_one_line(error)}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="omnistream",
        description="Streaming depth, camera pose and features from camera images.",
    )
    parser.add_argument(
        "--traceback", action="store_true", help="show where in the code an error was found"
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for declare in (
        _declare_info,
        _declare_verify,
        _declare_demo,
        _declare_inspect,
        _declare_evaluate,
        _declare_compare,
        _declare_bench,
        _declare_play,
        _declare_record,
        _declare_render,
        _declare_train,
        _declare_train_matching,
        _declare_card,
    ):
        declare(commands)
    return parser


def _add(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int | None], summary: str
) -> argparse.ArgumentParser:
    """A command `name` that calls `run`; returns its parser, for its arguments."""
    command: argparse.ArgumentParser = commands.add_parser(
        name, help=summary, description=summary[0].upper() + summary[1:] + "."
    )
    command.set_defaults(run=run)
    return command


def _explains_itself(error: Exception) -> bool:
    """Whether the message was written for the user: an error of this package, or of the system."""
    if isinstance(error, ModuleNotFoundError):
        return not (error.name or "").startswith(__package__)
    if isinstance(error, OSError) or type(error).__module__.startswith(f"{__package__}."):
        return True
    # A plain ValueError is a validation when our code raised it, and a bug when numpy did.
    frames = traceback.walk_tb(error.__traceback__)
    *_, module = (frame.f_globals.get("__name__", "") for frame, _ in frames)
    return type(error) is ValueError and module.startswith(f"{__package__}.")


def _one_line(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError):
        return f"this command needs the Python package {error.name!r}, which is not installed"
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split())


# --- info ---------------------------------------------------------------------------------------


def _declare_info(commands: Any) -> None:
    command = _add(commands, "info", _run_info, "say what a model is, and how accurate")
    command.add_argument(
        "model",
        nargs="?",
        default="omnistream-nano",
        help="a name, a .safetensors file or a checkpoint folder (default: %(default)s)",
    )


def _run_info(options: argparse.Namespace) -> None:
    from omnistream_ros.model import load_model

    model, card = load_model(options.model)
    config = model.config
    parameters = sum(parameter.numel() for parameter in model.parameters())
    scale = "metric" if config.metric else "up to scale"
    heads = [name for name in ("depth", "camera") if getattr(model, f"{name}_head") is not None]
    rows = {
        "model": card.name,
        "licence": card.licence,
        "weights": f"sha256 {card.sha256}, stored as {card.storage_dtype}",
        "parameters": f"{parameters:,}",
        "network": f"{config.depth} blocks of width {config.width}, {config.patch_embed} embedding",
        "heads": f"{', '.join(heads)}; depth is {scale}" if heads else "none (backbone only)",
        **{f"trained: {key}": value for key, value in card.training.items()},
        **{f"accuracy: {key}": value for key, value in card.accuracy.items()},
    }
    width = max(map(len, rows))
    for name, value in rows.items():
        print(f"{name:{width}}  {value}")


# --- verify -------------------------------------------------------------------------------------


def _declare_verify(commands: Any) -> None:
    command = _add(
        commands,
        "verify",
        _run_verify,
        "compare a model with the outputs stored beside its weights",
    )
    command.add_argument("folder", metavar="DIR", help="a model and its expected.safetensors")
    command.add_argument(
        "--make", action="store_true", help="write DIR/expected.safetensors instead of comparing"
    )
    command.add_argument(
        "--model", help="with --make: a model (name, file or folder) to store in DIR first"
    )
    command.add_argument("--device", default="cpu", help="where to compute (default: %(default)s)")
    command.add_argument(
        "--tolerance",
        type=float,
        help="largest absolute difference that passes (default: 1e-5)",
    )


def _run_verify(options: argparse.Namespace) -> int:
    from omnistream_ros.model import verify

    if options.make:
        print(f"wrote {verify.make_expected(options.folder, options.model)}")
        return 0
    tolerance = verify.TOLERANCE if options.tolerance is None else options.tolerance
    differences = verify.verify(options.folder, device=options.device)
    print(verify.table(differences, tolerance))
    return 0 if all(difference.within(tolerance) for difference in differences) else 1


# --- recordings ---------------------------------------------------------------------------------


def _add_selection(command: argparse.ArgumentParser) -> None:
    """Options that say what a recording's topics are, where that cannot be found by itself."""
    group = command.add_argument_group("recording")
    group.add_argument("--image-topic", metavar="TOPIC", help="images (default: the only ones)")
    group.add_argument("--info-topic", metavar="TOPIC", help="camera_info of the images")
    group.add_argument("--depth-topic", metavar="TOPIC", help="ground-truth depth")
    group.add_argument("--pose-topic", metavar="TOPIC", help="TF, Odometry or PoseStamped")
    group.add_argument("--camera-frame", metavar="FRAME", help="camera in TF (default: images')")
    group.add_argument("--layout", help="kind of recording, where the path does not tell")


def _selection(options: argparse.Namespace) -> Any:
    import dataclasses

    from omnistream_ros.evaluation.recordings import Selection

    names = [field.name for field in dataclasses.fields(Selection)]
    return Selection(**{name: getattr(options, name) for name in names})


def _declare_inspect(commands: Any) -> None:
    command = _add(commands, "inspect", _run_inspect, "say what is in a recording")
    command.add_argument("recording", help="a rosbag2, a data set folder or a video file")
    _add_selection(command)


def _run_inspect(options: argparse.Namespace) -> None:
    from omnistream_ros.evaluation.inspection import describe
    from omnistream_ros.evaluation.recordings import open_recording

    print(describe(open_recording(options.recording, _selection(options))))


def _declare_demo(commands: Any) -> None:
    command = _add(
        commands,
        "demo",
        _run_demo,
        "play a recording through the node; draw and count what it does",
    )
    command.add_argument(
        "recording", nargs="?", type=Path, help="a rosbag2 or other recording (default: bundled)"
    )
    command.add_argument(
        "--out",
        type=Path,
        default=Path("demo_output"),
        metavar="DIR",
        help="folder for the picture, the table and the bag (default: %(default)s)",
    )
    command.add_argument("--speed", type=float, default=1.0, help="2 plays twice as fast")
    command.add_argument("--model", help="a model's name or file (default: the node's own)")
    _add_selection(command)


def _run_demo(options: argparse.Namespace) -> None:
    from omnistream_ros.evaluation.demo import run_demo

    files = run_demo(
        options.recording,
        options.out,
        selection=_selection(options),
        parameters={"model": options.model} if options.model else {},
        speed=options.speed,
        say=lambda line: print(f"... {line}", flush=True),
    )
    print(f"\n{files.table}\n\npicture: {files.picture}\nbag:     {files.bag}")


# --- evaluation ---------------------------------------------------------------------------------


def _declare_evaluate(commands: Any) -> None:
    command = _add(
        commands,
        "evaluate",
        _run_evaluate,
        "measure depth and pose on recordings with ground truth",
    )
    command.add_argument("recordings", nargs="+", type=Path, metavar="RECORDING")
    command.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder for the report"
    )
    command.add_argument("--model", default="omnistream-nano", help="name or file of the model")
    command.add_argument("--device", default="auto", help="auto, cpu or cuda")
    command.add_argument("--sink", type=int, default=1, help="first frames that stay visible")
    command.add_argument("--window", type=int, default=16, help="recent frames that stay visible")
    command.add_argument(
        "--predictions",
        type=Path,
        metavar="DIR",
        help="score depth (.npy, 16-bit .png) and trajectory.tum of this folder instead of a model",
    )
    command.add_argument(
        "--png-scale", type=float, default=1000.0, help="steps to a metre of .png predictions"
    )
    command.add_argument("--frames", metavar="START:STOP:STEP", help="only these frames")
    command.add_argument(
        "--protocol", help="sintel, bonn, kitti, tum-dynamics or scannet: frames, limits, sequences"
    )
    command.add_argument(
        "--per-frame", action="store_true", help="align the depth of every frame by itself"
    )
    command.add_argument(
        "--live", action="store_true", help="also play every recording to a real node"
    )
    command.add_argument(
        "--jobs", type=int, default=1, help="recordings evaluated at the same time"
    )
    command.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="spread them over this Ray cluster (`local`: a new one here)",
    )
    command.add_argument(
        "--threads", type=int, default=1, help="CPU threads of the model in each process"
    )
    _add_selection(command)


def _run_evaluate(options: argparse.Namespace) -> int:
    from omnistream_ros.evaluation.evaluate import Options
    from omnistream_ros.evaluation.evaluate_command import run
    from omnistream_ros.evaluation.protocols import FrameRange

    wishes = Options(
        model=options.model,
        device=options.device,
        sink=options.sink,
        window=options.window,
        predictions=options.predictions,
        predictions_per_metre=options.png_scale,
        threads=options.threads,
        selection=_selection(options),
        frames=FrameRange.parse(options.frames) if options.frames else None,
        protocol=options.protocol,
        per_frame=options.per_frame,
    )
    good = run(
        options.recordings,
        wishes,
        options.out,
        jobs=options.jobs,
        ray=options.ray,
        live=options.live,
    )
    return 0 if good else 1


def _declare_compare(commands: Any) -> None:
    command = _add(commands, "compare", _run_compare, "set two evaluations side by side")
    command.add_argument("first", type=Path, metavar="A", help="folder of an evaluation")
    command.add_argument("second", type=Path, metavar="B", help="folder of another")


def _run_compare(options: argparse.Namespace) -> None:
    from omnistream_ros.evaluation.compare import compare

    print(compare(options.first, options.second))


def _declare_bench(commands: Any) -> None:
    command = _add(
        commands,
        "bench",
        _run_bench,
        "time and memory of a frame against the length of the context",
    )
    command.add_argument("model", nargs="?", default="omnistream-nano", help="name of a model")
    command.add_argument("--out", type=Path, metavar="DIR", help="also write bench.json and a plot")
    command.add_argument(
        "--frames",
        type=int,
        nargs="+",
        default=[1, 16, 32, 64, 128, 256, 512],
        metavar="T",
        help="lengths of the context (default: 1 to 512)",
    )
    command.add_argument(
        "--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="of the model's image"
    )
    command.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    command.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    command.add_argument("--threads", type=int, default=0, help="CPU threads (default: all cores)")
    command.add_argument(
        "--cached-only", action="store_true", help="leave the full recomputation out"
    )


def _run_bench(options: argparse.Namespace) -> None:
    from omnistream_ros.evaluation import bench, summary

    print(bench.HEAD)
    rows = bench.bench(
        options.model,
        size=tuple(options.size) if options.size else None,
        contexts=sorted(set(options.frames)),
        ways=("cached",) if options.cached_only else bench.WAYS,
        device=options.device,
        dtype=options.dtype,
        threads=options.threads,
        say=lambda line: print(line, flush=True),
    )
    if options.out:
        bench.write(rows, options.out, summary.command_line())
        print(f"\nplot: {options.out / 'bench.png'}")


# --- play and record ----------------------------------------------------------------------------


def _declare_play(commands: Any) -> None:
    command = _add(commands, "play", _run_play, "publish a recording as a camera would")
    command.add_argument("recording", help="a rosbag2, a data set folder or a video file")
    _add_selection(command)
    command.add_argument("--speed", type=float, default=1.0, help="2 plays twice as fast")
    command.add_argument(
        "--frame-id",
        default="camera_optical_frame",
        help="frame of the images (default: %(default)s)",
    )
    command.add_argument(
        "--wait",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="how long to wait for a subscriber (default: %(default)g)",
    )
    _add_ros_args(command)


def _run_play(options: argparse.Namespace) -> int:
    from omnistream_ros.evaluation.recordings import open_recording
    from omnistream_ros.nodes.player import play

    recording = open_recording(options.recording, _selection(options))
    report = play(
        recording.frames(),
        frame_id=options.frame_id,
        speed=options.speed,
        wait_s=options.wait,
        ros_args=["--ros-args", *options.ros_args],
    )
    return 0 if report.complete else 128 + signal.SIGINT


def _declare_record(commands: Any) -> None:
    command = _add(commands, "record", _run_record, "record topics into a rosbag2")
    command.add_argument("bag", help="folder to make")
    command.add_argument("topics", nargs="+", metavar="TOPIC")
    _add_ros_args(command)


def _run_record(options: argparse.Namespace) -> int:
    from omnistream_ros.nodes.recorder import record

    return record(Path(options.bag), options.topics, ["--ros-args", *options.ros_args])


# --- render -------------------------------------------------------------------------------------


def _declare_render(commands: Any) -> None:
    command = _add(
        commands, "render", _run_render, "render furnished rooms: one recording, or training clips"
    )
    what = command.add_mutually_exclusive_group(required=True)
    what.add_argument("--seed", type=int, help="one recording; the same seed, the same clip")
    what.add_argument(
        "--clips", metavar="FIRST:LAST", help="training clips of these seeds; goes on where it was"
    )
    command.add_argument(
        "--out", type=Path, required=True, help="folder to write; a recording's must not exist"
    )
    command.add_argument("--room", help="kind of room, such as 'living room' (default: random)")
    command.add_argument("--motion", help="kind of camera path, such as tour (default: random)")
    command.add_argument("--seconds", type=float, default=6.0, help="default: %(default)s")
    command.add_argument("--rate", type=float, default=15.0, help="in Hz (default: %(default)s)")
    command.add_argument("--width", type=int, default=480, help="default: %(default)s")
    command.add_argument("--height", type=int, default=360, help="default: %(default)s")
    command.add_argument(
        "--fov", type=float, default=70.0, help="horizontal, in degrees (default: %(default)s)"
    )
    command.add_argument(
        "--pictures", action="store_true", help="hang pictures installed on this machine"
    )


def _run_render(options: argparse.Namespace) -> None:
    if options.clips:
        from omnistream_ros.training.clips import fill, seeds

        fill(options.out, *seeds(options.clips), options.pictures)
        return
    from omnistream_ros.training.clip_recording import ClipSettings, render_recording

    settings = ClipSettings(
        seed=options.seed,
        kind=options.room,
        motion=options.motion,
        seconds=options.seconds,
        rate=options.rate,
        width=options.width,
        height=options.height,
        fov=options.fov,
        pictures=options.pictures,
    )
    clip = render_recording(settings, options.out)
    print(
        f"{options.out}: {len(clip.rgb)} frames of a {clip.scene.room.kind}, "
        f"motion {clip.motion}, {len(clip.scene.items)} objects"
    )


# --- train --------------------------------------------------------------------------------------


def _declare_train(commands: Any) -> None:
    command = _add(commands, "train", _run_train, "train a model on rendered clips, resumably")
    command.add_argument("clips", type=Path, help="folder of clips (omnistream render)")
    command.add_argument(
        "--run",
        dest="run_folder",
        type=Path,
        required=True,
        help="folder of state, curve and best weights; the same one again goes on",
    )
    command.add_argument("--output", type=Path, help="also keep the best weights in this file")
    command.add_argument("--model", default="omnistream-nano", help="default: %(default)s")
    length = command.add_mutually_exclusive_group(required=True)
    length.add_argument("--minutes", type=float, help="of training time, over all pieces")
    length.add_argument("--steps", type=int)
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--threads", type=int, help="default: one for each core")
    command.add_argument("--bfloat16", action="store_true", help="for machines fast in bfloat16")
    command.add_argument(
        "--no-pretrained", action="store_true", help="start the trunk from random weights"
    )


def _run_train(options: argparse.Namespace) -> None:
    import torch

    from omnistream_ros.training.train import TrainSettings, train

    if options.threads:
        torch.set_num_threads(options.threads)
    settings = TrainSettings(
        clips=options.clips,
        run=options.run_folder,
        output=options.output,
        steps=options.steps,
        minutes=options.minutes,
        seed=options.seed,
        pretrained=not options.no_pretrained,
        bfloat16=options.bfloat16,
    )
    train(options.model, settings)


def _declare_train_matching(commands: Any) -> None:
    command = _add(
        commands,
        "train-matching",
        _run_train_matching,
        "train the matching head (geometric pose) of a model, after every change of its trunk",
    )
    command.add_argument("weights", type=Path, help="a .safetensors file")
    command.add_argument("clips", type=Path, help="folder of clips (omnistream render)")
    command.add_argument("--output", type=Path, help="default: the weights file itself")
    command.add_argument("--start-from", type=Path, help="weights with a head to go on from")
    command.add_argument("--steps", type=int, default=800, help="default: %(default)s")
    command.add_argument("--clip-count", type=int, default=150, help="default: %(default)s")
    command.add_argument("--seed", type=int, default=0)


def _run_train_matching(options: argparse.Namespace) -> None:
    from omnistream_ros.training.train_matching import MatchingSettings, train_matching

    settings = MatchingSettings(
        clips=options.clips,
        steps=options.steps,
        clip_count=options.clip_count,
        seed=options.seed,
    )
    output = options.output or options.weights
    train_matching(options.weights, output, settings, start_from=options.start_from)


# --- card ---------------------------------------------------------------------------------------


def _declare_card(commands: Any) -> None:
    command = _add(
        commands, "card", _run_card, "measure weights on recordings and say so in their card"
    )
    command.add_argument("weights", type=Path, help="a .safetensors file; its card is rewritten")
    command.add_argument("recordings", type=Path, nargs="+", metavar="RECORDING")


def _run_card(options: argparse.Namespace) -> None:
    from omnistream_ros.training.card import measure_into_card

    measure_into_card(options.weights, options.recordings)


def _add_ros_args(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--ros-args",
        nargs=argparse.REMAINDER,
        default=[],
        help="the rest goes to ROS, such as `-r image:=/camera/image_raw`",
    )


if __name__ == "__main__":
    sys.exit(main())
