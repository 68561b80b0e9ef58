# SPDX-License-Identifier: Apache-2.0
"""Do frozen features show where a small ball is, which colour it has, and how far away it is?

python benchmarks/small_objects.py [--scenes 400]

Scenes of the task reach-red, their first image, as the first frame of a stream. A linear probe on
single patch tokens says red ball, blue ball or neither; judged by where its best red and blue patch
is. A second one says from the tokens around a ball where in the patch it is, and how far away. What
a policy cannot read here it cannot act on.
"""

from __future__ import annotations

import argparse
import math

import numpy as np
import torch
import torch.nn.functional as F

from omnistream_ros.evaluation.stream_features import StreamFeatures
from omnistream_ros.simulation.meta_world import VIEW, MetaWorldEnvironment
from omnistream_ros.simulation.tasks import make_environment

KEYS = ("0:patch", "1:patch", "2:patch", "3:patch:normed")
PATCH = 16
FIRST_SEED = 500_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=400)
    parser.add_argument("--model", default="omnistream-nano")
    options = parser.parse_args()
    torch.set_num_threads(1)
    tokens, pixels, depths = look(options.scenes, options.model)
    held_out = max(options.scenes // 4, 1)
    print("| feature | right patch | or beside | place, pixels | distance, cm | it varies by |")
    print("|---|---|---|---|---|---|")
    for key in KEYS:
        right, beside = find(tokens[key], pixels, held_out)
        place, distance, spread = measure(tokens[key], pixels, depths, held_out)
        print(
            f"| {key} | {100 * right:.0f} % | {100 * beside:.0f} % | {place:.1f} | "
            f"{100 * distance:.1f} | {100 * spread:.1f} |",
            flush=True,
        )


def look(scenes: int, model: str) -> tuple[dict[str, torch.Tensor], np.ndarray, np.ndarray]:
    """Tokens by key (N, rows, columns, C), pixels (N, 2 balls, 2) and distances (N, 2 balls)."""
    env = make_environment("reach-red")
    assert isinstance(env, MetaWorldEnvironment)
    height, width = env.observe().image.shape[:2]
    eyes = StreamFeatures(model, KEYS, (height, width), env.field_of_view, cached=False)
    tokens: dict[str, list[np.ndarray]] = {key: [] for key in KEYS}
    pixels, depths = [], []
    for seed in range(FIRST_SEED, FIRST_SEED + scenes):
        env.reset(seed)
        places = np.stack([ball.place for ball in env.balls])
        at, far = project(places, width, height, env.field_of_view[1])
        pixels.append(at)
        depths.append(far)
        for key, values in eyes.look(env.observe().image, 0.0).items():
            tokens[key].append(values)
    env.close()
    stacked = {key: torch.from_numpy(np.stack(values)) for key, values in tokens.items()}
    return stacked, np.stack(pixels), np.stack(depths)


def project(
    places: np.ndarray, width: int, height: int, fovy: float
) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (N, 2) and distances along the optical axis (N,) of places (N, 3) in the room."""
    azimuth, elevation = math.radians(VIEW.azimuth), math.radians(VIEW.elevation)
    forward = np.array(
        [
            math.cos(elevation) * math.cos(azimuth),
            math.cos(elevation) * math.sin(azimuth),
            math.sin(elevation),
        ]
    )
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    down = np.cross(forward, right)
    rays = places - (np.array(VIEW.look_at) - VIEW.distance * forward)
    far = rays @ forward
    focal = height / 2 / math.tan(fovy / 2)
    across = np.stack((rays @ right, rays @ down), -1) / far[:, None]
    return focal * across + np.array([width, height]) / 2, far


def find(tokens: torch.Tensor, pixels: np.ndarray, held_out: int) -> tuple[float, float]:
    """Share of held-out balls whose best patch is the right one; or one of the eight around it."""
    n, rows, columns, _ = tokens.shape
    cells = np.clip((pixels // PATCH).astype(int), 0, [columns - 1, rows - 1])  # (N, 2, xy)
    classes = torch.zeros(n, rows, columns, dtype=torch.long)
    for ball in range(2):
        classes[np.arange(n), cells[:, ball, 1], cells[:, ball, 0]] = ball + 1
    x = F.layer_norm(tokens, tokens.shape[-1:])
    probe = torch.nn.Linear(x.shape[-1], 3)
    optimiser = torch.optim.AdamW(probe.parameters(), 2e-2, weight_decay=1e-3)
    generator = torch.Generator().manual_seed(0)
    weight = torch.tensor([1.0, 30.0, 30.0])
    for _ in range(300):
        chosen = torch.randint(n - held_out, (64,), generator=generator)
        loss = F.cross_entropy(probe(x[chosen]).flatten(0, 2), classes[chosen].flatten(), weight)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        scores = probe(x[-held_out:])[..., 1:].flatten(1, 2)  # (n, P, 2)
    best = scores.argmax(dim=1).numpy()  # (n, 2)
    off = np.abs(np.stack((best % columns, best // columns), -1) - cells[-held_out:]).max(-1)
    return float((off == 0).mean()), float((off <= 1).mean())


def measure(
    tokens: torch.Tensor, pixels: np.ndarray, depths: np.ndarray, held_out: int
) -> tuple[float, float, float]:
    """Mean error in pixels of the place in the patch, in metres of the distance, and the mean
    difference of the distances from their mean; by ridge regression on the ball's patch and the
    four beside it."""
    n, rows, columns, _ = tokens.shape
    cells = np.clip((pixels // PATCH).astype(int), 0, [columns - 1, rows - 1])
    padded = F.pad(F.layer_norm(tokens, tokens.shape[-1:]), (0, 0, 1, 1, 1, 1)).numpy()
    index = np.arange(n)[:, None]
    near = [(1, 1), (0, 1), (2, 1), (1, 0), (1, 2)]
    x = np.concatenate(
        [padded[index, cells[..., 1] + dy, cells[..., 0] + dx] for dy, dx in near], -1
    )  # (N, 2, 5 C)
    wanted = np.concatenate((pixels - PATCH * cells, depths[..., None]), -1)  # (N, 2, 3)
    train, test = slice(0, n - held_out), slice(n - held_out, n)
    a, b = x[train].reshape(-1, x.shape[-1]), wanted[train].reshape(-1, 3)
    mean = b.mean(0)
    gram = a @ a.T + 100.0 * np.eye(len(a))
    said = x[test].reshape(-1, x.shape[-1]) @ (a.T @ np.linalg.solve(gram, b - mean)) + mean
    error = np.abs(said - wanted[test].reshape(-1, 3))
    place = np.linalg.norm(said[:, :2] - wanted[test].reshape(-1, 3)[:, :2], axis=1).mean()
    spread = np.abs(wanted[test][..., 2] - mean[2]).mean()
    return float(place), float(error[:, 2].mean()), float(spread)


if __name__ == "__main__":
    main()
