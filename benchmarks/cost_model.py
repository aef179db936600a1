"""What several GPUs can give, by arithmetic: `python -m benchmarks.cost_model [--check results.json]`.

A step is transformer calls; a call is matrix products (linear in tokens) and attention (quadratic), both measured on
one GPU. Ranks divide that work; what a rank sends takes its bytes over the link and the time of copying them into place
before and after. Nothing is assumed to overlap.

    seconds = branches/guidance * (linear * t + attention * t^2) / (ring * ulysses) + sent / link + sent * copying,
    t = tokens / 30375

`--check` compares the model with what `benchmarks.scaling` measured.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.scaling import Strategy

REFERENCE_TOKENS = 400 // 16 * (720 // 16) * 27
BRANCHES = 2
GPUS_PER_HOST = 8
GPUS = (1, 2, 4, 8, 16, 32, 64)
VIDEOS = {"480p": REFERENCE_TOKENS, "720p": 45 * 80 * 21}
"""720x400x105 and 1280x720x81, in tokens."""
RESULTS = Path(__file__).parent / "results"
ATTENTION_SECONDS = 0.0332
"""One cuDNN attention of 40 heads at 30,375 tokens on an H200, measured."""


@dataclass(frozen=True)
class Network:
    """Sizes that decide what is sent, and seconds of one call at 30,375 tokens on one H200, measured."""

    dim: int
    layers: int
    heads: int
    linear: float
    attention: float


@dataclass(frozen=True)
class Links:
    """Bytes a second that a rank sends inside a host (NVLink, measured between two H200) and between hosts (400 Gbit/s,
    assumed), and the seconds of copying a byte, from what two GPUs took beyond work and link."""

    inside: float = 255e9
    between: float = 50e9
    copying: float = 6.3e-12


SIZES = {"14b": (5120, 40, 40), "1.3b": (1536, 30, 12)}


@cache
def network(size: str) -> Network:
    """A model with the time of its calls by one rank of benchmarks/results/scaling-SIZE.json."""
    dim, layers, heads = SIZES[size]
    alone = json.loads((RESULTS / f"scaling-{size}.json").read_text())["rows"][0]["seconds_per_step"] / BRANCHES
    attention = layers * ATTENTION_SECONDS * heads / 40
    return Network(dim, layers, heads, alone - attention, attention)


def seconds_per_step(model: Network, strategy: Strategy, tokens: int, links: Links) -> float:
    """The formula. Ulysses comes first within a host; the ring leaves it where both together are larger."""
    share = tokens / REFERENCE_TOKENS
    call = model.linear * share + model.attention * share**2
    compute = math.ceil(BRANCHES / strategy.guidance) * call / (strategy.ring * strategy.ulysses)
    sent = strategy.sent_per_step(model.dim, model.layers, tokens, BRANCHES)
    is_inside = strategy.ring * strategy.ulysses <= GPUS_PER_HOST
    inside = sent.total if is_inside else sent.ulysses
    return compute + inside / links.inside + (sent.total - inside) / links.between + sent.total * links.copying


def candidates(ranks: int, heads: int) -> Iterator[Strategy]:
    """Grids of this many ranks; what exchanges heads stays inside a host."""
    for guidance in (1, 2):
        for ulysses in range(1, GPUS_PER_HOST + 1):
            rest = ranks // guidance
            if ranks % guidance == 0 and rest % ulysses == 0 and heads % ulysses == 0:
                yield Strategy(guidance, rest // ulysses, ulysses)


def best(model: Network, ranks: int, tokens: int, links: Links) -> tuple[Strategy, float]:
    """The fastest grid and its seconds per step."""
    timed = [
        (strategy, seconds_per_step(model, strategy, tokens, links)) for strategy in candidates(ranks, model.heads)
    ]
    return min(timed, key=lambda pair: (pair[1], pair[0].ring))


def table(size: str, links: Links) -> list[str]:
    """The best grid for 1 to 64 GPUs, and what it gives at 480p and 720p, as lines of Markdown."""
    model = network(size)
    lines = ["| GPUs | best grid | 480p s/step | efficiency | 720p s/step | efficiency |", "|---|---|---|---|---|---|"]
    alone = {name: best(model, 1, tokens, links)[1] for name, tokens in VIDEOS.items()}
    for ranks in GPUS:
        cells = [str(ranks), best(model, ranks, VIDEOS["480p"], links)[0].name]
        for name, tokens in VIDEOS.items():
            seconds = best(model, ranks, tokens, links)[1]
            cells += [f"{seconds:.3g}", f"{alone[name] / seconds / ranks:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def check(path: Path) -> dict[str, float]:
    """How far the model is from every row that was measured, as a fraction."""
    content: dict[str, Any] = json.loads(path.read_text())
    model, off = network(content["work"]["size"]), {}
    for row in content["rows"]:
        degrees = dict(part.split("=") for part in row["strategy"].split() if "=" in part)
        guidance, ring, ulysses = (int(degrees.get(axis, 1)) for axis in ("guidance", "ring", "ulysses"))
        strategy = Strategy(guidance, ring, ulysses)
        if "seconds_per_step" in row and strategy.ranks == row["ranks"] and "fsdp" not in row["strategy"]:
            off[row["strategy"]] = (
                seconds_per_step(model, strategy, row["tokens"], Links()) / row["seconds_per_step"] - 1
            )
    return off


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=tuple(SIZES), default="14b")
    parser.add_argument("--check", type=Path)
    arguments = parser.parse_args()
    if arguments.check:
        for strategy, off in check(arguments.check).items():
            print(f"{strategy}: {off:+.1%}")
    else:
        print("\n".join(table(arguments.size, Links())))


if __name__ == "__main__":
    main()
