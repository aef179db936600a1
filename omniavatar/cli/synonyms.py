"""What options of other programs are called here, for whoever types them: `--cfg` -> `--guidance.scale`.

meant("--cfg", command_options, catalog_units)     # "did you mean '--guidance.scale'?", or nothing
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omniavatar.cli.start import Start
    from omniavatar.engine.unit import PipelineUnit

SYNONYMS = {
    "*.steps": "steps num-steps num-inference-steps inference-steps sampling-steps sample-steps ddim-steps",
    "*.shift": "shift flow-shift sample-shift timestep-shift",
    "--schedule.strength": "denoise denoising-strength strength video-strength v2v-strength",
    "--schedule.sigmas": "sigmas",
    "--schedule.timesteps": "timesteps denoising-step-list",
    "--guidance.scale": "cfg cfg-scale guidance guidance-scale sample-guide-scale text-cfg text-guidance-scale",
    "--guidance.audio-scale": "audio-cfg audio-scale audio-cfg-scale audio-guidance-scale audio-guide-scale",
    "--prompt.negative": "negative negative-prompt neg-prompt n-prompt uncond-prompt",
    "--prompt": "text caption description positive-prompt",
    "--audio": "voice speech sound wav audio-path audio-file input-audio driven-audio driving-audio",
    "--image": "face portrait picture photo avatar reference ref-image reference-image source-image input-image "
    "image-path cond-image",
    "--video": "source-video input-video init-video video-path",
    "--output": "out outdir out-dir output-dir output-file output-path save-dir save-file save-path result-dir",
    "--size": "resolution res dimensions video-size image-size",
    "--seconds": "num-frames frames frame-num length duration video-length max-frames max-duration",
    "--fps": "frame-rate framerate sample-fps",
    "--model": "checkpoint ckpt weights model-path model-file dit vae",
    "--lora": "loras lora-path lora-file lora-name",
    "--models-dir": "model-dir ckpt-dir checkpoint-dir models-path weights-dir",
    "--config": "config-file config-path yaml settings",
    "--units": "preset pipeline plan unit features plugins",
    "--dtype": "precision torch-dtype half bf16 fp16",
    "--gpus": "num-gpus n-gpus ngpus nproc world-size",
    "--device": "gpu gpu-id cuda cpu device-id",
    "--seed": "random-seed base-seed noise-seed",
    "--input-file": "list batch batch-file input-list prompt-file file",
    "--dry-run": "dry estimate simulate",
    "--verbose": "debug log-level",
    "--quiet": "silent no-progress",
    "--fixed-frames.overlap": "overlap overlap-frame overlap-frames motion-frames motion-frame",
    "--fixed-frames.max-tokens": "max-tokens max-token",
    "--lora.scale": "lora-scale lora-strength lora-weight lora-alpha",
    "--write-video.crf": "crf quality",
    "--vae-decode.tiled": "tile tiled tiling vae-tiling",
    "--teacache.threshold": "cache-threshold teacache-thresh tea-cache-l1-thresh",
    "--attention.kernel": "attn attention-backend attn-mode",
}
"""By the option here, `*.steps` for that of whatever unit has it: what is meant by it elsewhere."""
MEANT = {word: option for option, words in SYNONYMS.items() for word in words.split()}

UNITS = {
    "offload": "low-vram lowvram cpu-offload offload-model",
    "compile": "torch-compile",
    "unipc": "uni-pc",
    "video-to-video": "v2v",
}
"""By the unit: options that turn its feature on elsewhere."""
UNIT_MEANT = {word: unit for unit, words in UNITS.items() for word in words.split()}

ADVICE = {
    "solvers are units, euler by default; for another one: --units default-euler+unipc": "sampler scheduler "
    "sample-solver solver sampler-name",
    "a video that stopped is kept as NAME.partial.mp4 and made anew; only omni train goes on": "resume continue",
    "--output FILE replaces what is there without a question; without it names are numbered": "overwrite force yes y",
}
"""What to say where there is no such option."""
ADVICE_ON = {word: advice for advice, words in ADVICE.items() for word in words.split()}


def meant(option: str, options: Collection[str], begin: Start) -> str:
    """What to say of an unknown option that has another name here; nothing if it is none of these.

    options: those of the command.
    """
    word = option.lstrip("-").replace("_", "-").lower()
    for known in candidates(word, options, begin.catalog.units):
        if known in options:
            return f"did you mean '{known}'?"
        unit, dot, _ = known.removeprefix("--").partition(".")
        if dot and unit in begin.catalog.units and unit not in begin.chosen:
            return f"did you mean '{known}'? It wants {with_unit(unit, begin)}"
    if word in ADVICE_ON:
        return ADVICE_ON[word]
    unit = UNIT_MEANT.get(word, word)
    if unit not in begin.catalog.units:
        return ""
    if unit not in begin.chosen:
        return f"did you mean {with_unit(unit, begin)}?"
    settings = sorted(known for known in options if known.startswith(f"--{unit}."))
    return f"the plan has the unit '{unit}'" + (f"; its settings: {', '.join(settings)}" if settings else " already")


def with_unit(unit: str, begin: Start) -> str:
    """How to add a unit to the plan."""
    return f"--units '{begin.config.units}+{unit}'"


def candidates(word: str, options: Collection[str], units: Mapping[str, type[PipelineUnit]]) -> Iterator[str]:
    """What an option may have meant, best first."""
    pattern = MEANT.get(word, "")
    if pattern.startswith("*"):
        yield from sorted(known for known in options if known.endswith(pattern[1:]))
    elif pattern:
        yield pattern
    for unit_class in units.values():
        for setting in unit_class.Settings.model_fields:
            known = f"{unit_class.name}.{setting.replace('_', '-')}"
            if known.replace(".", "-") == word:
                yield f"--{known}"
