# SPDX-License-Identifier: Apache-2.0
"""Commands around policies and the simulator: train, try, serve a policy; close the loop."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from omnistream_ros.cli.arguments import add_command, count, positive


def declare(commands: Any) -> None:
    _declare_train(commands)
    _declare_try(commands)
    _declare_serve(commands)
    _declare_simulate(commands)


def _declare_train(commands: Any) -> None:
    command = add_command(
        commands,
        "train-policy",
        _run_train,
        "let a policy imitate scripted experts in the simulator, on frozen features; resumably",
    )
    command.add_argument("folder", type=Path, help="for episodes, features and policies")
    _add_tasks(command)
    command.add_argument(
        "--episodes", type=count, default=100, help="of each task (default: %(default)s)"
    )
    command.add_argument("--model", default="omnistream-nano", help="default: %(default)s")
    command.add_argument(
        "--features",
        nargs="+",
        metavar="KEY",
        default=["7:patch:normed"],
        help="LAYER:patch[:normed] that the policy reads (default: %(default)s)",
    )
    command.add_argument(
        "--sights",
        nargs="+",
        choices=("stream", "single", "blind"),
        default=["stream", "single", "blind"],
        help="policies to train: on the stream, on single images, on positions alone",
    )
    command.add_argument("--steps", type=count, default=3000, help="default: %(default)s")
    command.add_argument("--output", type=Path, help="also keep the policy of the stream here")
    command.add_argument("--threads", type=count, help="default: one for each core")


def _run_train(options: argparse.Namespace) -> None:
    import shutil

    import torch

    from omnistream_ros.training.policy_fit import FitSettings
    from omnistream_ros.training.train_policy import PolicySettings, train_policies

    if options.threads:
        torch.set_num_threads(options.threads)
    files = train_policies(
        PolicySettings(
            folder=options.folder,
            tasks=_tasks(options),
            episodes=options.episodes,
            model=options.model,
            keys=tuple(options.features),
            sights=tuple(options.sights),
            fit=FitSettings(steps=options.steps),
        )
    )
    if options.output and "stream" in files:
        shutil.copyfile(files["stream"], options.output)


def _declare_try(commands: Any) -> None:
    command = add_command(
        commands, "try-policy", _run_try, "success of policies in the simulator, without ROS"
    )
    command.add_argument(
        "policies",
        nargs="*",
        metavar="NAME=FILE",
        help="policies to try; `expert` is the scripted one (default: the shipped policy)",
    )
    _add_tasks(command)
    command.add_argument(
        "--attempts", type=count, default=50, help="at each task (default: %(default)s)"
    )
    command.add_argument("--out", type=Path, required=True, metavar="DIR", help="of the attempts")
    command.add_argument("--model", default="omnistream-nano", help="default: %(default)s")
    command.add_argument(
        "--delay", type=int, default=1, help="frames until a chunk is there (default: %(default)s)"
    )
    command.add_argument("--blending", choices=("latest", "linear", "ensemble"), default="latest")
    command.add_argument("--threads", type=count, help="default: one for each core")


def _run_try(options: argparse.Namespace) -> None:
    import torch

    from omnistream_ros.action.blending import Blending
    from omnistream_ros.evaluation import policy_trials
    from omnistream_ros.model.sentence_encoder import installed_encoder
    from omnistream_ros.simulation.success import table
    from omnistream_ros.simulation.tasks import make_environment, task_named

    if options.threads:
        torch.set_num_threads(options.threads)
    encoder = installed_encoder()
    settings = policy_trials.TrialSettings(
        tuple(task_named(name) for name in _tasks(options)),
        attempts=options.attempts,
        model=options.model,
        delay=options.delay,
        blending=Blending(options.blending),
    )
    found = policy_trials.run_trials(
        policy_trials.named_policies(options.policies),
        settings,
        options.out,
        make_environment,
        lambda text: encoder([text])[0].numpy(),
    )
    text = table(found)
    (options.out / "table.md").write_text(text + "\n", encoding="utf-8")
    print(text)


def _declare_serve(commands: Any) -> None:
    command = add_command(
        commands, "serve-policy", _run_serve, "answer as an openpi server with an ONNX policy"
    )
    command.add_argument("policy", nargs="?", type=Path, help="default: the shipped one")
    command.add_argument("--host", default="127.0.0.1", help="default: %(default)s")
    command.add_argument("--port", type=int, default=8000, help="default: %(default)s")
    command.add_argument("--state-key", default="observation/state", help="default: %(default)s")


def _run_serve(options: argparse.Namespace) -> None:
    import threading

    from omnistream_ros.action.onnx_policy import OnnxPolicy
    from omnistream_ros.action.policy_server import PolicyServer
    from omnistream_ros.evaluation.policy_trials import SHIPPED
    from omnistream_ros.model.sentence_encoder import installed_encoder

    policy = OnnxPolicy(options.policy or SHIPPED)
    encoder = installed_encoder() if policy.needs.embedding else None
    server = PolicyServer(
        policy,
        (lambda text: encoder([text])[0].numpy()) if encoder else None,
        host=options.host,
        port=options.port,
        state_key=options.state_key,
    )
    with server:
        print(f"policy {policy.name} answers on {server.uri}", flush=True)
        threading.Event().wait()  # until Ctrl-C


def _declare_simulate(commands: Any) -> None:
    command = add_command(
        commands,
        "simulate",
        _run_simulate,
        "close the loop on real topics: simulator, perception and action node, success by task",
    )
    _add_tasks(command)
    command.add_argument(
        "--policy",
        help="an .onnx file, ws://HOST:PORT of an openpi server, or `scripted` (default: the "
        "shipped one)",
    )
    command.add_argument(
        "--horizon",
        type=count,
        default=8,
        help="openpi and scripted: actions in a chunk, one a frame (default: %(default)s)",
    )
    command.add_argument(
        "--features",
        nargs="+",
        metavar="KEY",
        default=[],
        help="openpi: send these features, LAYER:KIND[:normed], instead of the image",
    )
    command.add_argument(
        "--script",
        nargs="+",
        metavar="SECONDS: NUMBERS",
        default=[],
        help="scripted: where the axes shall be when (default: to and fro)",
    )
    command.add_argument("--model", default="omnistream-nano", help="default: %(default)s")
    command.add_argument(
        "--attempts", type=count, default=10, help="at each task (default: %(default)s)"
    )
    command.add_argument(
        "--speed",
        type=positive,
        default=1.0,
        help="simulated seconds per second; less where the machine is slow (default: %(default)s)",
    )
    command.add_argument("--instruction", default="", help="told instead of the task's own words")
    command.add_argument(
        "--out", type=Path, default=Path("simulation"), help="for logs (default: %(default)s)"
    )


def _run_simulate(options: argparse.Namespace) -> None:
    from omnistream_ros.evaluation.live_simulation import SimulationRun, simulate
    from omnistream_ros.evaluation.policy_trials import SHIPPED
    from omnistream_ros.simulation.success import table

    run = SimulationRun(
        policy=options.policy or str(SHIPPED),
        horizon=options.horizon,
        features=tuple(options.features),
        script=tuple(options.script),
        tasks=_tasks(options),
        attempts=options.attempts,
        model=options.model,
        speed=options.speed,
        instruction=options.instruction,
        out=options.out,
    )
    print(table({"closed loop on topics": simulate(run, say=print)}))


def _add_tasks(command: argparse.ArgumentParser) -> None:
    command.add_argument("--tasks", nargs="+", metavar="TASK", help="default: all of Meta-World's")


def _tasks(options: argparse.Namespace) -> tuple[str, ...]:
    from omnistream_ros.simulation.tasks import DEFAULT, task_named

    return tuple(task_named(name).name for name in options.tasks or DEFAULT)
