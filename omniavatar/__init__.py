"""omniavatar: a plugin engine for audio-driven avatar video.

A portrait, a voice and a prompt go in; a talking video of any length comes out. Start at
`omniavatar.engine.engine.Engine`, whose `run` is the whole algorithm, and at `omniavatar.hookspecs`,
which lists every point where a unit can take part in it.
"""

__version__ = "0.1.0"
