# SPDX-License-Identifier: Apache-2.0
"""Attention on x86 CPUs in bfloat16, compiled from attention.c where that was possible.

`load()` finds what `build.py` left at installation. It never compiles.
"""

from __future__ import annotations

import ctypes
import logging
import os
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from omnistream_ros.model.native.build import LIBRARY
from omnistream_ros.model.rope import Rotation

_log = logging.getLogger(__name__)

HEAD_DIM = 64
#: Tokens of a packed cache come in multiples of this.
TOKEN_BLOCK = 32
#: What `omnistream_instructions` may answer, worst first.
INSTRUCTIONS = ("torch", "avx512_bf16", "amx")


class Kernel:
    """The functions of attention.c on tensors.

    q, k, v are (M, heads, 64) bfloat16 views of one tensor (M, ..., heads, 64): the last two
    dimensions contiguous, tokens a common stride apart.

    Args:
        library: the compiled file.
        instructions: one of `INSTRUCTIONS` to use less than the processor could.

    Raises:
        OSError: the file cannot be loaded, or lacks what it should have.
        RuntimeError: this processor cannot run it, or not with these instructions.
    """

    def __init__(self, library: Path, instructions: str | None = None) -> None:
        for openmp in _openmp_of_torch():
            ctypes.CDLL(openmp, mode=ctypes.RTLD_GLOBAL)
        functions = ctypes.CDLL(str(library))
        try:
            best = functions.omnistream_instructions()
            self._rotate = functions.omnistream_rotate
            self._write = functions.omnistream_write
            self._write_time = functions.omnistream_write_time
            self._attend = functions.omnistream_attend
        except AttributeError as error:
            raise OSError(f"{library}: {error}") from error
        wanted = best if instructions is None else INSTRUCTIONS.index(instructions)
        if not 0 < wanted <= best:
            raise RuntimeError(
                f"this processor's best is {INSTRUCTIONS[best]}, not {instructions or 'enough'}"
            )
        self._instructions = wanted
        for function in (self._rotate, self._write, self._write_time, self._attend):
            function.restype = None

    @property
    def instructions(self) -> str:
        """What the products run on."""
        return INSTRUCTIONS[self._instructions]

    def rotate_(self, q: Tensor, k: Tensor, rotation: Rotation) -> None:
        """Turn q and k in place; cos and sin (M, 64) float32."""
        cos, sin = rotation
        tokens, heads, _ = q.shape
        self._rotate(
            *_pointers(q, k), *_longs(q.stride(0)), *_pointers(cos, sin), *_longs(heads, tokens),
            torch.get_num_threads(),
        )  # fmt: skip

    def write(self, keys: Tensor, values: Tensor, first: int, k: Tensor, v: Tensor) -> None:
        """k, v become tokens `first` and following of a packed cache, (heads, tokens, 64) each."""
        tokens, heads, _ = k.shape
        self._write(
            *_pointers(keys, values, k, v),
            *_longs(k.stride(0), heads, tokens, keys.shape[1], first), torch.get_num_threads(),
        )  # fmt: skip

    def write_time(self, keys: Tensor, first: int, channels: Tensor) -> None:
        """Overwrite the t channels of cached keys; channels (heads, n, 16) bfloat16, contiguous."""
        heads, tokens, _ = channels.shape
        self._write_time(*_pointers(keys, channels), *_longs(heads, tokens, keys.shape[1], first))

    def attend(
        self,
        q: Tensor,
        keys: Tensor,
        values: Tensor,
        visible: int,
        bias: Tensor | None = None,
        plain: int = 0,
    ) -> Tensor:
        """softmax((q k + bias) / 8) v over the first `visible` cached tokens: (M, heads, 64).

        bias: (tokens,) float32, for tokens from `plain` on.
        """
        tokens, heads, d = q.shape
        result = torch.empty(tokens, heads, d, dtype=torch.bfloat16)
        self._attend(
            *_pointers(result), *_longs(heads * d),
            *_pointers(q), *_longs(q.stride(0)),
            *_pointers(keys, values), *_longs(heads, tokens, keys.shape[1], visible),
            ctypes.c_void_p(None if bias is None else bias.data_ptr()),
            *_longs(visible if bias is None else plain), self._instructions,
            torch.get_num_threads(),
        )  # fmt: skip
        return result


@lru_cache(maxsize=1)
def load() -> Kernel | None:
    """The kernel, or None where it was not built or this processor lacks the instructions.

    The environment variable OMNISTREAM_KERNEL names another library, or "off" for none.
    """
    named = os.environ.get("OMNISTREAM_KERNEL", "")
    library = Path(named) if named else Path(__file__).with_name(LIBRARY)
    if named == "off" or not (named or library.exists()):
        return None
    try:
        return Kernel(library)
    except (OSError, RuntimeError) as error:
        _log.warning("attention kernel %s is not used: %s", library, error)
        return None


def _openmp_of_torch() -> Iterable[str]:
    """The OpenMP library that torch has loaded: two of them would fight over the cores."""
    with open("/proc/self/maps", encoding="utf-8") as maps:
        files = {line.split(maxsplit=5)[5].strip() for line in maps if "omp" in line}
    return sorted(file for file in files if Path(file).name.startswith(("libgomp", "libiomp")))


def _pointers(*tensors: Tensor) -> list[ctypes.c_void_p]:
    return [ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors]


def _longs(*numbers: int) -> list[ctypes.c_long]:
    return [ctypes.c_long(number) for number in numbers]
