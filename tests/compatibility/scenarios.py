"""How every unit is tried: the plan that it lives in, its networks and inputs, and what must change the video.

A package that is added brings a group of its own in `SCENARIOS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import omniavatar_animate.testing as animate
import omniavatar_fun.testing as fun
import omniavatar_i2v.testing as i2v
import omniavatar_s2v.testing as s2v
import omniavatar_ti2v.testing as ti2v
import omniavatar_vace.network as vace
from omniavatar_animate.adapter import AnimateAdapter
from omniavatar_fun.networks import CameraAdapter, ReferenceEmbedding
from omniavatar_i2v.clip import ClipImageEncoder
from omniavatar_i2v.image_dit import ImageDiT
from omniavatar_motion.network import MotionController
from omniavatar_s2v.adapter import S2VAdapter
from omniavatar_ti2v.wan_vae38 import WanVAE38
from transformers import Wav2Vec2Config

from omniavatar.engine.attention import AttentionSlot
from omniavatar.models.audio_adapter import AudioAdapter
from omniavatar.models.umt5 import UMT5Encoder
from omniavatar.models.wan_dit import WanDiT
from omniavatar.models.wan_vae import WanVAE
from omniavatar.models.wav2vec import AudioEncoder
from omniavatar.testing import FakeVAE, tiny


@dataclass(frozen=True)
class Sizes:
    """What networks must agree on: channels of the latents and pixels of their side, channels of the condition."""

    latents: int
    cell: int
    condition: int


@dataclass(frozen=True)
class Change:
    """Other settings of a unit, and other inputs, None for none."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class File:
    """One of the files that `tests.compatibility.studio.write_files` makes."""

    name: str


Maker = Callable[[Sizes], Any]
"""Makes a network."""


@dataclass(frozen=True)
class Scenario:
    """A unit at work.

    plan: the expression that it lives in. settings: of any units, weaker than those of the expression.
    inputs: what it is given when it is looked at; pictures are given to every plan that takes them.
    networks: by role; those of later units of the table win. "dit2" is a second one of the kind "dit".
    condition: channels beside the latents, for latents of so many.
    changes: what must make another video. off: what must make the video that the plan makes without the unit, or with
    the unit `instead` of it; it also `changes` the video if nothing else is named.
    size: side of the pictures in pixels. ranks: how many it needs. alters: it changes networks in place.
    """

    plan: str
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    inputs: Mapping[str, Any] = field(default_factory=dict)
    networks: Mapping[str, Maker] = field(default_factory=dict)
    condition: Callable[[int], int] = lambda latents: 0
    changes: Change | None = None
    off: Change | None = None
    instead: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    size: int = 32
    ranks: int = 1
    alters: bool = False

    @property
    def effect(self) -> Change | None:
        return self.changes or self.off


OTHER_PICTURE = Change(inputs={"image": File("other.png")})
NO_VOICE = Change(inputs={"audio": None})


class Stand:
    """Stands for the attention of an engine in networks that are made before it."""

    slot = AttentionSlot()

    def __call__(self, *attended: Any) -> Any:
        return self.slot(*attended)

    @property
    def cross(self) -> Any:
        return self.slot.cross


ATTENTION = Stand()
NUMBERS: dict[str, Any] = {"dim": 24, "ffn_dim": 32, "num_heads": 2, "num_layers": 4, "attention": ATTENTION}


def transformer(kind: type[WanDiT] = WanDiT, **numbers: Any) -> Maker:
    """A transformer for the latents and condition channels of the plan."""

    def make(sizes: Sizes) -> Any:
        channels = {"in_dim": sizes.latents + sizes.condition, "out_dim": sizes.latents}
        return kind(**{**tiny.DIT, **NUMBERS, **channels, **numbers})

    return make


def text_encoder(sizes: Sizes) -> Any:
    return UMT5Encoder(**{**tiny.TEXT, "num_layers": 1})


def audio_encoder(sizes: Sizes) -> Any:
    return AudioEncoder(Wav2Vec2Config(**tiny.WAV2VEC))


def audio_adapter(sizes: Sizes) -> Any:
    return AudioAdapter(**{**tiny.ADAPTER, "dim": NUMBERS["dim"], "num_layers": NUMBERS["num_layers"]})


def averages(sizes: Sizes) -> Any:
    return FakeVAE()


def vae(sizes: Sizes) -> Any:
    return WanVAE(**tiny.VAE)


def vae38(sizes: Sizes) -> Any:
    return WanVAE38(**ti2v.VAE38)


def clip(sizes: Sizes) -> Any:
    return ClipImageEncoder(**i2v.CLIP)


def vace_branch(sizes: Sizes) -> Any:
    numbers = {key: NUMBERS[key] for key in NUMBERS if key != "num_layers"}
    in_dim = 2 * sizes.latents + sizes.cell**2
    return vace.Vace(in_dim=in_dim, layers=(0, 2), eps=1e-6, patch_size=(1, 2, 2), **numbers)


def motion_controller(sizes: Sizes) -> Any:
    return MotionController(freq_dim=tiny.DIT["freq_dim"], dim=NUMBERS["dim"])


def s2v_adapter(sizes: Sizes) -> Any:
    channels = {"dim": NUMBERS["dim"], "in_dim": sizes.latents, "cond_dim": sizes.latents}
    return S2VAdapter(**{**s2v.ADAPTER, **channels})


def reference_embedding(sizes: Sizes) -> Any:
    return ReferenceEmbedding(**{**fun.REFERENCE, "dim": NUMBERS["dim"], "in_dim": sizes.latents})


def camera_adapter(sizes: Sizes) -> Any:
    return CameraAdapter(**{**fun.CAMERA, "dim": NUMBERS["dim"]})


def animate_adapter(sizes: Sizes) -> Any:
    numbers = {"dim": NUMBERS["dim"], "face_heads": NUMBERS["num_heads"], "pose_in_dim": sizes.latents, "face_every": 2}
    return AnimateAdapter(**{**animate.ADAPTER, **numbers})


NETWORKS: dict[str, Maker] = {
    "dit": transformer(),
    "vae": vae,
    "text_encoder": text_encoder,
    "audio_encoder": audio_encoder,
    "audio_adapter": audio_adapter,
}
"""Those of every plan, unless a unit names others."""
SETTINGS: dict[str, dict[str, Any]] = {
    "prompt": {"length": 8},
    "fixed-frames": {"window_frames": 9, "overlap": 5},
    "schedule": {"steps": 2},
    "s2v-clips": {"clip_frames": 12},
}

BASE = "default-lora-write-video"
SEVERAL_RANKS = partial(Scenario, ranks=2)
VOICED = partial(Scenario, BASE, inputs={"audio": File("voice.wav")})

S2V = partial(
    Scenario,
    "s2v-lora-write-video",
    inputs={"audio": File("voice.wav"), "pose": File("control.mkv")},
    networks={"s2v_adapter": s2v_adapter},
    size=64,
)

IMAGE_TO_VIDEO = "default-reference-image-lora-write-video+image-to-video"
IMAGE_NETWORKS: dict[str, Maker] = {"dit": transformer(ImageDiT, clip_dim=i2v.CLIP["dim"]), "image_encoder": clip}
ANIMATE = partial(
    Scenario,
    "animate-avatar-lora-write-video",
    inputs={"pose": File("control.mkv"), "face": File("face.mkv")},
    networks={"animate_adapter": animate_adapter},
)

SCENARIOS: dict[str, dict[str, Scenario]] = {
    "builtin": {
        "prompt": Scenario(BASE, changes=Change(inputs={"prompt": "Rain."})),
        "reference-image": Scenario(BASE, condition=lambda latents: latents + 1, changes=OTHER_PICTURE),
        "audio": VOICED(off=NO_VOICE),
        "audio-adapter": VOICED(changes=NO_VOICE),
        "fixed-frames": Scenario(BASE, changes=Change({"window_frames": 13})),
        "guidance": Scenario(BASE, changes=Change({"scale": 1.0})),
        "teacache": Scenario(
            f"{BASE}+teacache(threshold=10)", settings={"schedule": {"steps": 4}}, off=Change({"threshold": 1e-9})
        ),
        "magcache": Scenario(
            f"{BASE}+magcache(retention=0)",
            settings={"schedule": {"steps": 4}, "magcache": {"ratios": [1.0]}},
            off=Change({"threshold": 0.0}),
        ),
        "first-block-cache": Scenario(
            f"{BASE}+first-block-cache(threshold=10)",
            settings={"schedule": {"steps": 4}},
            off=Change({"threshold": 0.0}),
        ),
        "cfg-zero-star": Scenario(
            f"{BASE}+cfg-zero-star(zero_share=0.25)",
            settings={"schedule": {"steps": 4}},
            off=Change({"zero_share": 0.0, "optimized_scale": False}),
        ),
        "guidance-interval": Scenario(
            f"{BASE}+guidance-interval(low=0.7, high=0.95)",
            settings={"schedule": {"steps": 4}},
            off=Change({"low": 0.0, "high": 1.0}),
        ),
        "nag": Scenario(f"{BASE}+nag", settings={"schedule": {"steps": 4}}, off=Change({"scale": 1.0})),
        "skip-layer-guidance": Scenario(
            f"{BASE}+skip-layer-guidance(blocks=[1, 2])",
            settings={"schedule": {"steps": 4}},
            off=Change({"start": 0.9}),
        ),
        "cfg-merge": Scenario(f"{BASE}+cfg-merge"),
        "sliding-window": Scenario(f"{BASE}+sliding-window(size=2, stride=1)", off=Change({"size": 9})),
        "schedule": Scenario(BASE, changes=Change({"shift": 1.0})),
        "euler": Scenario(BASE),
        "unipc": Scenario(f"{BASE}-euler+unipc", settings={"schedule": {"steps": 4}}),
        "dpmpp-2m": Scenario(f"{BASE}-euler+dpmpp-2m", settings={"schedule": {"steps": 4}}),
        "lcm": Scenario(f"{BASE}-euler+lcm"),
        "video-to-video": Scenario(
            f"{BASE}+video-to-video",
            inputs={"video": File("control.mkv")},
            changes=Change(inputs={"video": File("face.mkv")}),
        ),
        "transformer": Scenario(BASE),
        "lora": Scenario(f"{BASE}+lora", alters=True, off=Change({"scale": 0.0})),
        "vae-decode": Scenario(BASE),
        "write-video": Scenario(f"{BASE}+write-video", inputs={"output": File("video.mp4")}),
        "soundtrack": Scenario(
            f"{BASE}-audio-audio-adapter+soundtrack+write-video",
            inputs={"audio": File("voice.wav"), "output": File("video.mp4")},
        ),
        "sequence-parallel": SEVERAL_RANKS(f"{BASE}+sequence-parallel"),
        "guidance-parallel": SEVERAL_RANKS(f"{BASE}+guidance-parallel"),
        "vae-parallel": SEVERAL_RANKS(f"{BASE}+sequence-parallel+vae-parallel", alters=True),
        "fsdp": SEVERAL_RANKS(f"{BASE}+sequence-parallel+fsdp", alters=True),
        "smooth-borders": Scenario(f"{BASE}+smooth-borders"),
        "compile": Scenario(f"{BASE}+compile(backend=aot_eager)", alters=True),
        "attention": Scenario(f"{BASE}+attention(kernel=math)"),
        "offload": Scenario(f"{BASE}+offload(resident=1)", alters=True),
        "disk-offload": Scenario(f"{BASE}+disk-offload", alters=True),
        "fp8": Scenario(f"{BASE}+fp8(mode=storage)", alters=True, changes=Change({"mode": "compute"})),
        "gradient-checkpointing": Scenario(f"{BASE}+gradient-checkpointing", alters=True),
    },
    "i2v": {
        "image-to-video": Scenario(
            IMAGE_TO_VIDEO,
            inputs={"end_image": File("other.png")},
            networks=IMAGE_NETWORKS,
            condition=lambda latents: latents + 4,
            changes=Change(inputs={"end_image": None}),
        ),
    },
    "vace": {
        "vace": Scenario(
            f"{BASE}+vace",
            inputs={"reference_images": File("other.png")},
            networks={"vace": vace_branch},
            changes=Change({"scale": 0.0}),
            off=Change({"scale": 0.0}, {"reference_images": None}),
        ),
    },
    "motion": {
        "motion": Scenario(
            f"{BASE}+motion",
            inputs={"motion_bucket_id": 80},
            networks={"motion_controller": motion_controller},
            off=Change(inputs={"motion_bucket_id": None}),
        ),
    },
    "s2v": {
        "s2v-image": S2V(changes=OTHER_PICTURE),
        "s2v-audio": S2V(changes=NO_VOICE),
        "s2v-pose": S2V(changes=Change(inputs={"pose": None})),
        "s2v-clips": S2V(changes=Change({"clip_frames": 16})),
        "s2v-transformer": S2V(),
    },
    "ti2v": {
        "ti2v": Scenario(
            "default-reference-image-lora-write-video+ti2v", networks={"vae": vae38}, changes=OTHER_PICTURE
        ),
    },
    "moe": {
        "moe": Scenario(
            f"{BASE}+moe(boundary=0.95)",
            networks={"dit2": NETWORKS["dit"]},
            alters=True,
            off=Change({"boundary": 0.0}),
        ),
        "moe-guidance": Scenario(
            f"{BASE}-guidance+moe(boundary=0.95)+moe-guidance(scale=4, low_scale=1)",
            networks={"dit2": NETWORKS["dit"]},
            alters=True,
            off=Change({"scale": 3.0, "low_scale": 3.0}),
            instead={"guidance": {"scale": 3.0}},
        ),
    },
    "fun": {
        "fun-control": Scenario(
            f"{IMAGE_TO_VIDEO}+fun-control",
            inputs={"control_video": File("control.mkv")},
            condition=lambda latents: latents,
            changes=Change(inputs={"control_video": None}),
        ),
        "fun-reference": Scenario(
            f"{IMAGE_TO_VIDEO}+fun-reference",
            inputs={"reference_image": File("other.png")},
            networks={"fun_reference": reference_embedding},
            changes=Change(inputs={"reference_image": None}),
        ),
        "fun-camera": Scenario(
            f"{IMAGE_TO_VIDEO}+fun-camera",
            inputs={"camera": "Left"},
            networks={"fun_camera": camera_adapter},
            off=Change(inputs={"camera": None}),
        ),
    },
    "animate": {
        "animate-image": ANIMATE(networks=IMAGE_NETWORKS, condition=lambda latents: latents + 4, changes=OTHER_PICTURE),
        "animate-motion": ANIMATE(off=Change(inputs={"pose": None, "face": None})),
    },
}
"""By package, `plugins/omniavatar-NAME`, and unit."""
