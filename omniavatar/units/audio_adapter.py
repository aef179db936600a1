"""OmniAvatar's audio layers: the features of a window projected once, added to the tokens of their frame."""

from __future__ import annotations

from typing import TYPE_CHECKING

from omniavatar.engine.unit import PipelineUnit
from omniavatar.hookspecs import hookimpl
from omniavatar.lazy import functional, torch

if TYPE_CHECKING:
    from torch import Tensor

    from omniavatar.engine.scopes import Branch, Forward, Window


class AudioAdapter(PipelineUnit):
    """What the transformer hears: features of the sound, added to its tokens in front of some blocks.

    Guidance branches that drop the condition "audio", and plans or videos without a sound, hear rows of zeros, or those
    of silence (`audio.dropped`).
    """

    name = "audio-adapter"
    uses = ("audio_rows", "silent_rows")
    provides = ("audio_residuals", "audio_silence")
    roles = ("audio_adapter",)

    @hookimpl
    def begin_window(self, window: Window) -> None:
        engine, rows = window.engine, window.get("audio_rows")
        adapter = engine.model("audio_adapter")
        silent = window.get("silent_rows")
        if silent is None:
            silent = torch.zeros(1, 1, adapter.audio_in_dim, device=engine.device, dtype=engine.dtype)
        silence = framed(adapter(silent[:1]).expand(len(window.latents), -1, window.latent_frames, -1))
        window["audio_silence"] = silence
        window["audio_residuals"] = silence if rows is None else framed(adapter(rows))

    @hookimpl
    def before_block(self, forward: Forward, index: int) -> None:
        entry: range = forward.engine.model("audio_adapter").entry_blocks
        if index in entry:
            residuals = forward.memory.once("audio-adapter.residuals", lambda: forward.stacked(residuals_of))
            forward.x = forward.x + residuals[:, entry.index(index)][:, forward.frame_index]


def residuals_of(branch: Branch) -> Tensor:
    """What a branch adds (b p t+1 d): for entry block p and latent frame t."""
    residuals: Tensor = branch["audio_silence" if branch.drops("audio") else "audio_residuals"]
    return residuals


def framed(residuals: Tensor) -> Tensor:
    """Append a frame of zeros, which `frame_index` -1 (tokens that belong to no frame) selects."""
    return functional.pad(residuals, (0, 0, 0, 1))
