"""What `omni train` and `omni train prepare` begin with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from omniavatar.cli.console import saying_faults
from omniavatar.errors import InputError
from omniavatar.locating import located

if TYPE_CHECKING:
    from omniavatar.distributed.world import World
    from omniavatar.training.diffusion import Diffusion, DiffusionConfig

OWN_SETTINGS = {"audio": {"silence": 0, "dropped": "zeros"}}
"""Stronger than those that suit a checkpoint for making videos, weaker than the configuration's."""


def opened(config: DiffusionConfig, world: World) -> Diffusion:
    """Plan and models of a configuration; headers are read, weights are not. Validation inputs are looked at."""
    config = located(config)  # before torch is imported: this answer should not take seconds
    from omniavatar.checkpoints.tables import check_network, network_modules
    from omniavatar.engine.media_inputs import check_media
    from omniavatar.engine.plan import build_plan, check_names
    from omniavatar.engine.settings import Layer, Strength
    from omniavatar.opening import bundle_of, checkpoint_layers, torch_device, torch_dtype
    from omniavatar.plugins import discover
    from omniavatar.training.diffusion import Diffusion

    plugins = discover()
    with saying_faults(plugins):
        catalog, registry = plugins.catalog(), plugins.registry()
        generators = plugins.clip_generators() if config.data.generated else {}
    modules = network_modules(registry.rows)
    for role, change in config.start.items():
        check_network(change.network, modules, f"start.{role}.network")
    settings = Layer(Strength.FILE, "settings", config.settings)
    check_names(settings, catalog)
    bundle = bundle_of(config, registry)
    plan = build_plan(config.units, catalog, *checkpoint_layers(bundle), OWN_SETTINGS, settings)
    device = torch_device(config.device, world.local_rank)
    dtype = torch_dtype(config.dtype, device)
    diffusion = Diffusion.open(config, plan, bundle, device=device, dtype=dtype, world=world, generators=generators)
    for number, request in enumerate(diffusion.requests(), start=1):
        try:
            check_media(plan, plan.parse_inputs(request.inputs))
        except InputError as error:
            raise InputError(f"validation video {number}: {error}") from None
    return diffusion
