"""The page needs nothing from elsewhere, and shows what there is."""

from __future__ import annotations

import io
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
from rich.console import Console

from omniavatar.bench.page import page
from omniavatar.bench.plots import COLOURS, REST, Axis, Point, bars, folded, pareto, scatter, shared_parts
from omniavatar.bench.record import Combination, HookTime, Quality, Record, Spread
from omniavatar.bench.table import seconds, tables
from tests.bench.test_compare import around, combination, record


def study() -> Record:
    """A reference, one that is faster, one with a name that means something in HTML, refused and failed ones."""
    hooks = (
        HookTime(unit="transformer", hook="run_blocks", seconds=0.7),
        HookTime(unit="lora", hook="setup", seconds=3),
    )
    quality = Quality(identical=False, psnr_db=Spread.of([31.5]), ssim=Spread.of([0.93]), latent_error=Spread.of([0.1]))
    return record(
        combination(name="default", speed_up=1.0, hooks=hooks, engine_seconds=0.1),
        combination(around(0.5), name="default+cache", speed_up=2.0, quality=quality, hooks=hooks, engine_seconds=0.1),
        combination(around(0.6), name="default+<b>&", speed_up=1.7, quality=quality),
        Combination(name="default+no", status="refused", reason="units <x> and y do not fit", units=()),
        Combination(name="default+oops", status="failed", reason="ValueError: [red]", units=()),
    )


class Reader(HTMLParser):
    """Puts down tags, attributes that point somewhere, and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "action", "data")]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def html() -> str:
    pictures = {"default": np.zeros((6, 16, 16, 3), np.uint8), "default+cache": np.full((6, 16, 16, 3), 9, np.uint8)}
    return page(study(), pictures, ["default: total seconds was 1 s and is 2 s"])


def test_nothing_comes_from_elsewhere(html: str) -> None:
    reader = Reader(html)
    assert len(reader.links) == 3
    assert all(link.startswith("data:image/jpeg;base64,") for link in reader.links)
    assert not {"script", "link", "iframe", "object", "embed"} & set(reader.tags)
    assert not re.search(r"https?:|@import|url\(|\bon\w+=", html)


def test_all_combinations_and_reasons_are_there(html: str) -> None:
    text = Reader(html).text
    for part in ("default+cache", "default+<b>&", "refused: units <x> and y do not fit", "failed: ValueError: [red]"):
        assert part in text
    assert "total seconds was 1 s and is 2 s" in text
    assert html.count("<svg") == 3  # SSIM, latents, time by unit
    assert html.count("</tr>") >= 5


def test_plots_are_well_formed_and_in_the_frame(html: str) -> None:
    for text in re.findall(r"<svg.*?</svg>", html, re.DOTALL):
        svg = ElementTree.fromstring(text)
        width, height = map(float, svg.attrib["viewBox"].split()[2:])
        for element in svg.iter():
            assert 0 <= float(element.get("x", element.get("cx", "0"))) <= width
            assert 0 <= float(element.get("y", element.get("cy", "0"))) <= height


def test_the_front_is_what_nothing_beats() -> None:
    places = {"slow and good": (9, 0.9), "fast": (1, 0.2), "beaten": (5, 0.1), "middle": (4, 0.5), "twin": (9.5, 0.9)}
    points = [Point(name, 1, x, y, x, x) for name, (x, y) in places.items()]
    assert [point.label for point in pareto(points)] == ["fast", "middle", "slow and good"]
    assert scatter(points, "t", "x", "y").count('r="6"') == 3


def test_ticks_are_round_and_differ() -> None:
    assert list(Axis(0.99984, 1.00001, 0, 100).ticks().values()) == ["0.99985", "0.99990", "0.99995", "1.00000"]
    assert list(Axis(-0.1, 9.9, 0, 100).ticks().values()) == ["0", "2", "4", "6", "8"]


def test_a_stack_of_bars_is_as_long_as_its_parts() -> None:
    rows = {"1 a": {f"unit{index}": 1.0 + index for index in range(14)}, "2 b": {"unit13": 2.0}}
    names = shared_parts(rows)
    assert (len(names), names[0], names[-1]) == (len(COLOURS) + 1, "unit13", REST)
    assert sum(folded(rows["1 a"], names).values()) == sum(rows["1 a"].values())
    svg = ElementTree.fromstring(bars(rows, "t", "s"))
    widths = [float(one.attrib["width"]) for one in svg.iter("rect") if one.attrib["height"] == "20"]
    assert sum(widths[:-1]) / widths[-1] == pytest.approx(sum(rows["1 a"].values()) / 2, rel=0.02)
    assert shared_parts({"1 a": {"x": 1}}) == ["x"]


def test_the_terminal_gets_what_fits_80_columns() -> None:
    console = Console(width=80, force_terminal=False, color_system=None)
    with console.capture() as capture:
        for table in tables(study()):
            console.print(table)
    lines = capture.get().splitlines()
    assert "default+no            refused: units <x> and y do not fit" in [line.rstrip() for line in lines]
    assert any(line.split() == ["+cache", "31.5", "0.9300", "0.1"] for line in lines)
    assert "…" not in capture.get()
    assert "[red]" in capture.get()


def test_seconds_have_the_digits_that_their_spread_leaves() -> None:
    assert seconds(Spread.of([123.4, 125.0])) == "124 ±0"
    assert seconds(Spread.of([0.0421, 0.0423])) == "0.042 ±0.000"


def test_only_the_first_combination_is_like_itself() -> None:
    """One that takes as long, but whose pictures cannot be compared, has no place in the plot."""
    reference = combination(name="default", speed_up=1.0)
    other = combination(around(0.5), name="default+cache", speed_up=1.0)
    assert "Speed against likeness" not in page(record(reference, other), {})
    assert "Speed against likeness" in page(study(), {})


def test_what_a_refused_reference_costs_is_said() -> None:
    refused = Combination(name="default+no", status="refused", reason="they quarrel", units=())
    made = record(refused, combination(name="default", speed_up=None))
    console = Console(width=200, record=True, file=io.StringIO())
    for one in tables(made):
        console.print(one)
    said = "refused: they quarrel; no speed-up and no likeness of the others"
    assert said in console.export_text()
    assert said in Reader(page(made, {})).text


def test_one_value_has_no_spread() -> None:
    assert (seconds(Spread.of([1.5])), seconds(Spread.of([1.5, 1.5]))) == ("1.50", "1.50 ±0.00")


def test_points_in_one_place_share_a_label() -> None:
    points = [Point("a", 1, 1.0, 1.0, 1.0, 1.0), Point("b", 2, 1.001, 1.0, 1.0, 1.0), Point("c", 3, 2.0, 0.5, 2.0, 2.0)]
    plot = ElementTree.fromstring(scatter(points, "t", "x", "y"))
    assert [text.text for text in plot.iter() if text.get("class") == "mark"] == ["1, 2", "3"]
