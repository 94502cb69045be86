"""Where a network runs and in which precision, and what this machine could do at most."""

import ctypes
import functools
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from polycl.errors import InputError

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Device:
    """A torch device and the dtype networks compute in there."""

    device: torch.device
    dtype: torch.dtype

    @property
    def precision(self) -> str:
        return next(name for name, dtype in PRECISIONS.items() if dtype == self.dtype)


def choose(device: str = "auto", precision: str = "auto") -> Device:
    """The device and precision asked for; `auto` takes CUDA if it is there, and bf16 where the hardware computes in it.

    Raises InputError for a device or precision that this machine has not.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise InputError(f"no device {device!r}; devices are auto, cpu, cuda, cuda:0, …") from None
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device {device!r} was asked for, but torch finds no CUDA device here; use cpu")
    if precision != "auto" and precision not in PRECISIONS:
        raise InputError(f"no precision {precision!r}; precisions are auto, {', '.join(PRECISIONS)}")
    return Device(chosen, _native_dtype(chosen) if precision == "auto" else PRECISIONS[precision])


def _native_dtype(device: torch.device) -> torch.dtype:
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    capabilities = torch.cpu.get_capabilities()
    native = capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("bf16")
    return torch.bfloat16 if native else torch.float32


def return_memory() -> None:
    """Give the system back what was freed on the heap, where the C library can: it keeps what is below what is used."""
    if (trim := _heap_trim()) is not None:
        trim(0)


@functools.cache
def _heap_trim() -> Callable[[int], int] | None:
    try:
        trim: Callable[[int], int] = ctypes.CDLL(None).malloc_trim  # glibc's
    except (OSError, TypeError, AttributeError):
        return None
    return trim


def matrix_product_peak(where: Device, size: int = 2048, seconds: float = 1.0) -> float:
    """FLOP/s of a square matrix product, the best of the repeats that fit in `seconds` (FLOP = 2 x multiply-add)."""
    left = torch.randn(size, size, device=where.device).to(where.dtype)
    right = torch.randn(size, size, device=where.device).to(where.dtype)
    best, spent = float("inf"), 0.0
    while spent < seconds or best == float("inf"):
        _wait(where)
        start = time.perf_counter()
        left @ right
        _wait(where)
        took = time.perf_counter() - start
        best, spent = min(best, took), spent + took
    return 2 * size**3 / best


def _wait(where: Device) -> None:
    if where.device.type == "cuda":
        torch.cuda.synchronize(where.device)
