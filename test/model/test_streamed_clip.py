# SPDX-License-Identifier: Apache-2.0
"""A clip longer than the window equals stepping through the cache, and has gradients."""

from __future__ import annotations

import pytest
import torch
from tiny_models import TINY, TINY_TRUNK, lively

FRAMES = 9


@pytest.mark.parametrize(("sink", "window"), [(1, 3), (2, 2), (0, 2), (1, 16)])
@pytest.mark.parametrize("config", [TINY, TINY_TRUNK], ids=lambda c: c.name)
def test_equals_steps_through_the_cache(config, sink: int, window: int) -> None:
    model = lively(config)
    pixels = torch.randn(2, FRAMES, 3, 32, 48)
    with torch.no_grad():
        clip = model.forward_clip(pixels, context=(sink, window))
        cache = model.backbone.allocate_cache(32, 48, sink=sink, window=window, batch=2)
        for t in range(FRAMES):
            step = model.step(pixels[:, t], cache, rays=True)
            for name in ("depth", "rays"):
                one, other = getattr(step, name), getattr(clip, name)[:, t]
                torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)
            torch.testing.assert_close(
                step.features.patches, clip.features.patches[:, t], rtol=1e-3, atol=2e-4
            )
    whole = model.forward_clip(pixels)
    assert whole.depth is not None
    same = torch.allclose(whole.features.patches, clip.features.patches, atol=1e-4)
    assert same == (sink + window >= FRAMES)


def test_gradients_reach_the_sink_and_not_what_was_forgotten() -> None:
    model = lively(TINY)
    model.backbone.blocks = model.backbone.blocks[:1]  # deeper ones relay the forgotten
    pixels = torch.randn(1, 6, 3, 32, 48, requires_grad=True)
    out = model.backbone.forward_clip(pixels, context=(1, 2))
    out.patches[0, 5].sum().backward()
    assert pixels.grad is not None
    seen = [t for t in range(6) if pixels.grad[0, t].abs().max() > 0]
    assert seen == [0, 4, 5]


def test_hidden_patches_are_not_seen() -> None:
    model = lively(TINY)
    pixels = torch.randn(1, 2, 3, 32, 48)
    hide = torch.zeros(1, 2, 6, dtype=torch.bool)
    hide[0, 1, 4] = True  # row 1, column 1 of 2 x 3
    other = pixels.clone()
    other[0, 1, :, 16:, 16:32] += 1
    with torch.no_grad():
        one, same = (
            model.backbone.forward_clip(p, hidden_patches=hide).patches for p in (pixels, other)
        )
        seen = model.backbone.forward_clip(other).patches
    assert torch.equal(one, same)
    assert not torch.allclose(one, seen)
    with pytest.raises(ValueError, match="window"):
        model.backbone.forward_clip(pixels, context=(1, 0))
