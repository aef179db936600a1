"""What plugins are written against: all that a package may import of omniavatar, beside `omniavatar` itself.

    from omniavatar.sdk import PipelineUnit, UnitSettings, hookimpl

Names are imported when they are used, so that a unit's module stays light: importing this one imports neither torch nor
transformers. The modules in which things lie may change with any version; these names, and what they take and give,
change only with the number `API`; docs/stability.md says how. Tests of a package use `omniavatar.testing` beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omniavatar.checkpoints.formats import (
        MAX_HEADER_BYTES,
        MAX_TENSORS,
        FileHeader,
        Format,
        PackedTensor,
        TensorInfo,
        check_readable,
    )
    from omniavatar.engine.conditions import BringsConditions
    from omniavatar.engine.conversion import TrainsWeights
    from omniavatar.engine.draft import Draft
    from omniavatar.engine.engine import Engine, Models
    from omniavatar.engine.flow_match import (
        START_LATENTS,
        TIMESTEPS,
        add_noise,
        clean_latents,
        shifted_sigmas,
        steps_along,
    )
    from omniavatar.engine.geometry import Geometry
    from omniavatar.engine.manifest import Recorded
    from omniavatar.engine.outline import Length, Outline, length_of
    from omniavatar.engine.pictures import MULTIPLE as SIZE_MULTIPLE
    from omniavatar.engine.pictures import check_size, opened_footage, usable_sizes
    from omniavatar.engine.pictures import encode as encode_pictures
    from omniavatar.engine.placing import Kept, PlacesWeights
    from omniavatar.engine.plan import Plan
    from omniavatar.engine.ranks import MainRankOnly, SpreadsWork
    from omniavatar.engine.rehearsing import NotRehearsed, ReadsDecisiveWeights
    from omniavatar.engine.residency import IdleInSteps
    from omniavatar.engine.saving import SavesMemory
    from omniavatar.engine.scopes import Branch, Forward, Frames, FrameTokens, Job, Memory, Step, Window
    from omniavatar.engine.step_cache import OTHER_CACHE, Residual, StepCache
    from omniavatar.engine.step_cache import Schedule as CacheSchedule
    from omniavatar.engine.step_range import StepRange, in_words, said_beforehand
    from omniavatar.engine.streaming import let_wait
    from omniavatar.engine.unit import (
        AudioFile,
        ImageFile,
        InputKind,
        PipelineUnit,
        UnitInputs,
        UnitSettings,
        VideoFile,
        listed,
    )
    from omniavatar.engine.windows import Span, audio_rows
    from omniavatar.errors import (
        CheckpointError,
        InputError,
        OmniError,
        OutputError,
        PlanError,
        nearest,
        parsing,
        shortened,
        shown,
    )
    from omniavatar.hookspecs import hookimpl
    from omniavatar.lazy import functional, np, torch
    from omniavatar.media.audio import load_waveform
    from omniavatar.media.clip import Clip
    from omniavatar.media.footage import Footage
    from omniavatar.media.image import choose_size, fit_image, load_image, picture_size, resized, size_near
    from omniavatar.media.paths import input_file
    from omniavatar.media.paths import shown as shown_path
    from omniavatar.media.sound import Samples, Soundtrack
    from omniavatar.media.video import VideoInfo, probe_video
    from omniavatar.metrics import MadeVideo, Metric
    from omniavatar.models.attention import Address, Attention, AttentionSlot, sdpa, slot_of
    from omniavatar.models.causal import CausalConv1d
    from omniavatar.models.conversion import Conversion, Merging
    from omniavatar.models.norm import RMSNorm
    from omniavatar.models.rope import apply_rope, grid_positions, rope_table
    from omniavatar.models.tiling import ENCODE_TILING, Tiling
    from omniavatar.models.wan_dit import (
        BlockInputs,
        CrossAttention,
        Grid,
        PerToken,
        SelfAttention,
        TimeValue,
        WanBlock,
        WanDiT,
        check_patch_size,
        modulate,
        sinusoid,
    )
    from omniavatar.models.wan_vae import (
        CausalCache,
        CausalConv3d,
        CausalStack,
        CausalVAE,
        Downsample,
        ResidualBlock,
        Upsample,
        check_levels,
    )
    from omniavatar.models.wan_vae import head as vae_head
    from omniavatar.models.wan_vae import middle as vae_middle
    from omniavatar.models.wav2vec import normalize as normalize_audio
    from omniavatar.training.data.generated import ClipGenerator
    from omniavatar.units import Guidance, ReferenceImage
    from omniavatar.units.audio import heard_seconds
    from omniavatar.units.fixed_frames import overwrite as overwrite_frames
    from omniavatar.units.guidance import sum_of
    from omniavatar.units.transformer import Transformer, tell_noise

__all__ = [
    "API",
    "ENCODE_TILING",
    "GROUPS",
    "MAX_HEADER_BYTES",
    "MAX_TENSORS",
    "MEANINGS",
    "OTHER_CACHE",
    "SIZE_MULTIPLE",
    "START_LATENTS",
    "TIMESTEPS",
    "Address",
    "Attention",
    "AttentionSlot",
    "AudioFile",
    "BlockInputs",
    "Branch",
    "BringsConditions",
    "CacheSchedule",
    "CausalCache",
    "CausalConv1d",
    "CausalConv3d",
    "CausalStack",
    "CausalVAE",
    "CheckpointError",
    "Clip",
    "ClipGenerator",
    "Conversion",
    "CrossAttention",
    "Downsample",
    "Draft",
    "Engine",
    "FileHeader",
    "Footage",
    "Format",
    "Forward",
    "FrameTokens",
    "Frames",
    "Geometry",
    "Grid",
    "Guidance",
    "IdleInSteps",
    "ImageFile",
    "InputError",
    "InputKind",
    "Job",
    "Kept",
    "Length",
    "MadeVideo",
    "MainRankOnly",
    "Memory",
    "Merging",
    "Metric",
    "Models",
    "NotRehearsed",
    "OmniError",
    "Outline",
    "OutputError",
    "PackedTensor",
    "PerToken",
    "PipelineUnit",
    "PlacesWeights",
    "Plan",
    "PlanError",
    "RMSNorm",
    "ReadsDecisiveWeights",
    "Recorded",
    "ReferenceImage",
    "Residual",
    "ResidualBlock",
    "Samples",
    "SavesMemory",
    "SelfAttention",
    "Soundtrack",
    "Span",
    "SpreadsWork",
    "Step",
    "StepCache",
    "StepRange",
    "TensorInfo",
    "Tiling",
    "TimeValue",
    "TrainsWeights",
    "Transformer",
    "UnitInputs",
    "UnitSettings",
    "Upsample",
    "VideoFile",
    "VideoInfo",
    "WanBlock",
    "WanDiT",
    "Window",
    "add_noise",
    "apply_rope",
    "audio_rows",
    "check_levels",
    "check_patch_size",
    "check_readable",
    "check_size",
    "choose_size",
    "clean_latents",
    "encode_pictures",
    "fit_image",
    "functional",
    "grid_positions",
    "heard_seconds",
    "hookimpl",
    "in_words",
    "input_file",
    "length_of",
    "let_wait",
    "listed",
    "load_image",
    "load_waveform",
    "modulate",
    "nearest",
    "normalize_audio",
    "np",
    "opened_footage",
    "overwrite_frames",
    "parsing",
    "picture_size",
    "probe_video",
    "resized",
    "rope_table",
    "said_beforehand",
    "sdpa",
    "shifted_sigmas",
    "shortened",
    "shown",
    "shown_path",
    "sinusoid",
    "size_near",
    "slot_of",
    "steps_along",
    "sum_of",
    "tell_noise",
    "torch",
    "usable_sizes",
    "vae_head",
    "vae_middle",
]

API = 1
"""The number of this interface. The hook module of a package says for which one it is written: `OMNIAVATAR_API = 1`."""

GROUPS: Mapping[str, Mapping[str, str]] = {
    "Hooks and units": {
        "hookimpl": "omniavatar.hookspecs",
        "PipelineUnit": "omniavatar.engine.unit",
        "UnitSettings": "omniavatar.engine.unit",
        "UnitInputs": "omniavatar.engine.unit",
        "StepRange": "omniavatar.engine.step_range",
        "said_beforehand": "omniavatar.engine.step_range",
        "in_words": "omniavatar.engine.step_range",
    },
    "What one part of the engine asks of a unit": {
        "PlacesWeights": "omniavatar.engine.placing",
        "Kept": "omniavatar.engine.placing",
        "IdleInSteps": "omniavatar.engine.residency",
        "SpreadsWork": "omniavatar.engine.ranks",
        "MainRankOnly": "omniavatar.engine.ranks",
        "SavesMemory": "omniavatar.engine.saving",
        "NotRehearsed": "omniavatar.engine.rehearsing",
        "ReadsDecisiveWeights": "omniavatar.engine.rehearsing",
        "BringsConditions": "omniavatar.engine.conditions",
        "TrainsWeights": "omniavatar.engine.conversion",
        "Recorded": "omniavatar.engine.manifest",
    },
    "Inputs": {
        "ImageFile": "omniavatar.engine.unit",
        "AudioFile": "omniavatar.engine.unit",
        "VideoFile": "omniavatar.engine.unit",
        "InputKind": "omniavatar.engine.unit",
        "listed": "omniavatar.engine.unit",
    },
    "Scopes and the engine": {
        "Job": "omniavatar.engine.scopes",
        "Window": "omniavatar.engine.scopes",
        "Step": "omniavatar.engine.scopes",
        "Branch": "omniavatar.engine.scopes",
        "Forward": "omniavatar.engine.scopes",
        "Frames": "omniavatar.engine.scopes",
        "FrameTokens": "omniavatar.engine.scopes",
        "Memory": "omniavatar.engine.scopes",
        "Draft": "omniavatar.engine.draft",
        "Outline": "omniavatar.engine.outline",
        "Length": "omniavatar.engine.outline",
        "length_of": "omniavatar.engine.outline",
        "Engine": "omniavatar.engine.engine",
        "Models": "omniavatar.engine.engine",
        "Plan": "omniavatar.engine.plan",
        "Span": "omniavatar.engine.windows",
        "audio_rows": "omniavatar.engine.windows",
        "Geometry": "omniavatar.engine.geometry",
    },
    "Schedules and solvers": {
        "TIMESTEPS": "omniavatar.engine.flow_match",
        "START_LATENTS": "omniavatar.engine.flow_match",
        "steps_along": "omniavatar.engine.flow_match",
        "shifted_sigmas": "omniavatar.engine.flow_match",
        "add_noise": "omniavatar.engine.flow_match",
        "clean_latents": "omniavatar.engine.flow_match",
    },
    "Caches": {
        "StepCache": "omniavatar.engine.step_cache",
        "Residual": "omniavatar.engine.step_cache",
        "CacheSchedule": "omniavatar.engine.step_cache:Schedule",
        "OTHER_CACHE": "omniavatar.engine.step_cache",
    },
    "Units to derive from, and what they share": {
        "Guidance": "omniavatar.units",
        "ReferenceImage": "omniavatar.units",
        "Transformer": "omniavatar.units.transformer",
        "tell_noise": "omniavatar.units.transformer",
        "heard_seconds": "omniavatar.units.audio",
        "overwrite_frames": "omniavatar.units.fixed_frames:overwrite",
        "sum_of": "omniavatar.units.guidance",
    },
    "Pictures, video and sound": {
        "SIZE_MULTIPLE": "omniavatar.engine.pictures:MULTIPLE",
        "encode_pictures": "omniavatar.engine.pictures:encode",
        "usable_sizes": "omniavatar.engine.pictures",
        "check_size": "omniavatar.engine.pictures",
        "opened_footage": "omniavatar.engine.pictures",
        "choose_size": "omniavatar.media.image",
        "fit_image": "omniavatar.media.image",
        "load_image": "omniavatar.media.image",
        "picture_size": "omniavatar.media.image",
        "resized": "omniavatar.media.image",
        "size_near": "omniavatar.media.image",
        "VideoInfo": "omniavatar.media.video",
        "probe_video": "omniavatar.media.video",
        "Clip": "omniavatar.media.clip",
        "Footage": "omniavatar.media.footage",
        "load_waveform": "omniavatar.media.audio",
        "Soundtrack": "omniavatar.media.sound",
        "Samples": "omniavatar.media.sound",
        "normalize_audio": "omniavatar.models.wav2vec:normalize",
        "input_file": "omniavatar.media.paths",
        "shown_path": "omniavatar.media.paths:shown",
    },
    "Transformers": {
        "WanDiT": "omniavatar.models.wan_dit",
        "WanBlock": "omniavatar.models.wan_dit",
        "BlockInputs": "omniavatar.models.wan_dit",
        "SelfAttention": "omniavatar.models.wan_dit",
        "CrossAttention": "omniavatar.models.wan_dit",
        "PerToken": "omniavatar.models.wan_dit",
        "TimeValue": "omniavatar.models.wan_dit",
        "Grid": "omniavatar.models.wan_dit",
        "check_patch_size": "omniavatar.models.wan_dit",
        "modulate": "omniavatar.models.wan_dit",
        "sinusoid": "omniavatar.models.wan_dit",
        "Attention": "omniavatar.models.attention",
        "Address": "omniavatar.models.attention",
        "AttentionSlot": "omniavatar.models.attention",
        "sdpa": "omniavatar.models.attention",
        "slot_of": "omniavatar.models.attention",
        "grid_positions": "omniavatar.models.rope",
        "rope_table": "omniavatar.models.rope",
        "apply_rope": "omniavatar.models.rope",
        "RMSNorm": "omniavatar.models.norm",
        "CausalConv1d": "omniavatar.models.causal",
        "let_wait": "omniavatar.engine.streaming",
    },
    "VAEs": {
        "CausalCache": "omniavatar.models.wan_vae",
        "CausalConv3d": "omniavatar.models.wan_vae",
        "CausalStack": "omniavatar.models.wan_vae",
        "CausalVAE": "omniavatar.models.wan_vae",
        "Downsample": "omniavatar.models.wan_vae",
        "ResidualBlock": "omniavatar.models.wan_vae",
        "Upsample": "omniavatar.models.wan_vae",
        "check_levels": "omniavatar.models.wan_vae",
        "vae_head": "omniavatar.models.wan_vae:head",
        "vae_middle": "omniavatar.models.wan_vae:middle",
        "Tiling": "omniavatar.models.tiling",
        "ENCODE_TILING": "omniavatar.models.tiling",
    },
    "Weights and their formats": {
        "Format": "omniavatar.checkpoints.formats",
        "FileHeader": "omniavatar.checkpoints.formats",
        "TensorInfo": "omniavatar.checkpoints.formats",
        "PackedTensor": "omniavatar.checkpoints.formats",
        "MAX_HEADER_BYTES": "omniavatar.checkpoints.formats",
        "MAX_TENSORS": "omniavatar.checkpoints.formats",
        "check_readable": "omniavatar.checkpoints.formats",
        "Conversion": "omniavatar.models.conversion",
        "Merging": "omniavatar.models.conversion",
    },
    "Metrics and generated clips": {
        "Metric": "omniavatar.metrics",
        "MadeVideo": "omniavatar.metrics",
        "ClipGenerator": "omniavatar.training.data.generated",
    },
    "Errors": {
        "OmniError": "omniavatar.errors",
        "InputError": "omniavatar.errors",
        "OutputError": "omniavatar.errors",
        "PlanError": "omniavatar.errors",
        "CheckpointError": "omniavatar.errors",
        "nearest": "omniavatar.errors",
        "parsing": "omniavatar.errors",
        "shortened": "omniavatar.errors",
        "shown": "omniavatar.errors",
    },
    "Modules that are imported at their first use": {
        "torch": "omniavatar.lazy",
        "functional": "omniavatar.lazy",
        "np": "omniavatar.lazy",
    },
}
"""The names by what they are about, each with the module that defines it, and its name there if that is another."""
MEANINGS: Mapping[str, str] = {
    "ImageFile": "the type of an input that is a picture: a unit gets a path, or pixels (h w 3) uint8",
    "AudioFile": "the type of an input that is a sound: a unit gets a path, or `Samples`",
    "VideoFile": "the type of an input that is a video, or a picture instead: a unit gets a path, or a `Clip`",
    "hookimpl": "the mark of a method or function that implements a hook",
    "TIMESTEPS": "the time step of pure noise, 1000: a step's `timestep` is its `sigma` times that",
    "START_LATENTS": "the name of the value from which denoising starts, if a unit stores one in the window",
    "OTHER_CACHE": "why two caches do not go together, for `conflicts`",
    "SIZE_MULTIPLE": "what heights and widths of most models are multiples of",
    "TimeValue": "a modulation: a tensor that holds for all tokens, or a `PerToken`",
    "Grid": "the type of a grid of tokens or a patch: frames, rows, columns",
    "Attention": "the type of an attention: `(q, k, v) -> heads`",
    "ENCODE_TILING": "the tiles in which Wan's VAE encodes large pictures",
    "MAX_HEADER_BYTES": "the longest header that is read of a file",
    "MAX_TENSORS": "the most tensors that a file may name",
    "torch": "`import torch`",
    "functional": "`from torch.nn import functional`",
    "np": "`import numpy as np`",
}
"""What those are that have no docstring of their own."""
_PLACES = {name: place for names in GROUPS.values() for name, place in names.items()}


def __getattr__(name: str) -> Any:
    """A name, from the module that defines it."""
    if name not in _PLACES:
        raise AttributeError(f"module 'omniavatar.sdk' has no attribute {name!r}")
    module, _, attribute = _PLACES[name].partition(":")
    return getattr(import_module(module), attribute or name)


def __dir__() -> list[str]:
    return __all__
