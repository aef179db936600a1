"""The S2V transformer: the Wan transformer over the tokens of a clip, of the reference picture and of the past."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from omniavatar.sdk import Transformer, functional, hookimpl, tell_noise, torch
from omniavatar_s2v.audio import HEARS

if TYPE_CHECKING:
    from torch import Tensor

    from omniavatar.sdk import Forward

REFERENCE_TIME = 30
"""The frame at which the reference picture stands, behind those of any clip."""


class S2VTransformer(Transformer):
    """The Wan 2.2 S2V transformer, in place of `transformer`.

    Only the frames of the clip are denoised. Reference picture and past are tokens behind theirs that are told time
    step 0 and whose results are dropped.
    """

    name = "s2v-transformer"
    needs = ("prompt_embedding", "image_latent", "motion_latents")  # type: ignore[assignment]
    uses = ("pose_latents",)
    conflicts: ClassVar = {
        "transformer": "s2v-transformer stands in its place",
        "condition": "S2V takes no channels beside the latents",
        "audio": HEARS,
        "audio-adapter": HEARS,
        "fixed-frames": "S2V continues its videos by s2v-clips",
        "sliding-window": "S2V denoises a clip in one piece",
        "vace": "its hints are for all frames of a window and S2V denoises the last ones only",
        "animate-motion": "S2V follows poses by s2v-pose, and no face",
        "ti2v": "both say which time step the tokens are told",
    }
    roles = ("dit", "s2v_adapter")  # type: ignore[assignment]

    @hookimpl(tryfirst=True)
    def embed(self, forward: Forward) -> None:
        given = forward.window.given_latent_frames
        forward.latents = forward.latents[:, :, given:]
        super().embed(forward)
        pose = forward.memory.once("s2v-transformer.pose", lambda: pose_tokens(forward))
        beside, positions = forward.memory.once("s2v-transformer.beside", lambda: tokens_beside(forward))
        video, extra = forward.x.shape[1], beside.shape[1]
        forward.x = torch.cat([forward.x + pose, forward.repeated(beside)], dim=1)
        forward.rope = torch.cat([forward.rope, positions])
        forward.frame_index = functional.pad(forward.frame_index + given, (0, extra), value=-1)
        tell_noise(self, forward, lambda: torch.arange(video + extra, device=forward.x.device) < video)

    @hookimpl(trylast=True)
    def unembed(self, forward: Forward) -> None:
        frames, rows, columns = forward.grid
        values = forward.gather(forward.network.head(forward.x, forward.time))[:, : frames * rows * columns]
        velocity = forward.network.unpatchify(values, forward.grid).float()
        given = forward.window.given_latent_frames
        forward.output = functional.pad(velocity, (0, 0, 0, 0, given, 0))  # given frames do not move


def pose_tokens(forward: Forward) -> Tensor:
    """What is added to the tokens of the video (1 s d); no poses are zeros, of which the layer makes a bias."""
    from omniavatar_s2v.adapter import VIDEO

    adapter = forward.engine.model("s2v_adapter")
    pose = forward.get("pose_latents")
    latents = torch.zeros_like(forward.latents) if pose is None else pose
    added: Tensor = adapter.pose(latents) + adapter.kind(VIDEO)
    return added


def tokens_beside(forward: Forward) -> tuple[Tensor, Tensor]:
    """The tokens of picture and past (1 e d) and their rotary table (e hd/2 2)."""
    from omniavatar.sdk import grid_positions, rope_table
    from omniavatar_s2v.adapter import MOTION, REFERENCE, tokens_of

    adapter, network = forward.engine.model("s2v_adapter"), forward.network
    picture, motion = forward["image_latent"], forward["motion_latents"]
    grid = (1, *forward.grid[1:])
    tokens = [tokens_of(network.patch_embedding, picture) + adapter.kind(REFERENCE)]
    positions = [grid_positions(grid, picture.device) + torch.tensor([REFERENCE_TIME, 0, 0], device=picture.device)]
    if motion is not None:
        packed, places = adapter.motion(motion)
        tokens.append(packed + adapter.kind(MOTION))
        positions.append(places)
    return torch.cat(tokens, dim=1), rope_table(torch.cat(positions), network.head_dim)
