"""Where the data files of the package lie: in the wheel below `omniavatar/data`, in a checkout at its top."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).parent


def data_folder(name: str) -> Path:
    """The folder `registry`, `configs` or `docs`, or one inside these."""
    installed = PACKAGE / "data" / name
    return installed if installed.is_dir() else PACKAGE.parent / name


def registry_tables() -> list[Path]:
    """The built-in checkpoint tables."""
    return sorted(data_folder("registry").glob("*.toml"))


def asset(*parts: str) -> Path:
    """A file or folder of `omniavatar/assets`."""
    return PACKAGE.joinpath("assets", *parts)
