"""For all tests, those of the plugins too: one thread a process, since tiny tensors are slower on many threads.

Without a GPU, Triton interprets its kernels. Both are read when torch and Triton are imported, also in processes that
tests start.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture
def only_headers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models must not be loaded: what is wrong is to be found before."""

    def load(models: object, role: str, **options: object) -> None:
        raise AssertionError(f"{role} was loaded")

    from omniavatar.testing.models import GivenModels

    monkeypatch.setattr(GivenModels, "load", load)
