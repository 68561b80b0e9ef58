# SPDX-License-Identifier: Apache-2.0
"""The compiled attention kernel against plain torch, with all instructions that run here."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from omnistream_ros.model import native
from omnistream_ros.model.cache_storage import TensorStorage
from omnistream_ros.model.native import build
from omnistream_ros.model.rope import Rotation, rotate, turn_by_frames

D = native.HEAD_DIM


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> Path:
    try:
        return build.build(tmp_path_factory.mktemp("native"))
    except build.BuildError as error:
        pytest.skip(f"the kernel cannot be built here: {error}")


class Case(NamedTuple):
    """A kernel and the type of its cache."""

    kernel: native.Kernel
    dtype: torch.dtype

    @property
    def limit(self) -> float:
        """Of the relative error."""
        return 5e-3 if self.dtype == torch.bfloat16 else 1e-5


@pytest.fixture(
    scope="module",
    params=[
        *((name, torch.float32) for name in ("avx2", "avx512")),
        *((name, torch.bfloat16) for name in native.INSTRUCTIONS[1:]),
    ],
    ids=lambda param: f"{param[0]}-{param[1]}".replace("torch.", ""),
)
def case(request, library) -> Case:
    name, dtype = request.param
    try:
        return Case(native.Kernel(library, name), dtype)
    except RuntimeError as error:
        pytest.skip(str(error))


def packed(heads: int, tokens: int, dtype: torch.dtype) -> torch.Tensor:
    capacity = math.ceil(tokens / native.TOKEN_BLOCK) * native.TOKEN_BLOCK
    return torch.zeros(heads, capacity, D, dtype=dtype)


def frames(case: Case, count: int, tokens: int, heads: int, scale: float = 1.0):
    """Random queries, keys, values (count, tokens, 3, heads, D), and a cache with all of them."""
    kernel, dtype = case
    torch.manual_seed(tokens * heads + count)
    qkv = (scale * torch.randn(count, tokens, 3, heads, D)).to(dtype)
    keys, values = packed(heads, count * tokens, dtype), packed(heads, count * tokens, dtype)
    for n, frame in enumerate(qkv):
        kernel.write(keys, values, n * tokens, frame[:, 1], frame[:, 2])
    return qkv, keys, values


def expected(qkv: torch.Tensor, visible: int, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Attention of the last frame, in float64 from the same numbers."""
    q = qkv[-1, :, 0].double().transpose(0, 1)  # (heads, tokens, D)
    k, v = qkv[:, :, 1:].double().permute(2, 3, 0, 1, 4).flatten(2, 3)[:, :, :visible]
    scores = q @ k.transpose(1, 2)
    if bias is not None:
        scores = scores + bias[:visible].double()
    return ((scores / math.sqrt(D)).softmax(-1) @ v).transpose(0, 1)


def relative_error(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got.double() - want).norm() / want.norm())


@settings(deadline=None, max_examples=40)
@given(
    count=st.integers(1, 40),
    tokens=st.integers(1, 70),
    heads=st.integers(1, 4),
    scale=st.sampled_from([0.1, 1.0, 6.0]),
    threads=st.integers(1, 3),
)
def test_attention_is_that_of_torch(case, count, tokens, heads, scale, threads):
    qkv, keys, values = frames(case, count, tokens, heads, scale)
    visible = count * tokens
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        out = case.kernel.attend(qkv[-1, :, 0], keys, values, visible)
    finally:
        torch.set_num_threads(before)
    assert relative_error(out, expected(qkv, visible)) < case.limit


@pytest.mark.parametrize("visible", [1, 31, 32, 33, 63, 64, 65, 1023, 1024, 1025, 1200])
def test_what_is_not_visible_has_no_say(case, visible):
    qkv, keys, values = frames(case, 24, 50, 2)
    want = expected(qkv, visible)
    values_seen = case.kernel.attend(qkv[-1, :, 0], keys, values, visible)
    assert relative_error(values_seen, want) < case.limit


def test_more_queries_than_one_piece_holds(case):
    qkv, keys, values = frames(case, 2, 1100, 1)
    out = case.kernel.attend(qkv[-1, :, 0], keys, values, 2200)
    assert relative_error(out, expected(qkv, 2200)) < case.limit


@pytest.mark.parametrize("plain", [0, 5, 64, 100, 129])
def test_bias_counts_from_its_first_token(case, plain):
    qkv, keys, values = frames(case, 3, 43, 2)
    bias = 20 * torch.rand(keys.shape[1])
    masked = bias.clone()
    masked[:plain] = 0
    out = case.kernel.attend(qkv[-1, :, 0], keys, values, 129, bias, plain)
    assert relative_error(out, expected(qkv, 129, masked)) < case.limit


def test_scores_as_large_as_they_come(case):
    """Weights that underflow to nothing, and one key that takes everything, in whatever chunk."""
    qkv, keys, values = frames(case, 30, 50, 1, scale=30.0)
    out = case.kernel.attend(qkv[-1, :, 0], keys, values, 1500)
    assert out.isfinite().all()
    assert relative_error(out, expected(qkv, 1500)) < case.limit


def test_not_a_number_stays_one(case):
    qkv, keys, values = frames(case, 2, 40, 1)
    qkv[-1, 3, 0, 0, 7] = math.nan
    out = case.kernel.attend(qkv[-1, :, 0], keys, values, 80)
    assert out[3].isnan().all()
    assert out[4:].isfinite().all()


def test_rotation_is_that_of_rope(case):
    qkv = torch.randn(37, 3, 5, D).to(case.dtype)
    angles = 9 * torch.rand(37, D)
    rotation = Rotation(angles.cos(), angles.sin())
    want = rotate(qkv.transpose(0, 2).float(), rotation).transpose(0, 2)
    values = qkv[:, 2].clone()
    case.kernel.rotate_(qkv[:, 0], qkv[:, 1], rotation)
    torch.testing.assert_close(qkv[:, :2].float(), want[:, :2], rtol=2 * case.limit, atol=1e-2)
    assert torch.equal(qkv[:, 2], values)


@pytest.mark.parametrize(("pieces", "n", "still"), [(1, 20, 6), (3, 7, 0), (4, 9, 9)])
def test_keys_are_moved_in_time_as_torch_does_it(case, pieces, n, still):
    """The t channels of some tokens, and nothing else."""
    first, tokens = 5, pieces * n
    _, keys, _ = frames(case, 2, 20, 2)
    plain = TensorStorage(1, 1, 2, 64, D, device=torch.device("cpu"), dtype=case.dtype)
    pair = 2 if case.dtype == torch.bfloat16 else 1
    plain.keys[0, 0] = keys.view(2, -1, D // pair, 16, pair).transpose(2, 3).reshape(2, -1, D)
    written = torch.randn(3, 2, tokens + 4, D // 4).to(case.dtype)[1:2, :, :tokens]
    turn = turn_by_frames(torch.tensor([3.0, -8.0, 0.0, 40.5])[:pieces], D, torch.float32)
    case.kernel.turn(keys, first, written[0], n, turn, still)
    plain.turn(0, slice(0, 1), first, written, n, turn, still)
    got = keys.view(2, -1, D // pair, 16, pair).transpose(2, 3).reshape(2, -1, D)
    torch.testing.assert_close(got, plain.keys[0, 0], rtol=case.limit, atol=case.limit)


def test_openmp_is_that_of_torch(library):
    """A second OpenMP runtime would bring its own threads, spinning beside torch's."""
    code = (
        "import sys, torch; from pathlib import Path; from omnistream_ros.model import native;"
        "native.Kernel(Path(sys.argv[1])); lines = open('/proc/self/maps').read().split();"
        "print(len({x for x in lines if 'libgomp' in x or 'libiomp' in x}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(library)], capture_output=True, text=True, check=False
    )
    if "best is torch" in done.stderr:
        pytest.skip("this processor lacks the instructions")
    assert done.stdout.strip() == "1", done.stderr


def test_no_compiler_is_no_error(tmp_path):
    environment = {**os.environ, "CC": "/no/such/compiler"}
    done = subprocess.run(
        [sys.executable, str(build.SOURCES / "build.py"), str(tmp_path)],
        capture_output=True, text=True, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0
    assert "torch's own attention will be used" in done.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [None, b"", b"not a library"])
def test_a_broken_library_is_told_and_not_used(content, tmp_path, monkeypatch, caplog):
    file = tmp_path / "attention.so"
    if content is not None:
        file.write_bytes(content)
    monkeypatch.setenv("OMNISTREAM_KERNEL", str(file))
    native.load.cache_clear()
    try:
        assert native.load() is None
    finally:
        native.load.cache_clear()
    assert "is not used" in caplog.text


def test_torch_computes_the_same_from_what_is_packed(case):
    """The layout is what the comment says: unpacked, it gives torch the same keys and values."""
    qkv, keys, values = frames(case, 3, 20, 2)
    pair = 2 if case.dtype == torch.bfloat16 else 1
    k = keys.view(2, -1, D // pair, 16, pair).transpose(2, 3).reshape(2, -1, D)[:, :60]
    v = values.view(2, -1, D, pair).transpose(2, 3).reshape(2, -1, D)[:, :60]
    q = qkv[-1, :, 0].transpose(0, 1)
    out = F.scaled_dot_product_attention(q.float(), k.float(), v.float()).transpose(0, 1)
    assert relative_error(out, expected(qkv, 60)) < 1e-5
