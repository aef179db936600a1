"""For all tests, those of the plugins too: one thread a process, since tiny tensors are slower on many threads."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported, here and in the processes that tests start
