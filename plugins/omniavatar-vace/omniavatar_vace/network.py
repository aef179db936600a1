"""The VACE branch (Jiang et al. 2025, arXiv:2503.07598): blocks beside those of the Wan transformer.

    vace = Vace(in_dim=96, dim=1536, ffn_dim=8960, num_heads=12, eps=1e-6, patch_size=(1, 2, 2), layers=(0, 2, 4, ...))
    control = vace.embed(vace_context)                                # (1 96 t h w) -> (1 s d)
    for layer, hint in zip(vace.layers, vace.hints(control, x, inputs)): ...

A hint is added to the output of the base block `layer`. State-dict keys as in the official files, where the branch and
its base transformer share one name space. Letters in shapes as in `omniavatar.models.wan_dit`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from einops import rearrange
from torch import Tensor, nn

from omniavatar.sdk import Attention, BlockInputs, Grid, WanBlock, check_patch_size, sdpa
from omniavatar_vace.layers import known_layers


class VaceBlock(WanBlock):
    """A block of the transformer whose output also becomes a hint; the first one takes in the video tokens.

    All its layers work within `forward`, so that its weights need to be there for that call alone.
    """

    def __init__(self, *, dim: int, takes_tokens: bool, **numbers: Any) -> None:
        super().__init__(dim=dim, **numbers)
        if takes_tokens:
            self.before_proj = nn.Linear(dim, dim)
        self.after_proj = nn.Linear(dim, dim)

    def forward(  # type: ignore[override]  # two results instead of one
        self, control: Tensor, inputs: BlockInputs, tokens: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The control for the next block and the hint, each (b s d).

        control (b s d), or (1 s d) with the video tokens (b s d) that the first block gets; the rest as in `WanBlock`.
        """
        if tokens is not None:
            control = self.before_proj(control) + tokens
        control = super().forward(control, inputs)
        return control, self.after_proj(control)


class Vace(nn.Module):
    """Turns control channels into hints: its block k runs beside block `layers[k]` of the transformer.

    Raises CheckpointError for layers as `known_layers` does.
    """

    def __init__(
        self,
        *,
        in_dim: int,
        dim: int,
        ffn_dim: int,
        num_heads: int,
        eps: float,
        patch_size: Grid,
        layers: Sequence[int] | None = None,
        attention: Attention = sdpa,
    ) -> None:
        super().__init__()
        self.layers = known_layers(layers)
        patch_size = check_patch_size(patch_size)
        self.in_dim, self.dim = in_dim, dim
        self.vace_patch_embedding = nn.Conv3d(in_dim, dim, kernel_size=patch_size, stride=patch_size)
        self.vace_blocks = nn.ModuleList(
            VaceBlock(
                dim=dim, ffn_dim=ffn_dim, num_heads=num_heads, eps=eps, attention=attention, takes_tokens=index == 0
            )
            for index in range(len(self.layers))
        )

    @property
    def blocks(self) -> nn.ModuleList:
        """The blocks, under the name that those of a transformer have."""
        return self.vace_blocks

    def embed(self, vace_context: Tensor) -> Tensor:
        """Control channels (b in_dim t h w) -> tokens (b s d) in frame-row-column order."""
        tokens: Tensor = self.vace_patch_embedding(vace_context.to(self.vace_patch_embedding.weight.dtype))
        return rearrange(tokens, "b d f h w -> b (f h w) d").contiguous()

    def hints(self, control: Tensor, x: Tensor, inputs: BlockInputs) -> Iterator[Tensor]:
        """One hint (b s d) for each of `layers`, each made when it is asked for, so that one at a time is in memory.

        control (1 s d) or (b s d) from `embed`; the rest is what the base transformer's first block gets. Of the
        conditions the branch knows the text. Each of its blocks has the number of the base block that it runs beside.
        """
        for index, block in enumerate(self.vace_blocks):
            mine = replace(inputs, index=self.layers[index], left_out=frozenset(), beside={})
            control, hint = block(control, mine, tokens=x if index == 0 else None)
            yield hint
