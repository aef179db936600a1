"""The checkpoint tables, for commands that need nothing else of plugins."""

from __future__ import annotations

from typing import TYPE_CHECKING

from omniavatar.cli.console import saying_faults

if TYPE_CHECKING:
    from omniavatar.checkpoints import Registry


def registry() -> Registry:
    """The tables of this package and of every installed plugin."""
    from omniavatar.plugins import discover

    plugins = discover()
    with saying_faults(plugins):
        return plugins.registry()
