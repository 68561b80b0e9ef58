# SPDX-License-Identifier: Apache-2.0
"""Commands about a model by itself: `info`, `verify`, `export`, `bench`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from omnistream_ros.cli.arguments import add_command, count


def declare(commands: Any) -> None:
    _declare_info(commands)
    _declare_verify(commands)
    _declare_export(commands)
    _declare_bench(commands)


def _declare_info(commands: Any) -> None:
    command = add_command(commands, "info", _run_info, "say what a model is, and how accurate")
    command.add_argument(
        "model",
        nargs="?",
        default="omnistream-nano",
        help="a name, a .safetensors file or a checkpoint folder (default: %(default)s)",
    )


def _run_info(options: argparse.Namespace) -> None:
    from omnistream_ros.model import load_model
    from omnistream_ros.model.checkpoint import locate
    from omnistream_ros.training.training_record import rows as rows_of_training

    model, card = load_model(options.model)
    megabytes = locate(options.model)[0].stat().st_size / 1e6
    config = model.config
    parameters = sum(parameter.numel() for parameter in model.parameters())
    scale = "metric" if config.metric else "up to scale"
    names = ("depth", "camera", "matching", "language")
    heads = [name for name in names if getattr(model, f"{name}_head") is not None]
    gives = ["features"]
    if model.depth_head is not None:
        gives.append(f"depth, {scale}")
    if model.has_pose:
        gives.append("pose")
    rows = {
        "model": card.name,
        "licence": card.licence,
        "weights": f"sha256 {card.sha256}, stored as {card.storage_dtype}",
        "parameters": f"{parameters:,}, a file of {megabytes:.1f} MB",
        "network": f"{config.depth} blocks of width {config.width}, {config.patch_embed} embedding",
        "heads": ", ".join(heads) or "none (backbone only)",
        "gives": ", ".join(gives),
        **{f"trained: {key}": value for key, value in rows_of_training(card.training).items()},
        **{f"accuracy: {key}": value for key, value in card.accuracy.items()},
    }
    width = max(map(len, rows))
    for name, value in rows.items():
        print(f"{name:{width}}  {value}")


def _declare_verify(commands: Any) -> None:
    command = add_command(
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


def _declare_export(commands: Any) -> None:
    command = add_command(
        commands,
        "export",
        _run_export,
        "write a model's step as an ONNX file, checked against the model",
    )
    command.add_argument("model", nargs="?", default="omnistream-nano", help="name, file or folder")
    command.add_argument("--out", type=Path, metavar="FILE", help="default: MODEL.onnx")
    command.add_argument(
        "--image",
        type=int,
        nargs=2,
        default=(640, 480),
        metavar=("WIDTH", "HEIGHT"),
        help="of the camera; only the ratio matters (default: 640 480)",
    )
    command.add_argument("--sink", type=int, default=1, help="default: %(default)s")
    command.add_argument("--window", type=int, default=16, help="default: %(default)s")
    command.add_argument("--precision", default="float32", choices=("float32", "float16"))
    command.add_argument(
        "--without-heads",
        action="store_true",
        help="end with the features; depth and pose, where wanted, are then computed by torch",
    )


def _run_export(options: argparse.Namespace) -> None:
    import torch

    from omnistream_ros.model import load_model
    from omnistream_ros.model.cache_policy import Window
    from omnistream_ros.stream.engines import EngineMaker, StepShape
    from omnistream_ros.stream.engines.onnx_export import export_step
    from omnistream_ros.stream.preprocess import model_size

    model, card = load_model(options.model)
    width, height = options.image
    size = model_size(height, width, model.config.model_pixels, model.config.patch_size)
    shape = StepShape(*size, Window(options.sink, options.window))
    dtype = getattr(torch, options.precision)
    out = options.out or Path(f"{model.config.name}.onnx")
    maker = EngineMaker(model, card.sha256, shape, dtype, onnx_file=out, tell=print)
    heads = not options.without_heads
    facts = export_step(out, maker.rounded, card.sha256, shape, heads=heads)
    print(
        f"wrote {out} ({out.stat().st_size / 1e6:.1f} MB): {facts.model} "
        f"({facts.sha256[:12]}), {facts.dtype}, images of {facts.width}x{facts.height}, "
        f"{facts.tokens} tokens of cache"
    )
    maker.make("onnx")


def _declare_bench(commands: Any) -> None:
    command = add_command(
        commands,
        "bench",
        _run_bench,
        "time and memory of a frame against the length of the context",
    )
    command.add_argument("model", nargs="?", default="omnistream-nano", help="name of a model")
    command.add_argument("--out", type=Path, metavar="DIR", help="also write bench.json and a plot")
    command.add_argument(
        "--frames",
        type=count,
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
        ways=bench.WAYS[:2] if options.cached_only else bench.WAYS,
        device=options.device,
        dtype=options.dtype,
        threads=options.threads,
        say=lambda line: print(line, flush=True),
    )
    if options.out:
        bench.write(rows, options.out, summary.command_line())
        print(f"\nplot: {options.out / 'bench.png'}")
