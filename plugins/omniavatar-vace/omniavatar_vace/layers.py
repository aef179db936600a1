"""Which blocks of a transformer those of a VACE branch go beside."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from omniavatar.sdk import CheckpointError

NEXT_STEP = "put the config.json of the checkpoint, with 'vace_layers', beside its file"


def known_layers(layers: Any) -> tuple[int, ...]:
    """The numbers of the blocks. Raises CheckpointError if they are not known (null), or are no numbers in order."""
    if not layers:
        raise CheckpointError(
            "which blocks of the transformer the VACE branch goes beside is not known, since they are not at equal "
            f"distances; {NEXT_STEP}"
        )
    numbers = tuple(layers)
    if not all(type(number) is int and number >= 0 for number in numbers) or any(b <= a for a, b in pairwise(numbers)):
        raise CheckpointError(
            f"the vace_layers {layers} must be numbers of blocks, each larger than the one before; {NEXT_STEP}"
        )
    return numbers


def check_last(role: str, layers: tuple[int, ...], blocks: int) -> None:
    """Raise CheckpointError if the branch goes beside a block that the transformer does not have."""
    if layers[-1] >= blocks:
        raise CheckpointError(
            f"the VACE branch '{role}' goes up to block {layers[-1]} and the transformer has {blocks} blocks; "
            "give the branch made for it"
        )
