# SPDX-License-Identifier: Apache-2.0
"""All tasks by name."""

from __future__ import annotations

from omnistream_ros.simulation import meta_world, toy
from omnistream_ros.simulation.environment import Environment, Task, UnknownTaskError

TASKS = {task.name: task for task in (*meta_world.TASKS, *toy.TASKS)}
DEFAULT = tuple(task.name for task in meta_world.TASKS)


def make_environment(name: str) -> Environment:
    """The environment of a task.

    Raises:
        UnknownTaskError: there is none of that name.
        SimulationError: its simulator cannot run here.
    """
    task = task_named(name)
    if task in toy.TASKS:
        return toy.ToyEnvironment(task)
    return meta_world.MetaWorldEnvironment(task)


def task_named(name: str) -> Task:
    """A task; UnknownTaskError if there is none of that name."""
    if name not in TASKS:
        raise UnknownTaskError(f"unknown task {name!r}; known: {', '.join(TASKS)}")
    return TASKS[name]
