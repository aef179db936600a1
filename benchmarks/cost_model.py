"""What several GPUs can give, by arithmetic: `python -m benchmarks.cost_model [--check results.json]`.

A step is transformer calls; a call is matrix products (linear in tokens) and attention (quadratic), both measured on
one GPU. Ranks divide that work; what a rank sends takes its bytes over the link. Nothing is assumed to overlap.

    seconds = branches/guidance * (linear * t + attention * t^2) / (ring * ulysses) + sent / link,   t = tokens / 30375

`--check` compares the model with what `benchmarks.scaling` measured.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.scaling import Strategy

REFERENCE_TOKENS = 400 // 16 * (720 // 16) * 27
BRANCHES = 2
GPUS_PER_HOST = 8


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
    """Bytes a second that a rank sends: inside a host (NVLink, measured) and between hosts (400 Gbit/s, assumed)."""

    inside: float = 264e9
    between: float = 50e9


# Seconds of a call: one rank of benchmarks/results/scaling-*.json; of these attention takes layers x the time of one
# cuDNN attention at this size (14B: 33.2 ms; the 1.3B's has 12 of its 40 heads).
NETWORKS = {
    "14b": Network(5120, 40, 40, linear=2.831 - 40 * 0.0332, attention=40 * 0.0332),
    "1.3b": Network(1536, 30, 12, linear=0.527 - 30 * 0.0332 * 12 / 40, attention=30 * 0.0332 * 12 / 40),
}


def seconds_per_step(network: Network, strategy: Strategy, tokens: int, links: Links) -> float:
    """The model."""
    share = tokens / REFERENCE_TOKENS
    call = network.linear * share + network.attention * share**2
    compute = math.ceil(BRANCHES / strategy.guidance) * call / (strategy.ring * strategy.ulysses)
    sent = strategy.sent_per_step(network.dim, network.layers, tokens, BRANCHES)
    inside = strategy.ring * strategy.ulysses <= GPUS_PER_HOST
    return compute + sent / (links.inside if inside else links.between)


def candidates(ranks: int, heads: int) -> Iterator[Strategy]:
    """Grids of this many ranks; what exchanges heads stays inside a host."""
    for guidance in (1, 2):
        for ulysses in range(1, GPUS_PER_HOST + 1):
            rest = ranks // guidance
            if ranks % guidance == 0 and rest % ulysses == 0 and heads % ulysses == 0:
                yield Strategy(guidance, rest // ulysses, ulysses)


def best(network: Network, ranks: int, tokens: int, links: Links) -> tuple[Strategy, float]:
    """The fastest grid and its seconds per step."""
    timed = [
        (strategy, seconds_per_step(network, strategy, tokens, links)) for strategy in candidates(ranks, network.heads)
    ]
    return min(timed, key=lambda pair: (pair[1], pair[0].ring))


def print_table(network: Network, links: Links) -> None:
    """The best grid for 1 to 64 GPUs at 480p and 720p."""
    for name, tokens in (("400x720x105", REFERENCE_TOKENS), ("720x1280x81", 45 * 80 * 21)):
        alone = best(network, 1, tokens, links)[1]
        print(f"\n{name}: {tokens} tokens\n| GPUs | strategy | s/step | speed-up | efficiency |\n|---|---|---|---|---|")
        for ranks in (1, 2, 4, 8, 16, 32, 64):
            strategy, seconds = best(network, ranks, tokens, links)
            gain = alone / seconds
            print(f"| {ranks} | {strategy.name} | {seconds:.3f} | {gain:.1f} | {gain / ranks:.2f} |")


def check(path: Path) -> None:
    """Model against measurement, row by row."""
    content: dict[str, Any] = json.loads(path.read_text())
    network = NETWORKS[content["work"]["size"]]
    print("| strategy | measured s/step | model | off by |\n|---|---|---|---|")
    for row in content["rows"]:
        degrees = dict(part.split("=") for part in row["strategy"].split() if "=" in part)
        strategy = Strategy(*(int(degrees.get(axis, 1)) for axis in ("guidance", "ring", "ulysses")))
        if row["status"] == "run" and strategy.ranks == row["ranks"]:
            predicted = seconds_per_step(network, strategy, row["tokens"], Links())
            off = predicted / row["seconds_per_step"] - 1
            print(f"| {row['strategy']} | {row['seconds_per_step']:.3f} | {predicted:.3f} | {off:+.1%} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=tuple(NETWORKS), default="14b")
    parser.add_argument("--check", type=Path)
    arguments = parser.parse_args()
    if arguments.check:
        check(arguments.check)
    else:
        print_table(NETWORKS[arguments.size], Links())


if __name__ == "__main__":
    main()
