"""Packages that break in every way that they can: each is named in one line, and the rest works."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from omniavatar.plugins import discover
from omniavatar.sdk import API
from tests.cli.conftest import SMALL, Omni
from tests.training.scenes import Stripes

Install = Callable[[str, str], None]
HEAD = """
from pathlib import Path
from omniavatar.hookspecs import hookimpl
from omniavatar.engine.unit import PipelineUnit
from omniavatar.units import Euler

"""
SPARKLE = '''
class Sparkle(PipelineUnit):
    """Adds stars."""
    name = "sparkle"
    @hookimpl
    def end_window(self, window): ...
'''
UNITS = """
@hookimpl
def omni_units():
    return [{}]
"""
COMMANDS = """
@hookimpl
def omni_commands(cli):
    @cli.command("{}")
    def command():
        print("mine")
"""
TABLE = """
@hookimpl
def omni_checkpoints():
    return [Path(__file__).with_name("{}.toml")]
"""

LEFT_OUT = {
    "a missing import": (
        "import no_such_module_anywhere",
        "ModuleNotFoundError: No module named 'no_such_module_anywhere'",
    ),
    "a syntax error": ("def broken(:", "SyntaxError: invalid syntax"),
    "an exit": ("raise SystemExit('no GPU here')", "SystemExit: no GPU here"),
    "a misspelt argument of a hook": (
        HEAD + "@hookimpl\ndef omni_commands(app): ...",
        "Argument(s) {'app'} are declared in the hookimpl but can not be found in the hookspec",
    ),
    "a hook that does not exist": (HEAD + "@hookimpl\ndef omni_unit(): ...", "unknown hook 'omni_unit'"),
    "a hook without its mark": (
        HEAD + COMMANDS.format("wave") + "\ndef omni_units(): ...",
        "PluginError: its omni_units is not marked with @hookimpl",
    ),
    "no hook at all": ("def units(): ...", "PluginError: it has none of the hooks omni_units, omni_presets, "),
    "a panic": ("class Panic(BaseException): ...\nraise Panic('at the disco')", "Panic: at the disco"),
    "a later API": (
        f"OMNIAVATAR_API = {API + 1}" + HEAD + COMMANDS.format("wave"),
        f"PluginError: it is written for API {API + 1}, and this omniavatar has API {API}; upgrade omniavatar, or",
    ),
    "an earlier API": (
        f"OMNIAVATAR_API = {API - 1}" + HEAD + COMMANDS.format("wave"),
        f"PluginError: it is written for API {API - 1}, and this omniavatar has API {API}; upgrade it",
    ),
    "an API that is no number": (
        "OMNIAVATAR_API = '1'" + HEAD + COMMANDS.format("wave"),
        "PluginError: its OMNIAVATAR_API is '1' and not a number such as 1",
    ),
    "an endless complaint": ("raise ValueError('no' * 10_000)", "nono..."),
}
"""By fault, the module and what is said of it when anything is done: nothing of the package is used."""

UNIT_FAULTS = {
    "a unit that fails to import": (
        HEAD + "@hookimpl\ndef omni_units():\n    import no_such_module_anywhere",
        "ModuleNotFoundError: No module named 'no_such_module_anywhere'",
    ),
    "a unit whose name is taken": (
        HEAD + UNITS.format("Euler"),
        "unit 'euler' exists already; it was left out",
    ),
    "a misspelt argument of a unit's hook": (
        HEAD + SPARKLE.replace("window)", "chunk)") + UNITS.format("Sparkle"),
        "unit 'sparkle': its end_window takes 'chunk'; the hook is end_window(window); it was left out",
    ),
    "a misspelt hook of a unit": (
        HEAD + SPARKLE.replace("end_window", "end_windows") + UNITS.format("Sparkle"),
        "unit 'sparkle': there is no hook 'end_windows'; did you mean 'end_window'?; it was left out",
    ),
    "a unit without a name": (
        HEAD + SPARKLE.replace('name = "sparkle"', "") + UNITS.format("Sparkle"),
        "unit Sparkle has no name for plan expressions, but None; it was left out",
    ),
    "roles that are none": (
        HEAD + SPARKLE + "    roles = None\n" + UNITS.format("Sparkle"),
        "unit 'sparkle': its roles are None and not names in a tuple, such as ('frames',); it was left out",
    ),
    "a text for a list of names": (
        HEAD + SPARKLE + "    needs = ('frames')\n" + UNITS.format("Sparkle"),
        "unit 'sparkle': its needs are 'frames' and not names in a tuple, such as ('frames',); it was left out",
    ),
    "conflicts without a reason": (
        HEAD + SPARKLE + "    conflicts = ('audio',)\n" + UNITS.format("Sparkle"),
        "unit 'sparkle': its conflicts are ('audio',) and not names with reasons, such as {'audio': ",
    ),
    "settings that are none": (
        HEAD + SPARKLE + "    Settings = dict\n" + UNITS.format("Sparkle"),
        "unit 'sparkle': its Settings are <class 'dict'> and no class derived from UnitSettings; it was left out",
    ),
    "a setting of an unknown type": (
        HEAD
        + SPARKLE
        + "    class Settings(PipelineUnit.Settings):\n        size: 'Size' = 1\n"
        + UNITS.format("Sparkle"),
        "unit 'sparkle': its Settings have a field of a type that does not exist; it was left out",
    ),
    "something that is no unit": (HEAD + UNITS.format("dict"), "<class 'dict'> is not a PipelineUnit"),
    "units that are no list": (
        HEAD + "@hookimpl\ndef omni_units():\n    return Euler",
        "TypeError: 'type' object is not iterable",
    ),
    "presets that are a list": (
        HEAD + "@hookimpl\ndef omni_presets():\n    return ['default']",
        "TypeError: omni_presets gives ['default'] and no plan expressions by name",
    ),
    "a preset that is a number": (
        HEAD + "@hookimpl\ndef omni_presets():\n    return {'mine': 4}",
        "TypeError: omni_presets gives 'mine': 4, which is no name and plan expression",
    ),
    "a preset that no expression can name": (
        HEAD + "@hookimpl\ndef omni_presets():\n    return {'my own': 'default'}",
        "TypeError: omni_presets gives 'my own': 'default', which is no name and plan expression",
    ),
    "a preset whose name is taken": (
        HEAD + "@hookimpl\ndef omni_presets():\n    return {'default': 'euler'}",
        "preset 'default' exists already; it was left out",
    ),
}


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "1000")


def line_of(plugin: str, listed: str) -> str:
    """The line of a plugin in `omni plugins list`."""
    (line,) = [line for line in listed.splitlines() if line.startswith(f"{plugin} ")]
    return line


@pytest.mark.slow
@pytest.mark.parametrize(("source", "reason"), LEFT_OUT.values(), ids=LEFT_OUT.keys())
def test_a_package_that_cannot_be_used_is_left_out(
    omni: Omni, install: Install, tmp_path: Path, source: str, reason: str
) -> None:
    install("omniavatar_broken", source)
    outcome = omni("units", "list")
    assert outcome.code == 0
    assert "teacache" in outcome.out
    (said,) = outcome.err.splitlines()
    assert said.startswith("omni: plugin 'omniavatar_broken' is left out: ")
    assert reason in said
    line = line_of("omniavatar_broken", omni("plugins", "list").out)
    assert line.split()[1:3] == ["1.2", str(tmp_path / "site")], "no API, since it is not in use"
    assert "left out: " in line
    assert reason in line


@pytest.mark.slow
@pytest.mark.parametrize(("source", "reason"), UNIT_FAULTS.values(), ids=UNIT_FAULTS.keys())
def test_what_is_broken_in_a_package_is_left_out(omni: Omni, install: Install, source: str, reason: str) -> None:
    install("omniavatar_broken", source + COMMANDS.format("wave"))
    for command in (("units", "list"), ("run", "--help"), ("units", "plan", "default+teacache")):
        outcome = omni(*command)
        assert outcome.code == 0
        (said,) = outcome.err.splitlines()
        assert said.startswith(f"omni: plugin 'omniavatar_broken': {reason}")
    assert omni("wave").out == "mine\n", "the rest of the package works"
    line = line_of("omniavatar_broken", omni("plugins", "list").out)
    assert "omni_commands" in line
    assert f"active: {reason}" in line


def test_a_video_is_made_beside_broken_packages(omni: Omni, install: Install, folder: Path) -> None:
    install("omniavatar_broken", LEFT_OUT["a missing import"][0])
    install("omniavatar_twice", UNIT_FAULTS["a unit whose name is taken"][0])
    install("omniavatar_tables", HEAD + TABLE.format("missing"))
    outcome = omni("run", *SMALL, "-o", "talk.mp4")
    assert outcome.code == 0
    assert (folder / "talk.mp4").is_file()
    said = [line for line in outcome.err.splitlines() if line.startswith("omni: plugin")]
    assert [line.split("'")[1] for line in said] == ["omniavatar_broken", "omniavatar_twice", "omniavatar_tables"]


def test_two_packages_with_one_unit_keep_the_first(omni: Omni, install: Install) -> None:
    install("omniavatar_one", HEAD + SPARKLE + UNITS.format("Sparkle"))
    install("omniavatar_two", HEAD + SPARKLE.replace("stars", "moons") + UNITS.format("Sparkle"))
    outcome = omni("units", "list")
    assert ("Adds stars." in outcome.out) != ("Adds moons." in outcome.out)
    (said,) = outcome.err.splitlines()
    assert said.endswith("unit 'sparkle' exists already; it was left out")


def test_two_units_that_claim_one_slot_are_refused_in_one_plan_only(omni: Omni, install: Install) -> None:
    sampler = SPARKLE + "    @hookimpl\n    def plan_steps(self, window): ...\n"
    install("omniavatar_sampler", HEAD + sampler + UNITS.format("Sparkle"))
    both = omni("run", "--units", "default+sparkle", *SMALL)
    assert both.code == 2
    assert both.error == "units 'schedule' and 'sparkle' are both schedules; leave one out with -schedule"
    assert omni("units", "plan", "default").code == 0


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        (None, "cannot be read: "),
        ("[[checkpoint", "cannot be read: "),
        ('[[checkpoint]]\nname = "mine"', "row 'mine': components: Field required"),
        (
            '[[checkpoint]]\nname = "wan-vae-2.1"\nhash = "ccc42284ea13e1ad04693284c7a09be6"\n'
            "[checkpoint.components.vae]",
            "both have a row with the hash 'ccc42284ea13e1ad04693284c7a09be6'",
        ),
    ],
    ids=["missing", "no TOML", "an incomplete row", "a checkpoint that is known"],
)
def test_a_broken_table_is_left_out(
    omni: Omni, install: Install, tmp_path: Path, table: str | None, reason: str
) -> None:
    install("omniavatar_table", HEAD + TABLE.format("mine"))
    if table is not None:
        (tmp_path / "site" / "mine.toml").write_text(table)
    outcome = omni("models", "list")
    assert outcome.code == 0
    assert "Wan2.1" in outcome.out
    (said,) = outcome.err.splitlines()
    assert said.startswith("omni: plugin 'omniavatar_table': checkpoint table")
    assert reason in said
    assert said.endswith("; it was left out")
    assert reason in line_of("omniavatar_table", omni("plugins", "list").out)


@pytest.mark.parametrize("answer", ["'mine.toml'", "['mine.toml']", "[['mine.toml']]", "Path('mine.toml')"])
def test_tables_that_are_no_list_of_paths_are_left_out(omni: Omni, install: Install, answer: str) -> None:
    install("omniavatar_table", HEAD + f"@hookimpl\ndef omni_checkpoints():\n    return {answer}")
    outcome = omni("models", "list")
    assert outcome.code == 0
    assert "Wan2.1" in outcome.out
    (said,) = outcome.err.splitlines()
    assert said.startswith("omni: plugin 'omniavatar_table': TypeError: omni_checkpoints gives ")
    assert said.endswith(" and no list of pathlib.Path or of files() of importlib")


FORMAT = """
from omniavatar.checkpoints.formats import Format

class Mine(Format):
    name, suffixes = "mine", (".mine",)
    def read_header(self, file): ...
    def read(self, file, names, device): ...

@hookimpl
def omni_formats():
    return [{}]
"""


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("3", "3 is no Format of omniavatar.checkpoints.formats; it was left out"),
        ("Format()", "format Format has no name, but None; it was left out"),
        (
            "type('Bare', (Format,), dict(name='bare', suffixes=('.bare',)))()",
            "format 'bare' has no read_header of",
        ),
        ("type('Odd', (Mine,), dict(suffixes='.odd'))()", "format 'mine' needs suffixes such as ('.gguf',) in small"),
        ("type('Odd', (Mine,), dict(magic='MINE'))()", "format 'mine' needs bytes as its magic, not 'MINE'; it was"),
        ("type('Odd', (Mine,), dict(suffixes=('.pt',)))()", "format 'mine' has a name or an ending of 'pickle', which"),
        ("Mine(), Mine()", "format 'mine' has a name or an ending of 'mine', which exists already; it was left out"),
    ],
)
def test_a_format_that_does_not_fit_is_left_out(omni: Omni, install: Install, answer: str, reason: str) -> None:
    install("omniavatar_mine", HEAD + FORMAT.format(answer))
    outcome = omni("models", "list")
    assert outcome.code == 0
    assert "Wan2.1" in outcome.out
    (said,) = outcome.err.splitlines()
    assert said.startswith(f"omni: plugin 'omniavatar_mine': {reason}")


def test_a_command_that_is_none_is_left_out(omni: Omni, install: Install) -> None:
    install("omniavatar_odd", HEAD + "@hookimpl\ndef omni_commands(cli):\n    cli.commands['odd'] = 3")
    outcome = omni("--help")
    assert outcome.code == 0
    reason = "command 'odd' is 3 and no click.Command; it was left out"
    assert outcome.err == f"omni: plugin 'omniavatar_odd': {reason}\n"
    assert f"active: {reason}" in line_of("omniavatar_odd", omni("plugins", "list").out)


@pytest.mark.parametrize("place", ["{}", HEAD + "@hookimpl\ndef omni_units():\n    {}"], ids=["import", "hook"])
def test_a_signal_that_ends_the_program_is_no_fault_of_a_package(omni: Omni, install: Install, place: str) -> None:
    install("omniavatar_slow", place.format("from omniavatar.errors import Ended; raise Ended(143)"))
    outcome = omni("units", "list")
    assert (outcome.code, outcome.error) == (143, "ended by SIGTERM")


def test_a_command_that_exists_is_left_out(omni: Omni, install: Install) -> None:
    install("omniavatar_greedy", HEAD + COMMANDS.format("run"))
    install("omniavatar_waving", HEAD + COMMANDS.format("wave"))
    install("omniavatar_waving_too", HEAD + COMMANDS.format("wave"))
    outcome = omni("units", "list")
    assert sorted(outcome.err.splitlines())[0] == (
        "omni: plugin 'omniavatar_greedy': command 'run' exists already; it was left out"
    )
    assert outcome.err.count("command 'wave' exists already; it was left out") == 1
    assert "portrait" in omni("run", "--help").out


def test_a_command_hook_that_fails(omni: Omni, install: Install) -> None:
    install("omniavatar_failing", HEAD + "@hookimpl\ndef omni_commands(cli):\n    raise RuntimeError('no display')")
    outcome = omni("units", "list")
    assert (outcome.code, outcome.err) == (0, "omni: plugin 'omniavatar_failing': RuntimeError: no display\n")


def test_two_packages_with_one_entry_point_both_work(omni: Omni, install: Install, tmp_path: Path) -> None:
    install("omniavatar_one", HEAD + COMMANDS.format("one"))
    install("omniavatar_two", HEAD + COMMANDS.format("two"))
    for name in ("omniavatar_one", "omniavatar_two"):
        entry_points = tmp_path / "site" / f"{name}-1.2.dist-info" / "entry_points.txt"
        entry_points.write_text(f"[omniavatar]\nsame = {name}\n")
    assert omni("one").out == omni("two").out == "mine\n"
    listed = [line for line in omni("plugins", "list").out.splitlines() if line.startswith("same")]
    assert [line.split()[-1] for line in listed] == ["active", "active"]


def test_a_generator_of_clips_that_does_not_fit_is_left_out(install: Callable[[str, str], None]) -> None:
    source = (
        "from omniavatar.hookspecs import hookimpl\nfrom tests.training.scenes import Stripes\n"
        "@hookimpl\ndef omni_clips():\n    return [Stripes, Stripes, 3]\n"
    )
    install("omniavatar_stripes", source)
    plugins = discover()
    assert plugins.clip_generators()["stripes"] is Stripes
    assert [failure.reason for failure in plugins.failures] == [
        "clip generator 'stripes' exists already; it was left out",
        "3 is not a ClipGenerator; it was left out",
    ]
