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
        timesteps = forward.timesteps
        if timesteps.ndim == 1:
            forward.time, forward.t_mod = network.embed_time(timesteps)
        else:
            name = f"transformer.time_rows.{tuple(timesteps.shape)}"
            rows = forward.memory.once(name, lambda: time_rows(forward, forward.x.shape[1]))
            forward.time, forward.t_mod = network.embed_times(times_told(forward), rows)
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
    """Tell tokens that carry noise the time step of the call, and all others 0. Call it in `embed`.

    unit: the one that calls. which: makes a mask (s) bool of the former; it is asked once a window for these branches,
    and may not depend on the step.
    """

    def make_rows() -> Tensor | None:
        is_noisy = which()
        return None if bool(is_noisy.all()) else is_noisy * (1 + time_rows(forward, len(is_noisy)))

    rows = forward.memory.once(f"{unit.name}.time_rows.{tuple(forward.timesteps.shape)}", make_rows)
    if rows is not None:
        forward.time, forward.t_mod = forward.network.embed_times(functional.pad(times_told(forward), (1, 0)), rows)


def times_told(forward: Forward) -> Tensor:
    """The time steps (k) float64 that tokens of this call are told: one, one a sample, or one a frame of a sample."""
    timesteps = forward.timesteps.flatten()
    return timesteps if isinstance(forward.step.timestep, torch.Tensor) else timesteps[:1]


def time_rows(forward: Forward, tokens: int) -> Tensor:
    """Which of `times_told` so many tokens have (samples s) int64, (1 s) if all samples agree.

    Where every frame has a time step, tokens behind those of the grid have that of frame 0.
    """
    per_sample = isinstance(forward.step.timestep, torch.Tensor)
    samples = len(forward.timesteps) if per_sample else 1
    frames = forward.timesteps.shape[1] if forward.timesteps.ndim == 2 else 1
    device = forward.latents.device
    frame = torch.zeros(tokens, dtype=torch.int64, device=device)
    if frames > 1:
        count, rows, columns = forward.grid
        starts = torch.arange(count, device=device) * forward.network.patch_size[0]
        frame[: count * rows * columns] = starts.repeat_interleave(rows * columns)
    return frame + frames * torch.arange(samples, device=device)[:, None]


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
