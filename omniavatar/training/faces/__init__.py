"""Procedural talking heads: who (`Identity`), how they move (`Performance`, `Pose`) and their picture (`render`)."""

from omniavatar.training.faces.captions import caption
from omniavatar.training.faces.identity import Identity
from omniavatar.training.faces.performance import FPS, Performance, Pose
from omniavatar.training.faces.renderer import REST, Renderer, render

__all__ = ["FPS", "REST", "Identity", "Performance", "Pose", "Renderer", "caption", "render"]
