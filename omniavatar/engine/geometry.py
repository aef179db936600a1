"""How the pixels of a video become latents and tokens: the numbers of the plan's VAE and transformer."""

from __future__ import annotations

import math
from dataclasses import dataclass

Patch = tuple[int, int, int]


@dataclass(frozen=True)
class Geometry:
    """What latents and tokens stand for.

    channels: of the latents. temporal_factor, spatial_factor: frames, and pixels of a side, of a latent; the first
    latent frame stands for one frame. patch_size: latent frames, rows and columns of a token.
    """

    channels: int
    temporal_factor: int
    spatial_factor: int
    patch_size: Patch

    def latent_frames(self, frames: int) -> int:
        """Latent frames of so many frames: 1 for the first and 1 for every further `temporal_factor`; none for 0."""
        return latent_frames(frames, self.temporal_factor)

    def frames(self, latent_frames: int) -> int:
        """Frames of so many latent frames; none for 0."""
        return max(0, self.temporal_factor * (latent_frames - 1) + 1)

    @property
    def fewest_frames(self) -> int:
        """The fewest frames that fill their tokens."""
        return self.frames(self.patch_size[0])

    def rounded_up(self, frames: int) -> int:
        """The smallest number of frames that is not below `frames` and fills its tokens."""
        least, step = self.fewest_frames, self.token[0]
        return least + step * -(-max(0, frames - least) // step)

    def rounded_down(self, frames: int) -> int:
        """The largest number of frames that is not above `frames` and fills its tokens; below 1 if there is none."""
        least, step = self.fewest_frames, self.token[0]
        return least + (frames - least) // step * step

    @property
    def token(self) -> Patch:
        """Frames, and pixels in height and width, of a token."""
        frames, rows, columns = self.patch_size
        return self.temporal_factor * frames, self.spatial_factor * rows, self.spatial_factor * columns

    @property
    def multiple(self) -> int:
        """Both sides of a picture must be multiples of this."""
        return self.spatial_factor * math.lcm(*self.patch_size[1:])

    def frames_for(self, tokens: int, height: int, width: int) -> int:
        """Frames, filling their tokens, of a window of at most about `tokens` tokens; below 1 if there is no room."""
        return self.rounded_down(int(tokens * math.prod(self.token) / height / width))


def latent_frames(frames: int, factor: int) -> int:
    """Latent frames of so many frames, of which the first has one to itself; none for 0."""
    return -(-frames // factor)


def rounded_down(frames: int, factor: int) -> int:
    """The largest 1 + factor k that is not above `frames`; negative for negative ones."""
    return (frames - 1) // factor * factor + 1
