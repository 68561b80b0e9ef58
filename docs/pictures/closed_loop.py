# SPDX-License-Identifier: Apache-2.0
"""The film of the simulated robot: all tasks side by side, played by a policy.

python docs/pictures/closed_loop.py docs/images/closed_loop.gif [--policy FILE] [--seed N]

Each part is one attempt without ROS, drawn with shadows by a second camera at the same place; a
part that is done, or out of time, stands still until all are.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from omnistream_ros.action.onnx_policy import OnnxPolicy
from omnistream_ros.evaluation.closed_loop import Loop
from omnistream_ros.evaluation.policy_trials import SHIPPED, open_eyes
from omnistream_ros.model.sentence_encoder import installed_encoder
from omnistream_ros.simulation.environment import Environment
from omnistream_ros.simulation.meta_world import MetaWorldEnvironment
from omnistream_ros.simulation.tasks import DEFAULT, make_environment

WIDTH, HEIGHT = 256, 192
COLUMNS = 3
LONGEST = 45  # frames of 0.1 s
REST = 8  # frames at the end


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--policy", type=Path, default=SHIPPED)
    parser.add_argument("--model", default="omnistream-nano")
    parser.add_argument("--seed", type=int, default=2_000_000)
    parser.add_argument("--colours", type=int, default=96)
    options = parser.parse_args()
    parts = [film(name, options) for name in DEFAULT]
    length = max(len(part) for part in parts) + REST
    frames = []
    for at in range(length):
        now = [part[min(at, len(part) - 1)] for part in parts]
        rows = [np.hstack(now[i : i + COLUMNS]) for i in range(0, len(now), COLUMNS)]
        frames.append(Image.fromarray(np.vstack(rows)))
    palette = frames[length // 2].quantize(options.colours)
    few = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    few[0].save(options.output, save_all=True, append_images=few[1:], duration=100, loop=0)
    print(f"{options.output}: {length} frames, {options.output.stat().st_size / 1e6:.2f} MB")


def film(name: str, options: argparse.Namespace) -> list[np.ndarray]:
    """The frames of one attempt, (HEIGHT, WIDTH, 3)."""
    env = make_environment(name)
    assert isinstance(env, MetaWorldEnvironment)
    env.task = dataclasses.replace(env.task, seconds=LONGEST / 10)
    policy = OnnxPolicy(options.policy)
    eyes = open_eyes(policy, options.model, env)
    camera = env.picture(WIDTH, HEIGHT, beautiful=True)
    frames: list[np.ndarray] = []

    def draw(_: Environment) -> None:
        frames.append(titled(env.draw(camera), env.task.instructions[0], env.success))

    words = installed_encoder()([env.task.instructions[0]])[0].numpy()
    attempt = Loop(policy, eyes, delay=1).attempt(env, options.seed, words, watch=draw)
    draw(env)
    camera.close()
    env.close()
    print(f"{name}: {'done' if attempt.success else 'not done'} after {attempt.seconds:.1f} s")
    return frames


def titled(image: np.ndarray, text: str, done: bool) -> np.ndarray:
    """The image with what was asked for, and a mark when it is done."""
    picture = Image.fromarray(image)
    pen = ImageDraw.Draw(picture)
    pen.rectangle((0, HEIGHT - 16, WIDTH, HEIGHT), fill=(30, 30, 30))
    pen.text((5, HEIGHT - 14), text, fill=(255, 255, 255))
    if done:
        pen.text((WIDTH - 34, HEIGHT - 14), "done", fill=(120, 255, 120))
    return np.asarray(picture)


if __name__ == "__main__":
    main()
