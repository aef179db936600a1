"""The diffusion transformer itself: patches to tokens, the blocks, tokens to a velocity."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from omniavatar.engine.pictures import check_size
from omniavatar.engine.unit import PipelineUnit
from omniavatar.errors import PlanError
from omniavatar.hookspecs import hookimpl
from omniavatar.lazy import functional, torch

if TYPE_CHECKING:
    from torch import Tensor

    from omniavatar.engine.draft import Draft
    from omniavatar.engine.scopes import Forward


class Transformer(PipelineUnit):
    """The Wan transformer. Everything else acts before, between or after its blocks."""

    name = "transformer"
    needs = ("prompt_embedding",)
    uses = ("condition",)
    roles = ("dit",)
    experts = ("dit",)

    @hookimpl(wrapper=True)
    def check_request(self, draft: Draft) -> Iterator[None]:
        """When size and channels are known."""
        yield
        channels = draft.latent_channels
        if draft.size is not None and draft.geometry is not None:
            check_size(draft.size, draft.geometry.multiple)
        taken = draft.config(self.experts[0]).get("in_dim")
        if taken is not None and channels is not None and draft.condition is not None:
            check_channels(taken, channels + draft.condition)

    @hookimpl(tryfirst=True)
    def embed(self, forward: Forward) -> None:
        network = forward.network
        latents = model_input(forward).to(forward.engine.dtype)
        forward.x, forward.grid = network.embed_patches(latents)
        forward.time, forward.t_mod = network.embed_time(forward.timesteps)
        forward.rope, forward.frame_index = forward.window.once(
            f"transformer.positions.{forward.grid}.{forward.frames.start}", lambda: positions(forward)
        )

    @hookimpl(trylast=True)
    def run_blocks(self, forward: Forward) -> Tensor:
        for index in range(len(forward.network.blocks)):
            forward.run_block(index)
        return forward.x

    @hookimpl(trylast=True)
    def unembed(self, forward: Forward) -> None:
        values = forward.network.head(forward.x, forward.time)
        forward.output = forward.network.unpatchify(forward.gather(values), forward.grid).float()


def tell_noise(unit: PipelineUnit, forward: Forward, which: Callable[[], Tensor]) -> None:
    """Tell tokens that carry noise the time step of their sample, and all others 0. Call it in `embed`.

    unit: the one that calls. which: makes a mask (s) bool of the former; it is asked once a window for these branches,
    and may not depend on the step.
    """
    timestep = forward.step.timestep
    timesteps = forward.timesteps if isinstance(timestep, torch.Tensor) else forward.timesteps[:1]
    rows = forward.memory.once(f"{unit.name}.time_rows", lambda: time_rows(which(), len(timesteps)))
    if rows is not None:
        forward.time, forward.t_mod = forward.network.embed_times(functional.pad(timesteps, (1, 0)), rows)


def time_rows(is_noisy: Tensor, samples: int) -> Tensor | None:
    """Which of the time steps (0, that of sample 0, of sample 1, ...) each token is told (samples s), None: its own."""
    if bool(is_noisy.all()):
        return None
    return is_noisy * torch.arange(1, samples + 1, device=is_noisy.device)[:, None]


def model_input(forward: Forward) -> Tensor:
    """Latents and condition channels, once per branch (b c t h w)."""
    parts = [forward.latents]
    if "condition" in forward:
        parts.append(forward.cut(forward["condition"]))
    latents = forward.repeated(torch.cat(parts, dim=1))
    check_channels(forward.network.in_dim, latents.shape[1])
    return latents


def check_channels(taken: int, made: int) -> None:
    """Raise PlanError unless the transformer takes as many channels as the plan makes."""
    if made != taken:
        raise PlanError(
            f"the transformer takes {taken} channels and the plan makes {made}; "
            "add or leave out the unit that provides 'condition' (such as reference-image), or give the VAE "
            "that belongs to the transformer"
        )


def positions(forward: Forward) -> tuple[Tensor, Tensor]:
    """The rotary table (s hd/2 2) and the latent frame of every token (s)."""
    from omniavatar.models.rope import grid_positions

    device = forward.latents.device
    frames = grid_positions(forward.grid, device)[:, 0] + forward.frames.start - forward.job.leading
    later = {"first_frame": first} if (first := forward.window.span.first_latent) else {}  # most networks know none
    return forward.network.rope(forward.grid, device, **later), frames.clamp(min=-1)
