"""Procedural talking heads: who (`Identity`), how they move (`Performance`, `Pose`) and their picture (`render`)."""

from omniavatar_drawn.faces.captions import caption
from omniavatar_drawn.faces.identity import Identity
from omniavatar_drawn.faces.performance import FPS, Performance, Pose
from omniavatar_drawn.faces.renderer import REST, Renderer, render

__all__ = ["FPS", "REST", "Identity", "Performance", "Pose", "Renderer", "caption", "render"]
