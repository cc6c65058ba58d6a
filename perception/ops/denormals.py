"""Numbers too small for full precision: on CPUs they cost an order of magnitude, and no result depends on them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def flush_denormals() -> Iterator[None]:
    """Within, this thread counts denormal numbers as zero; afterwards it does as before."""
    before = bool(torch.tensor(1e-40) * 1.0 == 0)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)
