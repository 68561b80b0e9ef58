# SPDX-License-Identifier: Apache-2.0
"""Policies tried many times in the simulator: success by task with its confidence, resumably.

Every attempt is a line of JSON in a file beside the report, so that a run that was cut off goes on,
and a table can always be traced to the attempts it counts.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import omnistream_ros
from omnistream_ros.action.blending import Blending
from omnistream_ros.action.onnx_policy import OnnxPolicy
from omnistream_ros.evaluation.closed_loop import Loop
from omnistream_ros.evaluation.stream_features import StreamFeatures
from omnistream_ros.simulation.environment import STEPS_PER_FRAME, Environment, Task
from omnistream_ros.simulation.episodes import frames_of
from omnistream_ros.simulation.success import Attempt, Rate, rates

EXPERT = "expert"
SHIPPED = Path(omnistream_ros.__file__).parent / "data" / "tabletop-policy.onnx"
FIRST_SEED = 1_000_000  # far from those that anything was trained on

Embed = Callable[[str], NDArray[np.float32]]


class PolicyModelError(ValueError):
    """Features of other weights than the policy was trained on; says what to do."""


class TrialConditionsError(ValueError):
    """A folder holds attempts made under other conditions; says which, and what to do."""


@dataclasses.dataclass(frozen=True)
class TrialSettings:
    """What is tried.

    Attributes:
        tasks: each is tried `attempts` times by each policy, by the seeds `FIRST_SEED` and on.
        model: whose features the policies get.
        delay: frames between an observation and the actions that come from it.
        blending: how chunks are joined.
    """

    tasks: tuple[Task, ...]
    attempts: int = 50
    model: str = "omnistream-nano"
    delay: int = 0
    blending: Blending = dataclasses.field(default_factory=Blending)


def named_policies(words: Sequence[str]) -> dict[str, Path | None]:
    """Policies from NAME=FILE, or `expert`; the shipped one where none is named.

    Raises:
        ValueError: something else.
    """
    found: dict[str, Path | None] = {}
    for word in words or [f"stream={SHIPPED}"]:
        name, equals, file = word.partition("=")
        if not name or bool(file) != bool(equals) or (not equals and name != EXPERT):
            raise ValueError(f"a policy is NAME=FILE or {EXPERT}, got {word!r}")
        found[name] = Path(file) if file else None
    return found


def try_expert(env: Environment, seed: int) -> Attempt:
    """One attempt of the scripted expert, who sees everything."""
    env.reset(seed)
    frames = frames_of(env.task, env.step_s)
    frame = 0
    while frame < frames and not env.success:
        command = env.expert()
        for _ in range(STEPS_PER_FRAME):
            env.advance(command)
        frame += 1
    return Attempt(env.task.name, seed, env.success, frame * STEPS_PER_FRAME * env.step_s)


def run_trials(
    policies: Mapping[str, Path | None],
    settings: TrialSettings,
    out: Path,
    make: Callable[[str], Environment],
    embed: Embed,
    report: Callable[[str], None] = print,
) -> dict[str, dict[str, Rate]]:
    """Try every policy at every task; rates by policy and task.

    Args:
        policies: files by name; None is the scripted expert.
        out: folder of the attempts; what is in it already counts and is not tried again.
        make: an environment by the name of its task.
        embed: a sentence to a vector (384,).

    Raises:
        PolicyFileError: a file that is no policy.
        PolicyModelError: a policy that was trained on features of another model.
        TrialConditionsError: attempts in `out` are of another policy, delay or blending.
    """
    out.mkdir(parents=True, exist_ok=True)
    on_disk = {
        name: _Attempts(out / f"{name}.jsonl", _conditions(settings, file))
        for name, file in policies.items()
    }
    found = {}
    for name, file in policies.items():
        attempts = on_disk[name]
        for task in settings.tasks:
            seeds = range(FIRST_SEED, FIRST_SEED + settings.attempts)
            missing = [seed for seed in seeds if (task.name, seed) not in attempts.done]
            if not missing:
                continue
            env = make(task.name)
            try:
                one = _one_attempt(file, settings, env, embed)
                for seed in missing:
                    attempts.add(one(seed))
            finally:
                env.close()
            report(f"{name}  {task.name}: {attempts.rate(task.name, settings.attempts)}")
        found[name] = {t.name: attempts.rate(t.name, settings.attempts) for t in settings.tasks}
    return found


def open_eyes(policy: OnnxPolicy, model: str, env: Environment) -> StreamFeatures | None:
    """What a policy needs to see with; None if it sees nothing.

    Raises:
        PolicyModelError: it was trained on features of other weights.
    """
    needs = policy.needs
    if not needs.features:
        return None
    keys = [feature.key for feature in needs.features]
    size = env.observe().image.shape[:2]
    cached = policy.facts.tasks.get("sight") != "single"
    eyes = StreamFeatures(model, keys, (size[0], size[1]), env.field_of_view, cached=cached)
    if eyes.sha256 != needs.model_sha256:
        raise PolicyModelError(
            f"policy {policy.name!r} was trained on features of {needs.model_sha256[:12]}, and "
            f"{model} has the weights {eyes.sha256[:12]}: train it again (omnistream "
            "train-policy), or give the model it was trained with (--model)"
        )
    return eyes


def _one_attempt(
    file: Path | None, settings: TrialSettings, env: Environment, embed: Embed
) -> Callable[[int], Attempt]:
    if file is None:
        return lambda seed: try_expert(env, seed)
    policy = OnnxPolicy(file)
    loop = Loop(policy, open_eyes(policy, settings.model, env), settings.blending, settings.delay)
    embedding = embed(env.task.instructions[0]) if policy.needs.embedding else None
    return lambda seed: loop.attempt(env, seed, embedding)


def _conditions(settings: TrialSettings, file: Path | None) -> dict[str, object]:
    """What attempts of one file have in common; attempts under others are not mixed with them."""
    if file is None:
        return {"policy": EXPERT}  # who acts at once, and has no chunks
    return {
        "policy": OnnxPolicy(file).sha256,
        "delay": settings.delay,
        "blending": settings.blending.mode,
    }


def _agree(line: str, conditions: dict[str, object]) -> bool:
    """Whether the first line of a file says these conditions."""
    try:
        told = json.loads(line)
    except ValueError:
        return False
    return isinstance(told, dict) and conditions.items() <= told.items()


class _Attempts:
    """Attempts of one policy on disk.

    Raises:
        TrialConditionsError: those that are there were made under other conditions.
    """

    def __init__(self, file: Path, conditions: dict[str, object]) -> None:
        self._file = file
        self.done: dict[tuple[str, int], Attempt] = {}
        lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
        if lines and not _agree(lines[0], conditions):
            raise TrialConditionsError(
                f"{file} holds attempts under {lines[0]}, and {json.dumps(conditions)} is asked "
                "for: give the options of then, name another folder with --out, or move the file "
                "away"
            )
        for line in lines[1:]:
            with contextlib.suppress(ValueError, TypeError):  # cut short by the end of a run
                attempt = Attempt(**json.loads(line))
                self.done[attempt.task, attempt.seed] = attempt
        first = lines[0] if lines else json.dumps(conditions)
        whole = [first, *(json.dumps(dataclasses.asdict(a)) for a in self.done.values())]
        part = file.with_name(f"{file.name}.part")
        part.write_text("\n".join(whole) + "\n", encoding="utf-8")
        part.replace(file)

    def add(self, attempt: Attempt) -> None:
        with self._file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(dataclasses.asdict(attempt)) + "\n")
        self.done[attempt.task, attempt.seed] = attempt

    def rate(self, task: str, attempts: int) -> Rate:
        last = FIRST_SEED + attempts
        mine: Sequence[Attempt] = [
            a for a in self.done.values() if a.task == task and a.seed < last
        ]
        return rates(mine).get(task, Rate(0, 0))
