"""What becomes of two units in one plan."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass

from omniavatar.errors import OmniError, PlanError
from tests.compatibility.cases import UNITS, Case, Pair, cases, catalog, clash, fault, refusal
from tests.compatibility.studio import Broken, Studio

WORKS, REFUSED, BROKEN = "works", "refused", "broken"
EXACT = 1e-5
"""Relative error of what is the same up to rounding."""
VISIBLE = 1e-4
"""Relative difference of what is not."""


@dataclass(frozen=True)
class Outcome:
    """works, refused or broken, and in the last two cases why."""

    verdict: str
    reason: str = ""


def outcome_of(pair: Pair, studio: Studio) -> Outcome:
    """Try the plans that have both units; one that works is enough, and none may break.

    Where one unit takes the other out of an expression, no plan has both.
    """
    if any(other in catalog().units[one].replaces for one, other in (pair, pair[::-1])):
        return Outcome(REFUSED, str(clash(*pair)))
    first, *others = cases(pair)
    reordered = [other for other in others if set(other.units) == set(first.units)]
    tried = [case for case in (first, *others) if case not in reordered]
    outcomes = [attempt(case, pair, studio, again=not reordered) for case in tried]
    if reordered and studio.world.size == 1 and outcomes[0].verdict == WORKS:
        outcomes.append(kept(reordered[0], lambda: same_in_other_order(first, reordered[0], studio)))
    for verdict in (BROKEN, WORKS):
        for found in outcomes:
            if found.verdict == verdict:
                return found
    in_use = [found.reason for case, found in zip(tried, outcomes, strict=True) if not fault(case.units)]
    return Outcome(REFUSED, next(iter(in_use), refusal(pair) or outcomes[0].reason))


def attempt(case: Case, pair: Pair, studio: Studio, *, again: bool = True) -> Outcome:
    """Make the videos of a case and look whether both units keep their promises.

    again: also whether the same engine makes the same once more. Several ranks need not, since one rank must agree.
    """
    made = outcome(lambda: studio.make(case, twice=again and studio.world.size == 1))
    if made.verdict != WORKS:
        return made
    return kept(case, lambda: keep_promises(pair, case, studio))


def kept(case: Case, promise: Callable[[], object]) -> Outcome:
    """What becomes of a promise about a case: it is kept or broken."""
    found = outcome(promise)
    return found if found.verdict == WORKS else Outcome(BROKEN, f"{case}: {found.reason}")


def outcome(attempt: Callable[[], object]) -> Outcome:
    """What becomes of an attempt."""
    try:
        attempt()
    except OmniError as error:
        one_line = str(error) and "\n" not in str(error)
        return Outcome(REFUSED, str(error)) if one_line else Outcome(BROKEN, f"not a line that helps: {error!r}")
    except Broken as error:
        return Outcome(BROKEN, str(error))
    except Exception:
        return Outcome(BROKEN, traceback.format_exc())
    return Outcome(WORKS)


def keep_promises(pair: Pair, case: Case, studio: Studio) -> None:
    """Raise Broken if a unit does not do in a case what it does, or does what it must not do."""
    exact = [unit for unit in pair if catalog().units[unit].exact]
    for unit in exact:
        changes_nothing(unit, case, studio)
    if not exact:  # which leave the effects of others as they are
        for unit in pair:
            has_its_effect(unit, case, studio)


def changes_nothing(unit: str, case: Case, studio: Studio) -> None:
    """Compare an exact unit with one rank that goes without."""
    plain = case
    for other in case.units:
        if other == unit or UNITS[other].ranks > 1:
            plain = plain.without(other)
    if (error := studio.make(case).difference(studio.make(plain, alone=True))) > EXACT:
        raise Broken(f"'{unit}' is exact and changes the video by {error:.1e}")


def has_its_effect(unit: str, case: Case, studio: Studio) -> None:
    """See that a unit's effect is there, and gone where it is switched off."""
    scenario = UNITS[unit]
    if scenario.effect is not None:
        changed = studio.make(case.changed(unit, scenario.effect))
        if studio.make(case).difference(changed) < VISIBLE:
            raise Broken(f"'{unit}' has no effect")
    if scenario.off is not None:
        off, without = case.changed(unit, scenario.off), case.without(unit, scenario.instead)
        try:
            plain = studio.make(without)
        except PlanError:
            return  # another unit of the plan cannot be without it
        if (error := studio.make(off).difference(plain)) > EXACT:
            raise Broken(f"'{unit}' changes the video by {error:.1e} when it is switched off")


def same_in_other_order(case: Case, other: Case, studio: Studio) -> None:
    """Raise Broken if it matters in which order two units are written."""
    if (error := studio.make(other).difference(studio.make(case))) > EXACT:
        raise Broken(f"in this order of the units the video is another one, by {error:.1e}")
