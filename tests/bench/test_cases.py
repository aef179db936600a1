"""Which combinations a matrix and a suite make."""

from __future__ import annotations

from pathlib import Path

import pytest

from omniavatar.bench.cases import Matrix, Suite, find_suite, named, read_suite
from omniavatar.cli.bench import BENCH_EARLY
from omniavatar.engine.plan import Catalog, parse
from omniavatar.errors import InputError
from omniavatar.resources import data_folder

PACKAGED = sorted(path.stem for path in data_folder("benchmarks/suites").glob("*.toml"))


def test_a_matrix_is_all_combinations_the_base_first() -> None:
    assert Matrix(base="tiny", units=("a", "b(x=[1, 2])")).expressions() == [
        *("tiny", "tiny+b(x=[1, 2])", "tiny+a", "tiny+a+b(x=[1, 2])")
    ]


def test_settings_of_one_unit_come_one_at_a_time() -> None:
    made = Matrix(units=("a(x=1)", "a(x=2)", "+ b")).expressions()
    assert set(made) == {f"default{a}{b}" for a in ("", "+a(x=1)", "+a(x=2)") for b in ("", "+b")}
    assert len(made) == 6


@pytest.mark.parametrize(
    ("units", "complaint"),
    [
        ((), "the matrix of default has no units; name at least one"),
        (("a", " "), "has no units"),
        (tuple("abcdefg"), "has 128 combinations; take units out, 64 is most"),
    ],
)
def test_a_matrix_that_makes_no_sense(units: tuple[str, ...], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        Matrix(units=units).expressions()


def test_a_suite_lists_combinations_before_its_matrix(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('units = ["a", "b"]\nseeds = [3]\n[matrix]\nunits = ["c"]\n[settings.schedule]\nsteps = 4\n')
    suite = read_suite(str(path))
    assert suite.expressions() == ["a", "b", "default", "default+c"]
    assert (suite.seeds, suite.repeats, suite.settings) == ((3,), 3, {"schedule": {"steps": 4}})


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("unit = 1", "unknown field 'unit'; did you mean 'units'"),
        ("repeats = -1", "repeats = -1: input should be greater than or equal to 0"),
        ("seeds = [-5]", "seeds.0 = -5: input should be greater than or equal to 0"),
        ("units = [", "cannot read the suite"),
        ("[matrix]\nunit = 1", "unknown field 'matrix.unit'; did you mean 'units'"),
    ],
)
def test_a_bad_suite_is_named(tmp_path: Path, content: str, complaint: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(content)
    with pytest.raises(InputError, match=complaint):
        read_suite(str(path))
    with pytest.raises(InputError, match="no combination to measure"):
        Suite().expressions()


@pytest.mark.parametrize("name", PACKAGED)
def test_packaged_suites_name_what_there_is(name: str, catalog: Catalog) -> None:
    suite = read_suite(name)
    assert suite.description
    for expression in suite.expressions():
        parse(expression, catalog)
    assert len(set(suite.expressions())) == len(suite.expressions())
    assert name in " ".join(str(option.help) for option in BENCH_EARLY)
    assert set(suite.settings) <= set(catalog.units)
    assert find_suite(f"benchmarks/suites/{name}.toml").name == f"{name}.toml"


def test_an_unknown_suite_has_a_near_one() -> None:
    assert "quick" in PACKAGED
    with pytest.raises(InputError, match="no suite quik; did you mean 'quick'"):
        read_suite("quik")


def test_the_same_expression_twice_has_two_names() -> None:
    assert named(["a", "a + b", "a"]) == {"a": "a", "a + b": "a + b", "a #2": "a"}
