"""The built-in units, one feature a file."""

from omniavatar.units.attention import AttentionKernel
from omniavatar.units.audio import Audio
from omniavatar.units.audio_adapter import AudioAdapter
from omniavatar.units.cfg_merge import CfgMerge
from omniavatar.units.cfg_zero_star import CfgZeroStar
from omniavatar.units.compile import Compile
from omniavatar.units.disk_offload import DiskOffload
from omniavatar.units.dpmpp_2m import DpmSolverMultistep
from omniavatar.units.euler import Euler
from omniavatar.units.first_block_cache import FirstBlockCache
from omniavatar.units.fixed_frames import FixedFrames
from omniavatar.units.fp8 import Fp8
from omniavatar.units.fsdp import Fsdp
from omniavatar.units.gradient_checkpointing import GradientCheckpointing
from omniavatar.units.guidance import Guidance
from omniavatar.units.guidance_interval import GuidanceInterval
from omniavatar.units.guidance_parallel import GuidanceParallel
from omniavatar.units.lcm import Lcm
from omniavatar.units.lora import Lora
from omniavatar.units.magcache import MagCache
from omniavatar.units.nag import Nag
from omniavatar.units.offload import Offload
from omniavatar.units.prompt import Prompt
from omniavatar.units.reference_image import ReferenceImage
from omniavatar.units.schedule import Schedule
from omniavatar.units.sequence_parallel import SequenceParallel
from omniavatar.units.skip_layer_guidance import SkipLayerGuidance
from omniavatar.units.sliding_window import SlidingWindow
from omniavatar.units.smooth_borders import SmoothBorders
from omniavatar.units.soundtrack import Soundtrack
from omniavatar.units.teacache import TeaCache
from omniavatar.units.transformer import Transformer
from omniavatar.units.unipc import UniPC
from omniavatar.units.vae_decode import VaeDecode
from omniavatar.units.vae_parallel import VaeParallel
from omniavatar.units.video_to_video import VideoToVideo
from omniavatar.units.write_video import WriteVideo

BUILTIN = (
    Prompt,
    ReferenceImage,
    Audio,
    AudioAdapter,
    FixedFrames,
    Guidance,
    TeaCache,
    Schedule,
    Euler,
    Transformer,
    Lora,
    VaeDecode,
    Soundtrack,
    WriteVideo,
    CfgMerge,
    SlidingWindow,
    SequenceParallel,
    GuidanceParallel,
    VaeParallel,
    Fsdp,
    GradientCheckpointing,
    Compile,
    SmoothBorders,
    MagCache,
    FirstBlockCache,
    CfgZeroStar,
    GuidanceInterval,
    Nag,
    SkipLayerGuidance,
    UniPC,
    DpmSolverMultistep,
    Lcm,
    VideoToVideo,
    AttentionKernel,
    Offload,
    DiskOffload,
    Fp8,
)
