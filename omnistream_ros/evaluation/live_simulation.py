# SPDX-License-Identifier: Apache-2.0
"""The loop closed by real nodes over real DDS: simulator, perception and action node.

Three processes, and nothing of ROS here: what the simulator prints, a line of JSON per attempt, is
what is counted.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omnistream_ros.action.policy_file import open_policy_file
from omnistream_ros.evaluation.child_process import ChildProcess, children, wait_until
from omnistream_ros.evaluation.live import environment
from omnistream_ros.model.sentence_encoder import installed_encoder
from omnistream_ros.simulation.environment import STEPS_PER_FRAME, SimulationError
from omnistream_ros.simulation.success import Attempt, Rate, rates
from omnistream_ros.simulation.tasks import make_environment

SCRIPTED = "scripted"
#: Beginnings of the address of an openpi server.
SERVERS = ("ws://", "wss://")
_STREAM, _IMAGE = "camera", "observation/image"
#: What a simulated robot can do, by the unit of an axis.
_LIMITS = {
    "max_velocity": {"m": 0.6, "rad": 2.0, "1": 10.0},
    "max_acceleration": {"m": 10.0, "rad": 20.0, "1": 100.0},
    "max_step": {"m": 0.12, "rad": 0.5, "1": 2.0},
}


@dataclasses.dataclass(frozen=True)
class SimulationRun:
    """What is run.

    Attributes:
        policy: an ONNX file, ws://HOST:PORT of an openpi server, or `scripted`.
        tasks, attempts: each task so many times.
        model: of the perception node.
        speed: simulated seconds per second.
        instruction: told instead of the tasks' own words; empty: those.
        out: folder of the processes' logs.
        horizon: openpi and scripted: actions in a chunk, one a frame.
        features: openpi: what the server is sent; empty: the image.
        script: of `scripted`, as the action node's parameter.
    """

    policy: str
    tasks: tuple[str, ...]
    attempts: int
    out: Path
    model: str = "omnistream-nano"
    speed: float = 1.0
    instruction: str = ""
    horizon: int = 8
    features: tuple[str, ...] = ()
    script: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Acting:
    """What the nodes have to be told for a policy to act on a simulated robot.

    Attributes:
        parameters: of the action node.
        features: that the perception node has to publish; none: it is not needed.
        embeds: whether the action node embeds instructions.
    """

    parameters: dict[str, Any]
    features: tuple[str, ...]
    embeds: bool = False


def acting(
    policy: str,
    tasks: Sequence[str],
    *,
    horizon: int = 8,
    features: Sequence[str] = (),
    script: Sequence[str] = (),
) -> Acting:
    """How a policy acts on the robot of these tasks; see `SimulationRun`.

    Raises:
        PolicyFileError: the policy cannot be used.
        SimulationError: a task's simulator cannot run here, or the tasks are for different robots.
    """
    parameters: dict[str, Any] = {"use_sim_time": True, "policy": policy, "dry_run": False}
    remote = policy.startswith(SERVERS)
    if not remote and policy != SCRIPTED:
        _, facts = open_policy_file(Path(policy))
        parameters |= _limits(zip(facts.action.names, facts.action.units, strict=True))
        keys = tuple(feature.key for feature in facts.features)
        return Acting(parameters, keys, facts.instruction is not None)
    robots = []
    for task in tasks:
        env = make_environment(task)
        robots.append((env.axes, STEPS_PER_FRAME * env.step_s))
        env.close()
    axes, frame_s = robots[0]
    if any(robot != robots[0] for robot in robots):
        raise SimulationError(f"{', '.join(tasks)} are for different robots: one run for each")
    names = [axis.name for axis in axes]
    parameters |= _limits((axis.name, axis.unit) for axis in axes)
    parameters |= {
        "action_names": names,
        "action_units": [f"{axis.name}: {axis.unit}" for axis in axes],
        "action_range": [f"{axis.name}: {axis.low} {axis.high}" for axis in axes],
        "proprioception": names,
        "horizon": horizon,
        "dt": frame_s,
    }
    if not remote:
        return Acting({**parameters, "script": list(script) or [""]}, ())
    if features:
        parameters["features"] = [f"{_STREAM}: {key}" for key in features]
    else:
        parameters["images"] = [f"{_IMAGE}: image"]
    return Acting(parameters, tuple(features))


def simulate(run: SimulationRun, say: Callable[[str], None] = lambda _: None) -> dict[str, Rate]:
    """Start the three nodes, let them work, end them; success by task.

    Args:
        say: told of each attempt, a line at a time.

    Raises:
        PolicyFileError: the policy cannot be used.
        SentenceEncoderError: it reads instructions, and what embeds them is not installed.
        SimulationError: a task's simulator cannot run here, or the tasks are for different robots.
        ChildError: a process failed or hung; the message shows the end of its log.
    """
    # What is missing is known before three processes are started.
    for task in run.tasks:
        make_environment(task).close()
    act = acting(
        run.policy, run.tasks, horizon=run.horizon, features=run.features, script=run.script
    )
    if act.embeds:
        installed_encoder()
    run.out.mkdir(parents=True, exist_ok=True)
    env = environment()
    with children() as running:

        def start(name: str, parameters: dict[str, Any], remaps: dict[str, str]) -> ChildProcess:
            words = ros_arguments(parameters)
            words += [w for k, v in remaps.items() for w in ("-r", f"{k}:={v}")]
            module = f"omnistream_ros.nodes.{name}"
            command = [sys.executable, "-m", module, "--ros-args", *words]
            child = ChildProcess(name, command, run.out / f"{name}.log", env)
            running.append(child)
            return child

        parameters: dict[str, Any] = {"tasks": list(run.tasks), "attempts": run.attempts}
        parameters |= {"speed": run.speed, "instruction": run.instruction}
        if act.features:
            start("perception", perception_parameters(run.model, act), {})
        else:
            parameters["perception"] = ""
        start("action", act.parameters, {})
        topics = {
            f"command/{kind}": f"omnistream_action/command/{kind}"
            for kind in ("joint_trajectory", "joint_state")
        }
        simulator = start("simulator", parameters, topics)
        told = 0

        def finished() -> bool:
            nonlocal told
            ended = simulator.returncode == 0  # asked first: what it printed is complete by then
            made = list(_attempts(simulator))
            for attempt in made[told:]:
                end = f"done after {attempt.seconds:.1f} s" if attempt.success else "not done"
                say(f"{attempt.task}  seed {attempt.seed}: {end}")
            told = len(made)
            return ended or simulator.json_line("finished") is not None

        wait_until(finished, math.inf, [simulator, *running], "all attempts were made")
        return rates(_attempts(simulator))


def perception_parameters(model: str, act: Acting) -> dict[str, Any]:
    """Parameters of the perception node."""
    features = list(act.features)
    return {"use_sim_time": True, "autostart": True, "model": model, "features": features}


def _limits(units: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Parameters of the action node for a simulated robot, by the units of its axes."""
    named = list(units)
    return {
        parameter: [f"{name}: {by_unit[unit]}" for name, unit in named]
        for parameter, by_unit in _LIMITS.items()
    }


def _attempts(simulator: ChildProcess) -> Iterator[Attempt]:
    """What it has printed so far; a line that is still being written is left for later."""
    for line in simulator.output().splitlines(keepends=True):
        if line.startswith('{"task"') and line.endswith("}\n"):
            record = json.loads(line)
            yield Attempt(record["task"], record["seed"], record["success"], record["seconds"])


def ros_arguments(parameters: Mapping[str, Any]) -> list[str]:
    """Parameters as words after ``--ros-args``.

    JSON is YAML in which all texts are in quotes: without them an axis `y` would mean "yes".
    """
    return [w for k, v in parameters.items() for w in ("-p", f"{k}:={json.dumps(v)}")]
