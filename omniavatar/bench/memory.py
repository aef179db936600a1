"""Peak memory of combinations that are held at the same time, each without what the others hold."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")
_RESET = Path("/proc/self/clear_refs")


class Device:
    """Bytes that torch has allocated on a GPU; None elsewhere."""

    def __init__(self, device: torch.device) -> None:
        self._device = device if device.type == "cuda" else None

    def now(self) -> float | None:
        return None if self._device is None else torch.cuda.memory_allocated(self._device)

    def reset(self) -> None:
        if self._device is not None:
            torch.cuda.reset_peak_memory_stats(self._device)

    def peak(self) -> float | None:
        return None if self._device is None else torch.cuda.max_memory_allocated(self._device)


class Host:
    """Resident bytes of this process, from Linux; None elsewhere, or where the peak cannot be set back."""

    def __init__(self) -> None:
        self._works = True
        self.reset()

    def now(self) -> float | None:
        return self._read("VmRSS")

    def reset(self) -> None:
        try:
            _RESET.write_text("5")
        except OSError:
            self._works = False

    def peak(self) -> float | None:
        return self._read("VmHWM")

    def _read(self, name: str) -> float | None:
        if not self._works:
            return None
        try:
            found = re.search(rf"^{name}:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE)
        except OSError:
            return None
        return None if found is None else int(found[1]) * 1024.0


class Meter:
    """The most memory of one kind that each owner's activities have taken, without what other owners held then.

    held: what an owner holds now; default: what its activities have left behind. That is exact for the allocator of a
    GPU, but not for a process, where what the first one leaves behind is mostly libraries that all of them use.
    """

    def __init__(self, memory: Device | Host, held: Callable[[str], float] | None = None) -> None:
        self._memory = memory
        self._held = held or (lambda owner: self._left[owner])
        self._left: dict[str, float] = {}
        self._peaks: dict[str, float] = {}

    @contextmanager
    def of(self, owner: str, *, counts: bool = True) -> Iterator[None]:
        """An activity of this owner. Without `counts`, what it takes is no peak, and only what it leaves is noted."""
        self._memory.reset()
        before = self._memory.now()
        self._left.setdefault(owner, 0.0)
        try:
            yield
        finally:
            after, peak = self._memory.now(), self._memory.peak()
            if before is not None and after is not None and peak is not None:
                others = sum(self._held(other) for other in self._left if other != owner)
                self._left[owner] += after - before
                if counts:
                    self._peaks[owner] = max(self._peaks.get(owner, 0.0), peak - others)

    def release(self, owner: str) -> None:
        """The owner holds nothing any longer."""
        self._left.pop(owner, None)

    def peak_mib(self, owner: str) -> float | None:
        """None if it was not measured."""
        return round(self._peaks[owner] / 2**20, 1) if owner in self._peaks else None
