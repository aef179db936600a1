"""Training data: the clips of a folder or a list, opened when they are asked for, bad ones passed over.

entries = read_entries(Path("clips.csv"))
clips = Clips(entries, Limits(), Faults(entries, path=folder / SKIPPED))

def read(clip: Clip, draw: torch.Generator) -> tuple[np.ndarray, np.ndarray]:
    piece = random_piece(clip.frames, 81, 4, draw)
    return clip.pictures(piece.start, piece.count), clip.sound()[piece.samples]

pictures, sound = clips.draw(draw, read)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TypeVar

import torch

from omniavatar.training.data.clip import Clip, Limits, open_clip
from omniavatar.training.data.faults import Faults
from omniavatar.training.data.lists import Entry

Result = TypeVar("Result")


class Clips:
    """The usable clips of a list, in its order or at random.

    What is to be made of a clip is a function given to `read`, `each` and `draw`, so that any error in it becomes a
    fault of that clip. Raises InputError when `faults` ends the run.
    """

    def __init__(self, entries: Sequence[Entry], limits: Limits, faults: Faults) -> None:
        self.entries, self.limits, self.faults = entries, limits, faults

    def __len__(self) -> int:
        """Clips that are not known to be bad."""
        return sum(entry not in self.faults for entry in self.entries)

    def each(self, read: Callable[[Clip], Result]) -> Iterator[tuple[Entry, Result]]:
        """What `read` returns for every usable clip, one after the other."""
        for entry in self.entries:
            result = self.read(entry, read)
            if result is not None:
                yield entry, result

    def read(self, entry: Entry, read: Callable[[Clip], Result]) -> Result | None:
        """What `read` returns for a clip, None if it cannot be used."""
        return self.faults.attempt(entry, partial(self._read, entry, read))

    def draw(self, draw: torch.Generator, read: Callable[[Clip, torch.Generator], Result]) -> Result:
        """What `read` returns for a clip drawn at random, each with the same chance; `read` gets a generator too.

        A bad clip costs the same two numbers of `draw` whether that is known or just found out, so that a run draws
        the same clips when it is repeated.
        """
        while True:
            entry = self.entries[int(torch.randint(len(self.entries), (), generator=draw))]
            own = torch.Generator().manual_seed(int(torch.randint(2**62, (), generator=draw)))
            result = self.read(entry, partial(_with, read, own))
            if result is not None:
                return result

    def _read(self, entry: Entry, read: Callable[[Clip], Result]) -> Result:
        return read(open_clip(entry, self.limits))


def _with(read: Callable[[Clip, torch.Generator], Result], draw: torch.Generator, clip: Clip) -> Result:
    return read(clip, draw)
