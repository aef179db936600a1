"""What a run would cost, as plain data. Names are those of the figures that `omni run --json` prints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from omniavatar.estimate.timing import BUSY, Seconds, total

MIB = 2**20


@dataclass(frozen=True)
class Network:
    """A network: its numbers, and bytes as a whole, on the device while it works, and in host memory.

    block_seconds: what one of its blocks took, None if none ran.
    """

    role: str
    parameters: int
    dtype: str
    size: int
    on_device: int
    in_host: int
    blocks: int
    block_seconds: float | None


@dataclass(frozen=True)
class Phase:
    """A phase of the run: its time in all, and the most bytes of the device in it (None on the CPU)."""

    name: str
    seconds: Seconds
    peak_device: int | None


@dataclass(frozen=True)
class Estimate:
    """What a video would cost.

    left_out: units whose part in it cannot be known before, or is not rehearsed. tokens: of the largest transformer
    call, all branches in it. peak_device, total_device, peak_host: bytes; the first two None on the CPU.
    """

    units: list[str]
    left_out: list[str]
    device: str
    dtype: str
    frames: int
    fps: int
    height: int
    width: int
    windows: int
    steps: int
    transformer_calls: int
    transformer_calls_skipped: int
    tokens: int
    branches: list[str]
    networks: list[Network]
    phases: list[Phase]
    peak_device: int | None
    total_device: int | None
    peak_host: int | None

    @property
    def seconds(self) -> Seconds:
        """Of the whole video, without the loading of models."""
        return total(phase.seconds for phase in self.phases)

    @property
    def is_busy(self) -> bool:
        """Whether times varied so much that something else must keep the machine busy."""
        return self.seconds.spread > BUSY

    @property
    def fits(self) -> bool | None:
        """Whether the device has so much memory; None on the CPU."""
        if self.peak_device is None or self.total_device is None:
            return None
        return self.peak_device <= self.total_device

    def as_json(self) -> dict[str, Any]:
        """Plain values; seconds, from the least to the most, and MiB of memory."""
        return {
            "frames": self.frames,
            "fps": self.fps,
            "height": self.height,
            "width": self.width,
            "units": self.units,
            "left_out": self.left_out,
            "device": self.device,
            "dtype": self.dtype,
            "windows": self.windows,
            "steps": self.steps,
            "transformer_calls": self.transformer_calls,
            "transformer_calls_skipped": self.transformer_calls_skipped,
            "tokens": self.tokens,
            "branches": self.branches,
            **{f"{phase.name}_seconds": round(phase.seconds.typical, 3) for phase in self.phases},
            "generate_seconds": round(self.seconds.typical, 3),
            **{f"{phase.name}_seconds_range": ends(phase.seconds) for phase in self.phases},
            "generate_seconds_range": ends(self.seconds),
            "busy": self.is_busy,
            **{f"{phase.name}_gpu_mib": mib(phase.peak_device) for phase in self.phases},
            "peak_gpu_mib": mib(self.peak_device),
            "gpu_mib": mib(self.total_device),
            "peak_rss_mib": mib(self.peak_host),
            "fits": self.fits,
            "networks": [
                {
                    "role": network.role,
                    "parameters": network.parameters,
                    "dtype": network.dtype,
                    "mib": mib(network.size),
                    "device_mib": mib(network.on_device),
                    "host_mib": mib(network.in_host),
                    "blocks": network.blocks,
                    "block_ms": None if network.block_seconds is None else round(1e3 * network.block_seconds, 3),
                }
                for network in self.networks
            ],
        }


def ends(seconds: Seconds) -> list[float]:
    """The least and the most seconds, as JSON values."""
    return [round(seconds.low, 3), round(seconds.high, 3)]


def mib(size: int | None) -> float | None:
    """Bytes as MiB, to a tenth."""
    return None if size is None else round(size / MIB, 1)
