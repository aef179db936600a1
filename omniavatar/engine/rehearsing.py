"""What estimates ask of units: whether their hooks can run on random weights, and which weights decide about the work.

An estimate (`omniavatar.estimate`) runs the hooks of a plan on networks with random weights, to see what a run costs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar


class NotRehearsed:
    """A unit whose hooks no estimate runs: it writes something, moves weights, or decides by what networks compute.

    `class Mine(PipelineUnit, NotRehearsed)`. A unit that places weights still says where they are, by `keeps`.
    """


class ReadsDecisiveWeights:
    """A unit for which the values of some weights decide how much work there is; an estimate reads these from the file.

    decisive: the weights, as patterns of names by role, further experts and companions included.
    """

    decisive: ClassVar[Mapping[str, tuple[str, ...]]] = {}
