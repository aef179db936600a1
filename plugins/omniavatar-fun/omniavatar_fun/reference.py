"""A reference picture: a frame of tokens in front of those of the video."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

from omniavatar_i2v.unit import image_features
from pydantic import Field

from omniavatar.sdk import (
    IdleInSteps,
    ImageFile,
    PipelineUnit,
    UnitInputs,
    UnitSettings,
    encode_pictures,
    fit_image,
    functional,
    hookimpl,
    load_image,
    torch,
)
from omniavatar_fun.shared import check_width

if TYPE_CHECKING:
    from torch import Tensor

    from omniavatar.sdk import Draft, Forward, Job

ROLE = "fun_reference"


class FunReference(PipelineUnit, IdleInSteps):
    """A picture of who or what the video shows, for Fun Control transformers from V1.1 on.

    The blocks see it as a frame in front of the video, and CLIP, where the transformer has it, sees it in place of the
    first frame. Without a picture that frame is empty, as in training. It is scaled and cropped to the video's size.
    """

    name = "fun-reference"
    needs = ("image_features",)
    provides = ("image_features",)
    roles: ClassVar[tuple[str, ...]] = ("vae", "dit", ROLE)
    optional_roles: ClassVar[tuple[str, ...]] = ("image_encoder",)
    companions = (ROLE,)
    idle_in_steps = ("vae", "image_encoder")

    class Settings(UnitSettings):
        tiled: bool = Field(False, description="encode in overlapping tiles: less memory, twice the work")

    class Inputs(UnitInputs):
        reference_image: ImageFile | None = Field(None, description="a picture of who or what the video shows")

    settings: Settings

    @hookimpl
    def check_request(self, draft: Draft) -> None:
        """The picture is brought to the video's size, and stands in front of the tokens alone."""
        check_width(draft, ROLE)

    @hookimpl
    def begin_job(self, job: Job) -> None:
        source, engine = job.inputs(self).reference_image, job.engine
        job["fun-reference.latent"] = None
        if source is not None:
            picture = fit_image(load_image(source), job.size)
            job["fun-reference.latent"] = encode_pictures(engine, picture.unsqueeze(2), tiled=self.settings.tiled)
            job["image_features"] = image_features(engine, [picture])

    @hookimpl
    def embed(self, forward: Forward) -> None:
        tokens = forward.memory.once("fun-reference.tokens", lambda: forward.repeated(reference_tokens(forward)))
        frames, rows, columns = forward.grid
        forward.grid = (frames + 1, rows, columns)
        forward.x = torch.cat([tokens, forward.x], dim=1)
        forward.rope = forward.window.once(
            f"fun-reference.rope.{forward.grid}", lambda: forward.network.rope(forward.grid, forward.x.device)
        )
        forward.frame_index = functional.pad(forward.frame_index, (tokens.shape[1], 0), value=-1)

    @hookimpl(wrapper=True)
    def unembed(self, forward: Forward) -> Iterator[None]:
        """Drop the frame, once all tokens are a video again."""
        yield
        forward.output = forward.output[:, :, 1:]


def reference_tokens(forward: Forward) -> Tensor:
    """The tokens of the picture (1 s d), those of zeros without one."""
    latent: Tensor | None = forward["fun-reference.latent"]
    if latent is None:
        latent = torch.zeros_like(forward.latents[:, :, :1])
    tokens: Tensor = forward.engine.companion(ROLE, forward)(latent)
    return tokens
