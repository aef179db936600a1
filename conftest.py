"""For all tests, those of the plugins too: one thread a process, since tiny tensors are slower on many threads.

Without a GPU, Triton interprets its kernels. Both are read when torch and Triton are imported, also in processes that
tests start.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
