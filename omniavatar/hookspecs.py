"""The contract: every hook of omniavatar, with its order, its shapes and an example.

Two groups. `Discovery` is implemented by a plugin module or package (entry-point group `omniavatar`) and says what the
package brings. `Pipeline` is implemented by units and is called by the engine, in plan order; the comment on each hook
says how often. Kinds of hooks:

- plain: every implementation runs, in plan order; results are ignored.
- first result: implementations are asked in plan order until one returns something other than `None`.
- `@hookimpl(wrapper=True)`: code around all the others, `result = yield`; wrappers nest like an onion in plan order.

`tryfirst=True` and `trylast=True` move an implementation to the front or the end whatever the plan order is; of several
`trylast` ones the first of the plan comes last.
Shapes: b batch, c channels, t h w latent frames, rows and columns, f gh gw the token grid, s tokens, d width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    import click
    import numpy as np
    from torch import Tensor

    from omniavatar.checkpoints.formats import Format
    from omniavatar.engine.draft import Draft
    from omniavatar.engine.engine import Engine
    from omniavatar.engine.outline import Length, Outline
    from omniavatar.engine.scopes import Branch, Forward, Frames, Job, Step, Window
    from omniavatar.engine.unit import PipelineUnit
    from omniavatar.engine.windows import Span
    from omniavatar.metrics import Metric
    from omniavatar.training.data.generated import ClipGenerator

PROJECT = "omniavatar"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


class Discovery:
    """What a plugin package brings."""

    @hookspec
    def omni_units(self) -> Sequence[type[PipelineUnit]]:  # type: ignore[empty-body]
        """The unit classes of the package. Import them inside the function, so that `omni --help` stays fast.

        Example: `return [VACE]`
        """

    @hookspec
    def omni_presets(self) -> Mapping[str, str]:  # type: ignore[empty-body]
        """Named plan expressions. Example: `return {"vace": "default+vace(scale=0.8)"}`"""

    @hookspec
    def omni_checkpoints(self) -> Sequence[Path | Traversable]:  # type: ignore[empty-body]
        """Checkpoint tables (TOML files). Example: `return [files(__package__) / "vace.toml"]`"""

    @hookspec
    def omni_formats(self) -> Sequence[Format]:  # type: ignore[empty-body]
        """Weight formats: what reads the names, shapes and weights of model files. Example: `return [GgufFormat()]`"""

    @hookspec
    def omni_metrics(self) -> Sequence[Metric]:  # type: ignore[empty-body]
        """What `omni bench` measures of made videos beside its own figures.

        Example: `return [Metric("brightness", "mean of all pixels, 0..1", brightness, better=None)]`
        """

    @hookspec
    def omni_clips(self) -> Sequence[type[ClipGenerator]]:  # type: ignore[empty-body]
        """Generators of clips, for `omni train` without files (`data.generated`) and `omni bench --faces`.

        Example: `return [FaceClips]`
        """

    @hookspec
    def omni_commands(self, cli: click.Group) -> None:
        """Add commands to the command line. Example: `cli.add_command(my_command)`"""


class Pipeline:
    """The points at which a unit takes part in making a video. Order of one video:

    plan_size, plan_length, check_request; setup; plan_size, plan_length, begin_job; plan_windows; per window: noise,
    plan_steps, begin_window; per step: before_step,
    guide -> substitute, predict -> call -> (embed, run_blocks -> before_block, run_block, after_block per block,
    unembed) per transformer call, advance, after_step; decode_latents; per group of frames: postprocess_frames,
    output_frames; end_window; end_job.

    `setup` belongs to the engine; all other hooks to one run, whose units may have other settings.
    """

    @hookspec(firstresult=True)
    def plan_size(self, video: Outline) -> tuple[int, int] | None:
        """If the request says no size, first result: the height and width of the video in pixels.

        Asked before anything is loaded, with the `Draft`, and once more with the `Job` before `begin_job`, when the
        networks are known for certain. A unit that chooses a size in any case stands behind one that has a reason.
        Example: `return choose_size(*picture_size(video.inputs(self).image), self.settings.sizes)`.
        """

    @hookspec
    def plan_length(self, video: Outline) -> Length | None:
        """What limits the length of the video, or sets it where nothing else does; asked where `plan_size` is.

        The video is as long as is asked for, but not longer than the shortest limit. Example, which lets a sound end
        it: `return Length(lambda job: self.rows_of(job))`; one for footage: `length_of(source, video.fps)`.
        """

    @hookspec
    def check_request(self, draft: Draft) -> None:
        """Once per video, before anything is loaded: raise an OmniError for what cannot work, as far as settings,
        inputs and headers of files tell; `draft.config("dit")` are the numbers of a network.

        Size and length have been settled, as far as they can be. A unit that gives the video leading frames or
        condition channels later says so here; see `Draft`. One that depends on what others say is a wrapper, and looks
        behind its yield.
        Example: `draft.leading += len(draft.inputs(self).reference_images)`.
        """

    @hookspec
    def setup(self, engine: Engine) -> None:
        """Once per engine, before the first job; models may be changed in place here.

        The settings of a unit with this hook are those of the engine: a run cannot have others. What must be closed
        with the engine goes to `engine.resources`.
        Example: merge a LoRA into `engine.model("dit")`, or wrap `engine.attention`.
        """

    @hookspec
    def begin_job(self, job: Job) -> None:
        """Once per video: compute what is constant for all of it and store it, `job["prompt_embedding"] = ...`.

        What is constant for all videos belongs to the engine's scope: `job.engine.values.once("x.tokenizer", load)`.
        A unit that denoises frames of its own in front of the video's says so: `job.leading += 1`.
        Example: `job["mood_shift"] = job.engine.model("mood_table")(job.inputs(self).mood)`.
        """

    @hookspec(firstresult=True)
    def plan_windows(self, job: Job) -> Sequence[Span] | None:
        """Once per video, first result: which frames are denoised together. Only one unit of a plan may claim it.

        Without any, the video is one window. Example, windows of 17 frames to the end, `job.length`:
        `return [Span(at, min(at + 17, end), 0, at, min(at + 17, end)) for at in range(0, end, 17)]`.
        """

    @hookspec(firstresult=True)
    def noise(self, window: Window) -> Tensor | None:
        """Once per window, first result: the noise (1 c t h w), float32, that its denoising starts from.

        Only one unit of a plan may answer it; any may wrap it. The engine's own implementation, asked last, draws it by
        the seed and the window's number, the same on every device and rank.
        Example, a wrapper: `noise = yield; return mixed(noise, window.previous)`.
        """

    @hookspec(firstresult=True)
    def plan_steps(self, window: Window) -> Sequence[Step] | None:
        """Once per window, first result: the denoising steps. Only one unit (the schedule) may claim it.

        A solver that wants other steps is a wrapper. Example, which ends at a level above 0:
        `return steps_along(window, [1.0, 0.8, 0.5, 0.1])`.
        """

    @hookspec
    def begin_window(self, window: Window) -> None:
        """Once per window. `window.latents` (b c t h w) holds noise and `window.steps` the steps; both may be changed,
        also `step.expert`, the role of a step's transformer.

        Example: `window["audio_residuals"] = adapter(rows)`.
        """

    @hookspec
    def before_step(self, step: Step) -> None:
        """Once per evaluation of a step: once, unless the solver asks for more by `step.velocity_at`; these have an
        `evaluation` above 0. Example: overwrite given frames in `step.window.video_latents`.
        """

    @hookspec(firstresult=True)
    def guide(self, step: Step) -> Tensor | None:
        """Once per evaluation of a step, first result: the guided velocity (b c t h w).

        Calls `step.predict(branches)` with the branches it wants and combines the results. Only one unit (the guidance
        rule) may claim it.
        Example: `positive, negative = step.predict([p, n]); return negative + scale * (positive - negative)`.
        """

    @hookspec(firstresult=True)
    def substitute(self, step: Step, branches: Sequence[Branch]) -> Sequence[Branch] | None:
        """Once per call of `step.predict`, first result: for each branch the one whose prediction is taken for it.

        Only those are predicted, each once. Several units may answer; all but the last name the hook in `passes_on`.
        Example, which saves the call for the negative prompt at low noise:
        `return [Branch.fullest(branches)] * len(branches) if step.sigma < 0.3 else None`.
        """

    @hookspec(firstresult=True)
    def predict(self, step: Step, branches: Sequence[Branch]) -> Sequence[Tensor] | None:
        """Once per call of `step.predict`, first result: one velocity (b c t h w) per branch that is left.

        The engine's own implementation, asked last, runs one transformer call per branch. A unit that merges branches
        into one batch returns `step.forward(branches).chunk(len(branches))`; one that works around it is a wrapper.
        Several units may answer; all but the last name the hook in `passes_on`.
        Example: `return step.forward(branches).chunk(len(branches)) if len(branches) > 1 else None`.
        """

    @hookspec(firstresult=True)
    def call(self, forward: Forward) -> Tensor | None:
        """Once per transformer call that is asked for, first result: the velocity (b c t h w) for `forward.latents`.

        The engine's own implementation, asked last, runs the hooks below. A unit may make several calls of one:
        `step.forward(branches, frames)` is about some latent frames of the window. What a unit has for every latent
        frame goes through `forward.cut`, or is chosen by `frame_index`. Several units may answer; all but the last name
        the hook in `passes_on`.
        Example, two halves: `return torch.cat([forward.step.forward(forward.branches, half) for half in halves], 2)`,
        and None for a call that is about a half already.
        """

    @hookspec
    def embed(self, forward: Forward) -> None:
        """Once per transformer call: from `forward.latents` to tokens and modulation.

        The transformer comes first (`tryfirst`) and sets `x` (b s d), `grid` (f gh gw), `time` (b d) and `t_mod`
        (b 6 d), or both as a `models.wan_dit.PerToken` where tokens have time steps of their own, `rope` (s hd/2 2)
        and `frame_index` (s), the latent frame of the video of every token, -1 for a token that belongs to none. Others
        then add to `x` (its grid form is `rearrange(x, "b (f h w) d -> b d f h w", ...)`), put tokens in front (and
        extend grid, rope and frame_index), or set what blocks get beside the tokens, by name:
        `forward.conditions["image"] = tokens` (b m d); "text" (b n d) is the prompt's. See
        `models.wan_dit.BlockInputs`. Who leaves out blocks for all samples of the call says so here:
        `forward.left_out.add(9)`.
        After `embed` there may be only this rank's tokens: add to them by `frame_index`, or pass values per token
        through `forward.shard`.
        Example: `forward.conditions["mood"] = forward.memory.once("mood.tokens", lambda: forward.stacked(tokens_of))`.
        """

    @hookspec(firstresult=True)
    def run_blocks(self, forward: Forward) -> Tensor | None:
        """Once per transformer call, first result: the tokens after the last block (b s d).

        The transformer answers last (`trylast`). A cache returns its own result to skip the blocks, or `None`.
        A wrapper may shard the tokens, yield, and gather the result. Whoever runs blocks calls
        `forward.run_block(index)` for each, which honours `forward.left_out` and calls the three hooks below. Several
        units may answer; all but the last name the hook in `passes_on`.
        Example, a cache: `return forward.x + forward.memory["mine.residual"] if self.skips(forward.step) else None`.
        """

    @hookspec
    def before_block(self, forward: Forward, index: int) -> None:
        """Once per block, also for one that is left out: `forward.x` (b s d) is the input of block `index`. It may be
        replaced.

        Example: `forward.x = forward.x + residual[:, forward.frame_index]`.
        """

    @hookspec(firstresult=True)
    def run_block(self, forward: Forward, index: int) -> Tensor | None:
        """Once per block that is not in `forward.left_out`, first result: the tokens after block `index` (b s d).

        The engine's own implementation, asked last, calls the block with `forward.block_inputs(index)`. A unit may
        answer `forward.x` to leave the block out; if it knows that when the call begins, it adds the block to
        `forward.left_out` instead, so that its weights are not fetched. A wrapper works around the block. Several units
        may answer; all but the last name the hook in `passes_on`.
        Example, for some samples only: `forward.run_block_for(index, rows)`.
        """

    @hookspec
    def after_block(self, forward: Forward, index: int) -> None:
        """Once per block, also for one that is left out: `forward.x` (b s d) is the output of block `index`. It may be
        replaced. `forward.beside` are what its attentions have found beside their results.
        Example: `forward.x = before + 1.2 * (forward.x - before)`, with the input that `before_block` has kept.
        """

    @hookspec
    def unembed(self, forward: Forward) -> None:
        """Once per transformer call: from `forward.x` to `forward.output` (b c t h w).

        The transformer comes last (`trylast`) with head and unpatchify; units drop their extra tokens before it.
        Example, which takes away tokens that were put in front: `forward.x = forward.x[:, forward["mine.count"] :]`.
        """

    @hookspec(firstresult=True)
    def advance(self, step: Step) -> Tensor | None:
        """Once per step, first result: the next latents from `step.window.latents` and `step.velocity` (b c t h w).

        Only one unit (the solver) may claim it. It may draw noise, `step.noise(key)`, and evaluate again within the
        step: `step.velocity_at(latents, sigma)`. Example, Euler's step:
        `return step.window.latents + step.velocity * (step.sigma_next - step.sigma)`.
        """

    @hookspec
    def after_step(self, step: Step) -> None:
        """Once per step, also the last: `step.window.latents` are the new ones and may be changed.

        Example: `bar.update(step.index + 1, len(step.window.steps))`.
        """

    @hookspec(firstresult=True)
    def decode_latents(self, window: Window) -> Iterator[Tensor] | None:
        """Once per window, after the last step, first result: its frames in order, group by group, as (1 3 t h w) in
        [0, 1]. Only one unit (the decoder) may claim it; it may be a generator, which works when the next group is
        asked for. Example: `for part in window.video_latents.split(4, dim=2): yield self.decoded(part)`.
        """

    @hookspec
    def postprocess_frames(self, window: Window, frames: Frames) -> None:
        """Once per group of decoded frames, in order: change what is shown.

        The next window continues from what was decoded.
        `frames.pixels` (1 3 t h w) may be replaced, by as many frames; not changed in place. Frames outside of
        `window.span.keep` come along, to compare with. Example: `frames.pixels = frames.pixels.flip(-1)`.
        """

    @hookspec
    def output_frames(self, window: Window, start: int, frames: np.ndarray) -> None:
        """Once per group of frames that enter the video, as they are shown: (t h w 3) uint8 on the host; `start` is the
        number of the first, counted in the video. They must not be changed. Example: encode or send them.
        """

    @hookspec
    def end_window(self, window: Window) -> None:
        """Once per window, when its frames are decoded: `window["frames"]` (1 3 t h w) are the last ones, as many as
        the next window continues from. Store here what that one reads as "previous.NAME".
        Example: `window["border_frame"] = window["frames"][:, :, -1]`.
        """

    @hookspec
    def end_job(self, job: Job) -> None:
        """Once per video: finish the file. Results go to `job.results`, by name.

        Example: `job.results["faces"] = job["mine.faces"]`.
        """
