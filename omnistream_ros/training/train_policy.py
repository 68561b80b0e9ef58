# SPDX-License-Identifier: Apache-2.0
"""`omnistream train-policy`: from tasks to a policy file, by imitation on frozen features.

Three steps, each of which goes on where it was: the scripted expert shows episodes; the frozen
model makes features of them; a small head learns what the expert did next. Two baselines are
trained in the same way on the same episodes: one that sees each image alone, without the stream's
past, and one that sees nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from omnistream_ros.model.sentence_encoder import SentenceEncoder, installed_encoder
from omnistream_ros.simulation.environment import STEPS_PER_FRAME, Axis, Task
from omnistream_ros.simulation.episodes import collect
from omnistream_ros.simulation.tasks import DEFAULT, make_environment, task_named
from omnistream_ros.training.policy_data import FeatureSource, read_demonstrations
from omnistream_ros.training.policy_export import export_policy, facts_of
from omnistream_ros.training.policy_fit import FitSettings, fit

SIGHTS = ("stream", "single", "blind")


@dataclasses.dataclass(frozen=True)
class PolicySettings:
    """One training of policies.

    Attributes:
        folder: of episodes and features, which are kept, and of the policies.
        tasks: one policy for all of them.
        episodes: by task; the seeds 0 to episodes - 1.
        model: whose features.
        keys: which of them.
        sights: which policies: through the stream, of single images, without eyes.
        horizon: frames of a chunk.
        fit: the training itself.
    """

    folder: Path
    tasks: tuple[str, ...] = DEFAULT
    episodes: int = 100
    model: str = "omnistream-nano"
    keys: tuple[str, ...] = ("7:patch:normed",)
    sights: tuple[str, ...] = SIGHTS
    horizon: int = 8
    fit: FitSettings = dataclasses.field(default_factory=FitSettings)

    def __post_init__(self) -> None:
        unknown = [sight for sight in self.sights if sight not in SIGHTS]
        if unknown:
            raise ValueError(f"sights are {', '.join(SIGHTS)}, got {', '.join(unknown)}")
        if self.episodes < 2 or self.horizon < 1:
            raise ValueError(
                "2 episodes of a task and a horizon of 1 are the least, "
                f"got {self.episodes} and {self.horizon}"
            )


def train_policies(
    settings: PolicySettings,
    *,
    encoder: SentenceEncoder | None = None,
    report: Callable[[str], None] = print,
) -> dict[str, Path]:
    """Collect, extract, train, write; the policy files by sight.

    Raises:
        SimulationError: the simulator cannot run here.
        SentenceEncoderError: the encoder is not installed; says what to install.
        PolicyExportError: packages for exporting are missing.
    """
    encoder = encoder or installed_encoder()
    tasks = [task_named(name) for name in settings.tasks]
    robot = _robot(tasks)
    sentences = [encoder(task.instructions) for task in tasks]
    seeds, episodes = range(settings.episodes), settings.folder / "episodes"
    collect(episodes, settings.tasks, seeds, make_environment, report)
    files = {}
    for sight in settings.sights:
        source = None
        if sight != "blind":
            source = FeatureSource(settings.model, settings.keys, cached=sight == "stream")
        report(f"{sight}: {len(tasks)} tasks, {settings.episodes} episodes of each")
        shown = read_demonstrations(
            episodes,
            settings.tasks,
            seeds,
            settings.horizon,
            source,
            settings.folder / "features",
            robot.field_of_view,
        )
        fitted = fit(shown, sentences, robot.axes, settings.fit, report)
        facts = facts_of(
            f"tabletop-{sight}",
            fitted.network,
            tuple(shown.features),
            shown.model_sha256,
            robot.axes,
            robot.frame_s,
            {
                "instructions": {task.name: task.instructions[0] for task in tasks},
                "sight": sight,
                "episodes of each": settings.episodes,
                "frames": len(shown.positions),
                "held out, cm": {k: round(v, 2) for k, v in fitted.error.items()},
                **dataclasses.asdict(settings.fit),
            },
        )
        files[sight] = settings.folder / f"policy-{sight}.onnx"
        export_policy(files[sight], fitted.network, facts)
        report(
            f"{files[sight]}: {files[sight].stat().st_size / 1e6:.2f} MB, "
            f"fitted in {fitted.seconds:.0f} s"
        )
    return files


@dataclasses.dataclass(frozen=True)
class _Robot:
    axes: tuple[Axis, ...]
    field_of_view: tuple[float, float]
    frame_s: float


def _robot(tasks: Sequence[Task]) -> _Robot:
    """The robot that all tasks have in common; ValueError if they have different ones."""
    robots = []
    for task in tasks:
        env = make_environment(task.name)
        robots.append(_Robot(env.axes, env.field_of_view, STEPS_PER_FRAME * env.step_s))
        env.close()
    for task, robot in zip(tasks, robots, strict=True):
        if robot != robots[0]:
            raise ValueError(
                f"tasks {tasks[0].name!r} and {task.name!r} are for different robots; train a "
                "policy for each"
            )
    return robots[0]
