"""The plot of training runs: `python -m benchmarks.loss_plot benchmarks/results/tiny/*.jsonl --output loss.svg`.

One panel for every network; the logs of its runs, `NETWORK.jsonl` or `NETWORK-WHAT.jsonl`, follow each other in it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import matplotlib
from matplotlib import pyplot

SMOOTHED = 5
"""Lines of a log that a drawn value is the mean of."""


def read(path: Path) -> tuple[list[int], list[float]]:
    """Steps of a log, and for each the mean loss of the lines up to it."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    losses = [line["loss"] for line in lines]
    recent = [losses[max(0, index + 1 - SMOOTHED) : index + 1] for index in range(len(losses))]
    return [line["step"] for line in lines], [sum(values) / len(values) for values in recent]


def draw(paths: Sequence[Path], output: Path) -> None:
    """Loss over steps, both axes from the logs; the loss is logarithmic."""
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "loss"  # the same file every time
    networks = {name: list(logs) for name, logs in groupby(sorted(paths), lambda path: path.stem.partition("-")[0])}
    figure, panels = pyplot.subplots(1, len(networks), figsize=(3.2 * len(networks), 2.8), squeeze=False)
    for panel, (name, logs) in zip(panels[0], networks.items(), strict=True):
        offset = 0
        for path in logs:
            steps, losses = read(path)
            panel.plot([offset + step for step in steps], losses, linewidth=1, label=path.stem.partition("-")[2])
            offset += steps[-1]
        if len(logs) > 1:
            panel.legend(fontsize=7)
        panel.set_yscale("log")
        panel.set_title(name.replace("_", " "), fontsize=9)
        panel.set_xlabel("updates", fontsize=8)
        panel.tick_params(labelsize=7, which="both")
    panels[0][0].set_ylabel("loss", fontsize=8)
    figure.tight_layout()
    figure.savefig(output, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("logs", type=Path, nargs="+")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    draw(arguments.logs, arguments.output)


if __name__ == "__main__":
    main()
