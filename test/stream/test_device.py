# SPDX-License-Identifier: Apache-2.0
"""On CUDA nothing waits: a step is all kernels, whatever is copied is copied asynchronously.

Without a GPU the step runs on tensors that have a device and a shape but no numbers: what would
need a number on the host, or a copy between devices, fails there.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from omnistream_ros.model import ModelConfig, OmniStream, build_model, heads, rope
from omnistream_ros.stream import session as session_module
from omnistream_ros.stream import transfer
from omnistream_ros.stream.frame import Frame, Intrinsics
from omnistream_ros.stream.preprocess import Preprocessor
from omnistream_ros.stream.result import FeatureKey, FeatureKind, Outputs
from omnistream_ros.stream.session import StreamSession
from omnistream_ros.stream.stopwatch import Stopwatch

CONFIG = ModelConfig(
    name="tiny",
    width=32,
    depth=4,
    heads=2,
    taps=(0, 1, 2, 3),
    head_width=16,
    model_pixels=64 * 48,
    patch_embed="efficientnet_lite0",
    matching_width=8,
)
WANTED = Outputs(
    depth=True,
    pose=False,
    features=(FeatureKey(-1, FeatureKind.PATCH, True), FeatureKey(1, FeatureKind.CLS)),
)


class NothingWaits(TorchDispatchMode):
    """Refuses operations for which the host would have to wait for the device."""

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = operation(*args, **(kwargs or {}))
        before, after = (
            {t.device.type for t in tree_leaves(x) if isinstance(t, Tensor) and t.ndim > 0}
            for x in ((args, kwargs), result)
        )
        if len(before | after) > 1:
            raise AssertionError(f"{operation} goes from {before} to {after}")
        return result


class NoWatch(Stopwatch):
    """CUDA events need CUDA."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(torch.device("cpu"))


# Writing into a CUDA tensor makes torch set the current device first; a torch without CUDA has
# nobody to tell. This is somebody who does nothing.
_NOBODY = """
#include <c10/core/impl/DeviceGuardImplInterface.h>
namespace c10::impl { C10_REGISTER_GUARD_IMPL(CUDA, NoOpDeviceGuardImpl<DeviceType::CUDA>) }
"""


def _cuda_can_be_written() -> bool:
    """Inside of a fake mode."""
    tensor = torch.ones(3, device="cuda")
    try:
        tensor.copy_(tensor)
    except RuntimeError:
        return False
    return True


@pytest.fixture(scope="module")
def device_guard(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Let fake CUDA tensors be written where torch knows no CUDA."""
    with FakeTensorMode():
        if _cuda_can_be_written():
            return
    if torch.version.cuda is not None:
        pytest.skip("a torch with CUDA, but no GPU: fake tensors cannot be written")
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        pytest.skip("needs a C++ compiler")
    folder, torch_folder = tmp_path_factory.mktemp("guard"), Path(torch.__file__).parent
    (folder / "guard.cpp").write_text(_NOBODY)
    library = folder / "guard.so"
    command = [compiler, "-shared", "-fPIC", "-std=c++20", f"-I{torch_folder / 'include'}"]
    command += ["-o", str(library), str(folder / "guard.cpp")]
    command += [f"-L{torch_folder / 'lib'}", "-lc10"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"the C++ compiler does not like torch's headers: {done.stderr[:300]}")
    torch.ops.load_library(library)


@pytest.fixture
def fake_cuda(device_guard: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeTensorMode]:
    """CUDA tensors without CUDA. Only what is pinned, streamed and timed has to be stood in for."""

    class FakeUpload:
        def __init__(self, size: tuple[int, int], device: torch.device) -> None:
            self._size, self._device = size, device

        def __call__(self, image: np.ndarray) -> Tensor:
            return torch.empty((*self._size, 3), dtype=torch.uint8, device=self._device)

    tables = (rope._periods, rope._spatial_rotation, heads._image_position)
    monkeypatch.setattr("omnistream_ros.stream.preprocess.Upload", FakeUpload)
    monkeypatch.setattr(session_module, "Stopwatch", NoWatch)
    monkeypatch.setattr(session_module, "available_bytes", lambda _: float("inf"))
    for table in tables:
        table.cache_clear()
    yield FakeTensorMode()
    for table in tables:
        table.cache_clear()  # tensors without numbers must not outlive the mode


def on_fake_cuda(model: OmniStream) -> OmniStream:
    """A model of the device "meta" with weights that only say that they are on a GPU."""
    for module in model.modules():
        for name, weight in module.named_parameters(recurse=False):
            there = torch.empty(weight.shape, dtype=weight.dtype, device="cuda")
            setattr(module, name, torch.nn.Parameter(there, requires_grad=False))
    return model


def frames(count: int) -> list[Frame]:
    rng = np.random.default_rng(0)
    camera = Intrinsics(100.0, 100.0, 63.5, 47.5, 128, 96)
    return [
        Frame(rng.integers(0, 256, (96, 128, 3), np.uint8), i * 33_000_000, camera)
        for i in range(count)
    ]


@pytest.mark.parametrize("resolution", ["model", "source"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_step_on_cuda_is_kernels_alone(
    fake_cuda: FakeTensorMode, dtype: torch.dtype, resolution: str
) -> None:
    """First frame, filling, going round, and the sink moving in time."""
    model = build_model(CONFIG, device="meta").set_compute_dtype(dtype).eval()
    with fake_cuda:
        session = StreamSession(
            on_fake_cuda(model),
            sink=1,
            window=2,
            resolution=resolution,
            consistent_depth=False,  # its keyframes are host work, like the pose
        )
        session.step(frames(1)[0], WANTED)  # tables that are made once may come from the host
        session.reset()
        with NothingWaits():
            results = [session.step(frame, WANTED) for frame in frames(6)]
    for result in results:
        assert result.depth is not None
        assert result.depth.device.type == "cuda"
        assert {t.device.type for t in result.features.values()} == {"cuda"}


def test_the_test_would_see_a_wait(fake_cuda: FakeTensorMode) -> None:
    with fake_cuda:
        on_device = torch.ones(3, device="cuda")
        with NothingWaits(), pytest.raises(AssertionError, match="goes from"):
            on_device.cpu()
        with NothingWaits(), pytest.raises(AssertionError, match="goes from"):
            torch.ones(3).to("cuda")
        with NothingWaits(), pytest.raises(DataDependentOutputException):
            float(on_device.sum())


def test_on_the_cpu_results_are_where_they_are() -> None:
    torch.manual_seed(0)
    result = StreamSession(build_model(CONFIG).eval()).step(frames(1)[0], WANTED)
    host = result.to_host(confidence=False)
    assert host.depth is result.depth
    assert host.confidence is result.confidence
    assert list(host.features) == list(result.features)
    assert all(host.features[key] is tensor for key, tensor in result.features.items())
    assert host.timings == result.timings


def test_to_host_leaves_nothing_out() -> None:
    tensors = [torch.ones(2), None, torch.zeros(3)]
    assert transfer.to_host(tensors) == tensors


needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")


@pytest.fixture
def cuda_model() -> OmniStream:
    torch.manual_seed(0)
    return build_model(CONFIG).to("cuda").eval()


@needs_cuda
def test_torch_sees_no_wait_in_a_step(cuda_model: OmniStream) -> None:
    session = StreamSession(cuda_model, window=2)
    clip = frames(8)
    for frame in clip[:4]:
        session.step(frame, WANTED)
    torch.cuda.set_sync_debug_mode("error")
    try:
        results = [session.step(frame, WANTED) for frame in clip[4:]]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(result.to_host().depth.device.type == "cpu" for result in results)  # type: ignore[union-attr]


@needs_cuda
def test_cuda_and_cpu_agree(cuda_model: OmniStream) -> None:
    """Frame by frame, without waiting between frames: uploads must not overtake each other."""
    plain = build_model(CONFIG)
    plain.load_state_dict(cuda_model.state_dict())
    clip = frames(12)
    sessions = [StreamSession(model, window=3) for model in (cuda_model, plain.eval())]
    on_cuda, on_cpu = ([session.step(frame, WANTED) for frame in clip] for session in sessions)
    for mine, other in zip(on_cuda, on_cpu, strict=True):
        host = mine.to_host()
        torch.testing.assert_close(host.depth, other.depth, rtol=1e-2, atol=1e-3)
        for key, tensor in other.features.items():
            torch.testing.assert_close(host.features[key], tensor, rtol=1e-2, atol=2e-2)
        assert all(seconds >= 0.0 for seconds in mine.timings.values())


@needs_cuda
def test_an_upload_is_whole_though_the_image_changes() -> None:
    preprocess = Preprocessor((96, 128), (48, 64), device="cuda")
    image = np.zeros((96, 128, 3), np.uint8)
    results = []
    for value in range(0, 250, 10):
        image[:] = value  # the buffer of the caller, overwritten at once
        results.append(preprocess(image))
    expected = Preprocessor((96, 128), (48, 64))
    for value, result in zip(range(0, 250, 10), results, strict=True):
        image[:] = value
        torch.testing.assert_close(result.cpu(), expected(image), rtol=0.0, atol=0.03)
