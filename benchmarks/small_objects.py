# SPDX-License-Identifier: Apache-2.0
"""Do frozen features show where a small ball is, which colour it has, and how far away it is?

python benchmarks/small_objects.py [--scenes 400]

Scenes of the task reach-red, their first image, as the first frame of a stream. A linear probe on
single patch tokens says red ball, blue ball or neither; judged by where its best red and blue patch
is. A second one says from the tokens around a ball where in the patch it is, and how far away. What
a policy cannot read here it cannot act on.

The last lines say where the balls then are in the room: by one camera, along the ray through the
place and at the distance that were read; and by two, where the rays through the places come nearest
to each other, if a second camera stood in front of the arm.
"""

from __future__ import annotations

import argparse
import math

import numpy as np
import torch
import torch.nn.functional as F

from omnistream_ros.evaluation.stream_features import StreamFeatures
from omnistream_ros.simulation.meta_world import VIEW, MetaWorldEnvironment
from omnistream_ros.simulation.rendering import Picture, View
from omnistream_ros.simulation.tasks import make_environment

KEYS = ("1:patch", "3:patch", "5:patch", "7:patch:normed")
PATCH = 16
FIRST_SEED = 500_000
NEAR = 0.05  # m, where a ball counts as reached
SECOND_VIEW = View((0.0, 0.74, 0.10), 0.92, 285.0, -38.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=400)
    parser.add_argument("--model", default="omnistream-nano")
    options = parser.parse_args()
    torch.set_num_threads(1)
    env = make_environment("reach-red")
    assert isinstance(env, MetaWorldEnvironment)
    tokens, pixels, depths = look(env, options.scenes, options.model, VIEW)
    held_out = max(options.scenes // 4, 1)
    print("| feature | right patch | or beside | place, pixels | distance, cm | it varies by |")
    print("|---|---|---|---|---|---|")
    for key in KEYS:
        right, beside = find(tokens[key], pixels, held_out)
        said, wanted, spread = measure(tokens[key], pixels, depths, held_out)
        error = np.abs(said - wanted)
        place = np.linalg.norm(error[..., :2], axis=-1).mean()
        distance = error[..., 2].mean()
        print(
            f"| {key} | {100 * right:.0f} % | {100 * beside:.0f} % | {place:.1f} | "
            f"{100 * distance:.1f} | {100 * spread:.1f} |",
            flush=True,
        )
    key = KEYS[-1]
    read = {VIEW: said}
    other = look(env, options.scenes, options.model, SECOND_VIEW, (key,))
    read[SECOND_VIEW], wanted_there, _ = measure(other[0][key], *other[1:], held_out)
    rays = {view: Rays(view, env) for view in read}
    true = rays[VIEW].places(wanted)
    assert np.allclose(true, rays[SECOND_VIEW].places(wanted_there), atol=1e-3)
    for name, found in (
        ("one camera", rays[VIEW].places(read[VIEW])),
        ("two cameras", meeting([rays[view].lines(read[view]) for view in read])),
    ):
        off = np.linalg.norm(found - true, axis=-1)
        near = (off < NEAR).mean()
        print(f"{name}: balls off by {100 * off.mean():.1f} cm, {100 * near:.0f} % within 5 cm")
    env.close()


def look(
    env: MetaWorldEnvironment, scenes: int, model: str, view: View, keys: tuple[str, ...] = KEYS
) -> tuple[dict[str, torch.Tensor], np.ndarray, np.ndarray]:
    """Tokens by key (N, rows, columns, C), pixels (N, 2 balls, 2) and distances (N, 2 balls)."""
    height, width = env.observe().image.shape[:2]
    picture = Picture(env._env.model, width, height, view)
    eyes = StreamFeatures(model, keys, (height, width), env.field_of_view, cached=False)
    rays = Rays(view, env)
    tokens: dict[str, list[np.ndarray]] = {key: [] for key in keys}
    pixels, depths = [], []
    for seed in range(FIRST_SEED, FIRST_SEED + scenes):
        env.reset(seed)
        places = np.stack([ball.place for ball in env.balls])
        at, far = rays.project(places)
        pixels.append(at)
        depths.append(far)
        for key, values in eyes.look(env.draw(picture), 0.0).items():
            tokens[key].append(values)
    picture.close()
    stacked = {key: torch.from_numpy(np.stack(values)) for key, values in tokens.items()}
    return stacked, np.stack(pixels), np.stack(depths)


class Rays:
    """From places in the room to pixels of a camera, and back."""

    def __init__(self, view: View, env: MetaWorldEnvironment) -> None:
        azimuth, elevation = math.radians(view.azimuth), math.radians(view.elevation)
        self._forward = np.array(
            [
                math.cos(elevation) * math.cos(azimuth),
                math.cos(elevation) * math.sin(azimuth),
                math.sin(elevation),
            ]
        )
        right = np.cross(self._forward, [0.0, 0.0, 1.0])
        self._right = right / np.linalg.norm(right)
        self._down = np.cross(self._forward, self._right)
        self._eye = np.array(view.look_at) - view.distance * self._forward
        height, width = env.observe().image.shape[:2]
        self._middle = np.array([width, height]) / 2
        self._focal = height / 2 / math.tan(env.field_of_view[1] / 2)

    def project(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pixels (..., 2) and distances along the optical axis (...) of places (..., 3)."""
        rays = places - self._eye
        far = rays @ self._forward
        across = np.stack((rays @ self._right, rays @ self._down), -1) / far[..., None]
        return self._focal * across + self._middle, far

    def lines(self, read: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The eye (3,), and unit vectors (..., 3) through pixels, the first two of (..., 3)."""
        x, y = np.moveaxis((read[..., :2] - self._middle) / self._focal, -1, 0)
        way = self._forward + x[..., None] * self._right + y[..., None] * self._down
        return self._eye, way / np.linalg.norm(way, axis=-1, keepdims=True)

    def places(self, read: np.ndarray) -> np.ndarray:
        """Places (..., 3) at pixels and distances (..., 3)."""
        eye, way = self.lines(read)
        return eye + way * (read[..., 2] / (way @ self._forward))[..., None]


def meeting(lines: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Where lines come nearest to each other, (..., 3)."""
    matrix, vector = 0.0, 0.0
    for eye, way in lines:
        across = np.eye(3) - way[..., :, None] * way[..., None, :]
        matrix, vector = matrix + across, vector + across @ eye
    return np.linalg.solve(matrix, vector[..., None])[..., 0]


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
) -> tuple[np.ndarray, np.ndarray, float]:
    """Pixel and distance of held-out balls, (n, 2, 3), as read by ridge regression from the ball's
    patch and the four beside it, and as they are; and by how much the distances differ from their
    mean, in metres."""
    n, rows, columns, _ = tokens.shape
    cells = np.clip((pixels // PATCH).astype(int), 0, [columns - 1, rows - 1])
    padded = F.pad(F.layer_norm(tokens, tokens.shape[-1:]), (0, 0, 1, 1, 1, 1)).numpy()
    index = np.arange(n)[:, None]
    near = [(1, 1), (0, 1), (2, 1), (1, 0), (1, 2)]
    x = np.concatenate(
        [padded[index, cells[..., 1] + dy, cells[..., 0] + dx] for dy, dx in near], -1
    )  # (N, 2, 5 C)
    begin = np.concatenate((PATCH * cells, np.zeros((n, 2, 1))), -1)  # of the patch
    wanted = np.concatenate((pixels, depths[..., None]), -1)  # (N, 2, 3)
    train, test = slice(0, n - held_out), slice(n - held_out, n)
    a, b = x[train].reshape(-1, x.shape[-1]), (wanted - begin)[train].reshape(-1, 3)
    mean = b.mean(0)
    gram = a @ a.T + 100.0 * np.eye(len(a))
    said = x[test] @ (a.T @ np.linalg.solve(gram, b - mean)) + mean + begin[test]
    spread = np.abs(wanted[test][..., 2] - mean[2]).mean()
    return said, wanted[test], float(spread)


if __name__ == "__main__":
    main()
