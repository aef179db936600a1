"""The plot of `benchmarks.scaling`: `python -m benchmarks.scaling_plot results.json ... --output scaling.svg`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib import pyplot


def draw(results: list[dict[str, Any]], output: Path) -> None:
    """Speed-up of every strategy that ran, a panel a model; the ideal as a grey mark."""
    matplotlib.use("svg")
    figure, panels = pyplot.subplots(1, len(results), figsize=(5 * len(results), 3), squeeze=False)
    for panel, result in zip(panels[0], results, strict=True):
        rows = [row for row in result["rows"] if "speed_up" in row]
        panel.barh([row["strategy"] for row in rows], [row["speed_up"] for row in rows], color="#4477aa")
        panel.plot([row["ranks"] for row in rows], range(len(rows)), "|", color="#888888", markersize=18)
        waiting = sum(row["status"] == "not run" for row in result["rows"])
        panel.set_title(f"{result['work']['size']}, {result['machine']['device']}; {waiting} rows not run", fontsize=9)
        panel.set_xlabel("speed-up over one rank")
        panel.invert_yaxis()
    figure.tight_layout()
    figure.savefig(output)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    draw([json.loads(path.read_text()) for path in arguments.results], arguments.output)


if __name__ == "__main__":
    main()
