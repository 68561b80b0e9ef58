# SPDX-License-Identifier: Apache-2.0
"""Attention on x86 CPUs, compiled from the C files beside where that was possible.

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
INSTRUCTIONS = ("torch", "avx2", "avx512", "avx512_bf16", "amx")
#: From this on, processors multiply bfloat16; others widen it, and save memory by it, not time.
_BFLOAT16 = INSTRUCTIONS.index("avx512_bf16")


class Kernel:
    """The compiled functions on tensors, in float32 or bfloat16.

    q, k, v are (M, heads, 64) views of one tensor (M, ..., heads, 64): the last two dimensions
    contiguous, tokens a common stride apart.

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
            wanted = best if instructions is None else INSTRUCTIONS.index(instructions)
            generic = "avx2" if wanted == INSTRUCTIONS.index("avx2") else "avx512"
            self._rotate = functions[f"omnistream_rotate_{generic}"]
            self._write = functions[f"omnistream_write_{generic}"]
            self._turn = functions[f"omnistream_turn_{generic}"]
            self._attend = functions[f"omnistream_attend_{generic}"]
            self._attend_bfloat16 = functions.omnistream_attend
        except AttributeError as error:
            raise OSError(f"{library}: {error}") from error
        if not 0 < wanted <= best:
            raise RuntimeError(
                f"this processor's best is {INSTRUCTIONS[best]}, not {instructions or 'enough'}"
            )
        self._instructions = wanted
        functions_here = self._rotate, self._write, self._turn, self._attend, self._attend_bfloat16
        for function in functions_here:
            function.restype = None

    @property
    def instructions(self) -> str:
        """What the products run on, those of bfloat16 where there are two ways."""
        return INSTRUCTIONS[self._instructions]

    @property
    def multiplies_bfloat16(self) -> bool:
        """Whether bfloat16 is faster here than float32, and not only smaller."""
        return self._instructions >= _BFLOAT16

    def rotate_(self, q: Tensor, k: Tensor, rotation: Rotation) -> None:
        """Turn q and k in place; cos and sin (M, 64) float32."""
        cos, sin = rotation
        tokens, heads, _ = q.shape
        self._rotate(
            *_pointers(q, k), *_longs(q.stride(0)), *_pointers(cos, sin), *_longs(heads, tokens),
            _wide(q), torch.get_num_threads(),
        )  # fmt: skip

    def write(self, keys: Tensor, values: Tensor, first: int, k: Tensor, v: Tensor) -> None:
        """k, v become tokens `first` and following of a packed cache, (heads, tokens, 64) each."""
        tokens, heads, _ = k.shape
        self._write(
            *_pointers(keys, values, k, v),
            *_longs(k.stride(0), heads, tokens, keys.shape[1], first), _wide(k),
            torch.get_num_threads(),
        )  # fmt: skip

    def turn(
        self, keys: Tensor, first: int, written: Tensor, n: int, turn: Rotation, still: int
    ) -> None:
        """Overwrite the t channels of cached keys, from token `first` on; see `Storage.turn`.

        keys (heads, tokens, 64); written (heads, pieces * n, 16), each head contiguous; cos and sin
        (pieces or 1, 16) float32.
        """
        heads, tokens, _ = written.shape
        cos, sin = (table.expand(tokens // n, -1).contiguous() for table in turn)
        self._turn(
            *_pointers(keys, written, cos, sin),
            *_longs(heads, written.stride(0), tokens // n, n, still, keys.shape[1], first),
            _wide(keys), torch.get_num_threads(),
        )  # fmt: skip

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
        result = torch.empty(tokens, heads, d, dtype=q.dtype)
        best = q.dtype == torch.bfloat16 and self.multiplies_bfloat16
        amx = self._instructions > _BFLOAT16
        (self._attend_bfloat16 if best else self._attend)(
            *_pointers(result), *_longs(heads * d),
            *_pointers(q), *_longs(q.stride(0)),
            *_pointers(keys, values), *_longs(heads, tokens, keys.shape[1], visible),
            ctypes.c_void_p(None if bias is None else bias.data_ptr()),
            *_longs(visible if bias is None else plain), int(amx) if best else _wide(q),
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


def _wide(x: Tensor) -> int:
    """Of two types, which."""
    return int(x.dtype == torch.float32)


def _pointers(*tensors: Tensor) -> list[ctypes.c_void_p]:
    return [ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors]


def _longs(*numbers: int) -> list[ctypes.c_long]:
    return [ctypes.c_long(number) for number in numbers]
