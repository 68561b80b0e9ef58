# SPDX-License-Identifier: Apache-2.0
"""The folded trunk against the published network with its BatchNorm, on random statistics."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from omnistream_ros.model import PIXEL_MEAN, PIXEL_STD
from omnistream_ros.model.trunk import EfficientNetLite0Trunk, fold_efficientnet_lite0

# kernel, stride, channels in, channels out of the blocks up to stride 16
BLOCKS = [
    (3, 1, 32, 16),
    (3, 2, 16, 24),
    (3, 1, 24, 24),
    (5, 2, 24, 40),
    (5, 1, 40, 40),
    (3, 2, 40, 80),
    (3, 1, 80, 80),
    (3, 1, 80, 80),
    (5, 1, 80, 112),
    (5, 1, 112, 112),
    (5, 1, 112, 112),
]


def published_weights() -> dict[str, torch.Tensor]:
    """Random weights under the published names, and some that the trunk does not need."""
    generator = torch.Generator().manual_seed(0)
    weights = {}

    def conv(name: str, *shape: int) -> None:
        scale = (2 / (shape[1] * shape[2] * shape[3])) ** 0.5
        weights[f"{name}.weight"] = scale * torch.randn(*shape, generator=generator)

    def norm(name: str, channels: int) -> None:
        for part in ("weight", "running_var"):
            weights[f"{name}.{part}"] = 0.5 + torch.rand(channels, generator=generator)
        for part in ("bias", "running_mean"):
            weights[f"{name}.{part}"] = torch.randn(channels, generator=generator)

    conv("_conv_stem", 32, 3, 3, 3)
    norm("_bn0", 32)
    for n, (kernel, _, inputs, outputs) in enumerate(BLOCKS):
        inner = inputs * (6 if n else 1)
        if n:
            conv(f"_blocks.{n}._expand_conv", inner, inputs, 1, 1)
            norm(f"_blocks.{n}._bn0", inner)
        conv(f"_blocks.{n}._depthwise_conv", inner, 1, kernel, kernel)
        norm(f"_blocks.{n}._bn1", inner)
        conv(f"_blocks.{n}._project_conv", outputs, inner, 1, 1)
        norm(f"_blocks.{n}._bn2", outputs)
    weights["_fc.bias"] = torch.zeros(1000)
    return {name: w.double() for name, w in weights.items()}


def published_network(w: dict[str, torch.Tensor], rgb: torch.Tensor) -> dict[int, torch.Tensor]:
    """Features by stride from rgb in [0, 1]; outside lies the mean colour."""

    def normed(x: torch.Tensor, name: str) -> torch.Tensor:
        mean, var = w[f"{name}.running_mean"], w[f"{name}.running_var"]
        return F.batch_norm(x, mean, var, w[f"{name}.weight"], w[f"{name}.bias"], eps=1e-3)

    def same(x: torch.Tensor, weight: torch.Tensor, stride: int, groups: int = 1) -> torch.Tensor:
        total = max(weight.shape[-1] - stride, 0)  # for sizes that the stride divides
        a, b = total // 2, total - total // 2
        return F.conv2d(F.pad(x, (a, b, a, b)), weight, stride=stride, groups=groups)

    mean = torch.tensor(PIXEL_MEAN).double()[:, None, None]
    # "SAME" for the stem, by hand: what is padded is the mean colour.
    padded = torch.cat((rgb, mean.expand(len(rgb), 3, 1, rgb.shape[3])), dim=2)
    padded = torch.cat((padded, mean.expand(len(rgb), 3, padded.shape[2], 1)), dim=3)
    x = F.conv2d((255 * padded - 127) / 128, w["_conv_stem.weight"], stride=2)
    x = F.relu6(normed(x, "_bn0"))
    features, scale = {}, 2
    for n, (_, stride, inputs, outputs) in enumerate(BLOCKS):
        block = f"_blocks.{n}."
        y = x
        if n:
            y = F.relu6(normed(same(y, w[block + "_expand_conv.weight"], 1), block + "_bn0"))
        y = same(y, w[block + "_depthwise_conv.weight"], stride, groups=y.shape[1])
        y = F.relu6(normed(y, block + "_bn1"))
        y = normed(same(y, w[block + "_project_conv.weight"], 1), block + "_bn2")
        x = x + y if stride == 1 and inputs == outputs else y
        scale *= stride
        features[scale] = x
    return features


def test_folding_changes_nothing():
    published = published_weights()
    trunk = EfficientNetLite0Trunk().double()
    trunk.load_state_dict(fold_efficientnet_lite0(published))
    rgb = torch.rand(2, 3, 48, 80, dtype=torch.float64)
    mean, std = (torch.tensor(v).double()[:, None, None] for v in (PIXEL_MEAN, PIXEL_STD))
    ours = trunk((rgb - mean) / std)
    expected = published_network(published, rgb)
    assert ours.keys() == expected.keys() == {2, 4, 8, 16}
    for stride, features in expected.items():
        scale = features.abs().max()
        # The constants of the normalisation are folded in float32.
        torch.testing.assert_close(ours[stride], features, atol=1e-5 * scale, rtol=0)


def test_a_published_file_that_lacks_a_tensor():
    published = published_weights()
    del published["_blocks.7._bn1.running_var"]
    with pytest.raises(KeyError, match=r"_blocks\.7\._bn1\.running_var"):
        fold_efficientnet_lite0(published)


def test_no_normalisation_is_left():
    kinds = {type(m) for m in EfficientNetLite0Trunk().modules()}
    assert not any("Norm" in kind.__name__ for kind in kinds)
