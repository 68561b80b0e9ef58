# SPDX-License-Identifier: Apache-2.0
"""The OmniStream backbone again, in float64 numpy, straight from its equations.

Nothing here is shared with the package: no torch, no cache, no fused products. Keys and values of
every frame are kept without their rotation, and every step rotates what it is told to look at, for
the time it is told to see it at. Slow and plain on purpose.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

Weights = Mapping[str, np.ndarray]
# frame -> what it sees, itself included: pairs of a frame and the time it is seen at
Context = Callable[[int], list[tuple[int, int]]]


def everything(frame: int) -> list[tuple[int, int]]:
    """Full causal attention: all frames so far, each at its own time."""
    return [(g, g) for g in range(frame + 1)]


def angles(row: int, col: int, h: int, w: int, time: int, d: int) -> np.ndarray:
    """The d angles of the patch at (row, col) of a grid h x w, seen at frame index `time`."""
    periods = [100.0 ** (2 * i / (d / 2)) for i in range(d // 4)]
    y = 2 * (row + 0.5) / h - 1
    x = 2 * (col + 0.5) / w - 1
    t = time / 16
    ys = [2 * math.pi * y / p for p in periods]
    xs = [2 * math.pi * x / p for p in periods]
    ts = [2 * math.pi * t / p for p in periods[: d // 8]]
    result = np.array(ys + ys + xs + xs)
    result[[3 + 4 * k for k in range(d // 4)]] = ts + ts
    return result


def turn(v: np.ndarray, angle: np.ndarray) -> np.ndarray:
    d = len(v)
    half = np.concatenate((-v[d // 2 :], v[: d // 2]))
    return v * np.cos(angle) + half * np.sin(angle)


def layer_norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    mean = x.mean(axis=-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(axis=-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + 1e-5) * weight + bias


def gelu(x: np.ndarray) -> np.ndarray:
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def embed_patches(pixels: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """pixels (3, H, W) -> tokens (P, D), row by row."""
    size = weight.shape[-1]
    tokens = []
    for top in range(0, pixels.shape[1], size):
        for left in range(0, pixels.shape[2], size):
            patch = pixels[:, top : top + size, left : left + size]
            tokens.append((weight * patch).sum(axis=(1, 2, 3)) + bias)
    return np.array(tokens)


def run(
    weights: Weights,
    heads: int,
    patches: np.ndarray,
    grid: tuple[int, int],
    context: Context = everything,
    camera_token: bool = True,
    aspect_ratio: float | None = None,
) -> dict[str, np.ndarray]:
    """One stream, frame by frame.

    Args:
        weights: names as in the released checkpoint without its prefix.
        patches: (T, P, D) embedded patches.
        context: what each frame sees, and when.

    Returns:
        hidden (L, T, N, D), patches (T, P, D), cls (T, D), registers (T, 4, D), camera (T, D).
    """
    depth = 1 + max(int(n.split(".")[1]) for n in weights if n.startswith("blocks."))
    past: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in range(depth)]
    hidden = []
    prefix = 6 if camera_token else 5
    for frame, own in enumerate(patches):
        version = 0 if frame == 0 else 1
        tokens = [weights["cls_token"][0, 0]]
        if camera_token:
            camera = weights["camera_token"][0, version, 0]
            if aspect_ratio is not None:
                slope, offset = weights["ar_embedder.weight"][:, 0], weights["ar_embedder.bias"]
                camera = camera + slope * math.log(aspect_ratio) + offset
            tokens.append(camera)
        tokens += list(weights["register_token"][0, version])
        x = np.array([*tokens, *own])  # (N, D)
        layers = []
        for layer in range(depth):
            block = {
                name.removeprefix(f"blocks.{layer}."): w
                for name, w in weights.items()
                if name.startswith(f"blocks.{layer}.")
            }
            x = run_block(block, heads, x, past[layer], frame, grid, prefix, context(frame))
            layers.append(x)
        hidden.append(layers)
    final = np.array([layers[-1] for layers in hidden])
    final = layer_norm(final, weights["post_layernorm.weight"], weights["post_layernorm.bias"])
    result = {
        "hidden": np.array(hidden).transpose(1, 0, 2, 3),
        "cls": final[:, 0],
        "registers": final[:, prefix - 4 : prefix],
        "patches": final[:, prefix:],
    }
    if camera_token:
        result["camera"] = final[:, 1]
    return result


def run_block(
    w: Weights,
    heads: int,
    x: np.ndarray,
    past: list[tuple[np.ndarray, np.ndarray]],
    frame: int,
    grid: tuple[int, int],
    prefix: int,
    context: list[tuple[int, int]],
) -> np.ndarray:
    N, D = x.shape
    d = D // heads

    def place(v: np.ndarray, time: int) -> np.ndarray:
        """v (N, D): every head of every patch token turned for its place and time."""
        placed = v.copy()
        for token in range(prefix, N):
            row, col = divmod(token - prefix, grid[1])
            angle = angles(row, col, *grid, time, d)
            for head in range(heads):
                s = slice(head * d, (head + 1) * d)
                placed[token, s] = turn(v[token, s], angle)
        return placed

    normed = layer_norm(x, w["norm1.weight"], w["norm1.bias"])
    qkv = normed @ w["attn.qkv.weight"].T + w["attn.qkv.bias"]
    q, k, v = qkv[:, :D], qkv[:, D : 2 * D], qkv[:, 2 * D :]
    past.append((k, v))
    q = place(q, frame)
    keys = np.concatenate([place(past[g][0], time) for g, time in context])
    values = np.concatenate([past[g][1] for g, _ in context])
    out = np.zeros_like(x)
    for head in range(heads):
        s = slice(head * d, (head + 1) * d)
        logits = q[:, s] @ keys[:, s].T / math.sqrt(d)
        weight = np.exp(logits - logits.max(axis=1, keepdims=True))
        out[:, s] = weight / weight.sum(axis=1, keepdims=True) @ values[:, s]
    x = x + w["ls1.gamma"] * (out @ w["attn.proj.weight"].T + w["attn.proj.bias"])
    normed = layer_norm(x, w["norm2.weight"], w["norm2.bias"])
    inner = gelu(normed @ w["mlp.fc1.weight"].T + w["mlp.fc1.bias"])
    return x + w["ls2.gamma"] * (inner @ w["mlp.fc2.weight"].T + w["mlp.fc2.bias"])
