"""One case of a directory of weight files, run through the product: `run(case, folder)` raises `Failed`."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional

from omniavatar.checkpoints import Registry
from omniavatar.checkpoints.files import find_checkpoints
from omniavatar.checkpoints.formulas import read_settings
from omniavatar.checkpoints.headers import read_header
from omniavatar.checkpoints.loading import load_network, read_tensors, stored_tensors
from omniavatar.checkpoints.registry import Component, Detection, UnknownCheckpoint
from omniavatar.errors import OmniError
from omniavatar.plugins import discover
from tests.formats.cases import Case, Linear, Tolerance, build

Tensors = dict[str, Tensor]
LONGEST = 1000
"""Letters of a message."""


class Failed(Exception):
    """The product does something else than the case says."""


@lru_cache
def registry() -> Registry:
    return discover().registry()


def run(case: Case, folder: Path) -> None:
    """Run a case whose files are relative to `folder`; raises Failed, or whatever the product raises."""
    for path in [*case.files, *filter(None, (case.base, case.expected, case.keys, case.expected_rounded))]:
        if not (folder / path).exists():
            raise Failed(f"the case names {path}, which is not there")
    with tempfile.TemporaryDirectory() as place:
        RUNNERS[case.kind](case, folder, Path(place))


# --- tensors


def dense(value: Any) -> Tensor:
    """A weight as plain numbers; packed ones in float32."""
    tensor: Tensor = value if isinstance(value, Tensor) else value.dense()
    return tensor


def stored(file: Path) -> Tensors:
    """The tensors of a safetensors file."""
    with safe_open(file, framework="pt") as content:
        return {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118 - no mapping


def read_all(path: Path) -> Tensors:
    """Every tensor of what a path names, dense, under the names of the file."""
    result: Tensors = {}
    for files in find_checkpoints(path, registry().formats.suffixes):
        header = read_header(files, registry().formats)
        for name, value in read_tensors(header.tensors, device="cpu", dtype=None):
            result[name] = dense(value)
    return result


def read_component(component: Component) -> Tensors:
    """The tensors of a component, dense, under official names."""
    state = component.state()
    return {component.spec.file_name(name): dense(value) for name, value in state.items()}


def bounds(tolerance: Tolerance) -> tuple[float, float]:
    """atol and rtol: as numbers, or from the words "exact" and "atol NUMBER"."""
    if tolerance.atol is not None or tolerance.rtol is not None:
        return tolerance.atol or 0.0, tolerance.rtol or 0.0
    first = tolerance.compare.partition(";")[0]
    number = re.search(r"atol ([0-9.e+-]+)", first)
    if number:
        return float(number[1]), 0.0
    if first.startswith(("exact", "equal after rounding the expected values to bf16")):
        return 0.0, 0.0
    raise Failed(f"no such comparison is known: '{tolerance.compare}'")


def check_near(name: str, found: Tensor, expected: Tensor, tolerance: Tolerance) -> None:
    """Same shape, and as near as the case says."""
    if "rounding the expected values to bf16" in tolerance.compare:
        expected = expected.to(torch.bfloat16)
    if found.shape != expected.shape:
        raise Failed(f"{name} has the shape {list(found.shape)}, expected {list(expected.shape)}")
    atol, rtol = bounds(tolerance)
    one, other = found.double(), expected.double()
    if atol == rtol == 0.0:
        if not torch.equal(one, other):
            raise Failed(f"{name} differs by up to {float((one - other).abs().max()):.3g}; it should be exact")
        return
    beyond = (one - other).abs() - (atol + rtol * other.abs())
    if not bool((beyond <= 0).all()):  # also where there are no numbers
        raise Failed(f"{name} differs by up to {float((one - other).abs().max()):.3g}, allowed are {atol} + {rtol} x")


def check_all(found: Tensors, expected: Tensors, tolerance: Tolerance, own: frozenset[str] = frozenset()) -> None:
    """The same names, each near its expected value. `own`: names of the file, which may come as they are."""
    besides = found.keys() - expected.keys() - own
    for title, names in (("lacks", expected.keys() - found.keys()), ("has besides", besides)):
        if names:
            raise Failed(f"{title} {len(names)} tensors, such as {min(names)}")
    for name, value in expected.items():
        check_near(name, found[name], value, tolerance)


# --- naming


def run_naming(case: Case, folder: Path, place: Path) -> None:
    """Every way to name the files gives the roles of the case, with the expected tensors under official names."""
    roles = [role.strip() for role in case.args.role.split(",")]
    if case.args.tree is None:
        opened = [folder / path for path in case.files]
    else:
        root = build(case.args.tree, folder, place)
        opened = [root / path for path in case.args.open]
    if "every file is recognised" in case.tolerance.compare:
        for path in opened:
            check_tree(case, path, roles, [link.path for link in case.args.tree.links] if case.args.tree else [])
        return
    expected = stored(folder / str(case.expected))
    for path in opened:
        by_role = components(registry().detect_all(path))
        if sorted(by_role) != sorted(roles):
            raise Failed(f"{path.name} provides {', '.join(by_role) or 'nothing'} instead of {', '.join(roles)}")
        if case.args.wrapper is not None:
            check_wrapper(path, by_role.values(), case.args.wrapper)
        prefixed = case.args.expected_prefix is not None
        for role, component in by_role.items():
            theirs = weights_of(expected, f"{role}." if prefixed else "")
            own = frozenset(info.name for info in component.tensors.values() if hasattr(info, "name"))
            check_all(read_component(component), theirs, case.tolerance, own)
            check_config(component, case.args.config)
            check_loads(component, weights_of(expected, "check.", keep=False))


def check_tree(case: Case, path: Path, roles: list[str], files: list[str]) -> None:
    """A scan finds every file, and what they are together is what the case says."""
    verdicts = list(registry().scan(path))
    bad = [str(verdict.error) for verdict in verdicts if verdict.error is not None]
    if bad:
        raise Failed(bad[0])
    detections = [verdict.detection for verdict in verdicts if verdict.detection is not None]
    found = {component.role for detection in detections for component in detection.components}
    seen = {str(file.relative_to(path)) for detection in detections for file in detection.files}
    # A case may name a role whose files its tree leaves out.
    if not found <= set(roles) or seen != set(files):
        raise Failed(f"found {', '.join(sorted(found))} in {len(seen)} of {len(files)} files")


def components(detections: Iterable[Detection]) -> dict[str, Component]:
    """By role; two for one role are a failure. What follows the transformer counts as the transformer."""
    by_role: dict[str, Component] = {}
    for detection in detections:
        parts = [part for part in detection.components if not part.spec.follows]
        for part in parts:
            if part.role in by_role:
                raise Failed(f"two components for the role {part.role}")
            by_role[part.role] = joined_with_followers(part, detection)
    return by_role


def joined_with_followers(part: Component, detection: Detection) -> Component:
    """The transformer with the tensors of what follows it, for cases that count both as one network."""
    from dataclasses import replace

    followers = [other for other in detection.components if other.spec.follows]
    if part.role != "dit" or not followers:
        return part
    tensors = {name: info for one in (part, *followers) for name, info in one.tensors.items()}
    return replace(part, tensors=tensors, files=part.files)


def weights_of(expected: Tensors, prefix: str, *, keep: bool = True) -> Tensors:
    """The expected tensors below a prefix, without it; without a prefix all but the checks."""
    if prefix == "":
        return {name: value for name, value in expected.items() if not name.startswith("check.")}
    found = {name.removeprefix(prefix): value for name, value in expected.items() if name.startswith(prefix)}
    if keep and not found:
        raise Failed(f"nothing is expected below '{prefix}'")
    return found


def check_wrapper(path: Path, parts: Iterable[Component], wrapper: str) -> None:
    for part in parts:
        if not all(info.name.startswith(f"{wrapper}.") for info in part.tensors.values()):
            raise Failed(f"{path.name}: the tensors are not those of '{wrapper}'")


def check_config(component: Component, config: Mapping[str, Any]) -> None:
    for key, value in config.items():
        if component.config.get(key) != value:
            raise Failed(f"{key} is {component.config.get(key)}, expected {value}")


def check_loads(component: Component, checks: Tensors) -> None:
    """The network can be built and filled; an audio encoder computes the expected hidden states."""
    try:
        network: Any = load_network([component], overrides=heads(component))
    except OmniError as error:
        if component.spec.network is not None and "follow" not in str(error) and not followers_in(component):
            raise Failed(f"it cannot be loaded: {error}") from error
        return
    if not checks:
        return
    states = network.hidden_states(network.conv_features(checks["input"]))
    for number, state in enumerate(states):
        if not torch.allclose(state, checks[f"hidden_{number}"], atol=1e-5, rtol=0):
            raise Failed(f"the hidden state {number} differs")


def followers_in(component: Component) -> bool:
    return any(name.startswith("vace_") for name in component.tensors)


def heads(component: Component) -> dict[str, Any]:
    """In the tiny networks without a config.json the number of heads plays no part; any that divides will do."""
    config = component.config
    if "num_heads" in config and config["num_heads"] < 1:
        return {"num_heads": max(1, config["dim"] // 8)}
    return {}


# --- quantised and GGUF


def run_quantised(case: Case, folder: Path, place: Path) -> None:
    """The quantised layers are dense as expected, all other weights are those of the file bit for bit."""
    expected = stored(folder / str(case.expected))
    weights = {name: value for name, value in expected.items() if not name.startswith("linear.")}
    path = folder / case.files[0]
    found, component = (dict(read_all(path)), None) if case.partial else official(path, case.kind)
    for name, value in weights.items():
        if name not in found:
            raise Failed(f"lacks {name}")
        check_near(name, plain_weight(found[name], value.shape).float(), value.float(), case.tolerance)
    others = {name: value for name, value in found.items() if name not in weights}
    raw = plain_tensors(path, case.args.prefix)
    for name, value in others.items():
        if name not in raw and not case.args.unquantised:
            continue  # a case that does not count them may leave out weights
        if name not in raw:
            raise Failed(f"{name} is neither expected nor in the file")
        if not isinstance(value, Tensor) or value.dtype != raw[name].dtype or not torch.equal(value, raw[name]):
            raise Failed(f"{name}, which is not quantised, has other values than in the file")
    count = re.match(r"(?:the other )?(\d+) ", case.args.unquantised)
    if count and len(others) != int(count[1]):
        raise Failed(f"{len(others)} tensors that are not quantised; expected {count[1]}")
    if case.linear is not None:
        if component is None:
            raise Failed("its network is not recognised, so its layer cannot be run")
        levels = rounded_inputs(path, f"{case.args.prefix}{case.linear.layer}")
        check_linear(case.linear, component, found[f"{case.linear.layer}.weight"], expected, levels)


def official(path: Path, kind: str) -> tuple[dict[str, Any], Component | None]:
    """The weights of a file as they are stored, under official names where it is a whole network."""
    try:
        parts = [part for detection in registry().detect_all(path) for part in detection.components]
    except UnknownCheckpoint:
        if kind != "gguf":  # an adapter alone is no network that a table knows; its tensors have their own names
            raise
        return dict(read_all(path)), None
    found = {
        part.spec.file_name(name): weight for part in parts for name, weight in stored_tensors(part.tensors, "cpu")
    }
    return found, next((part for part in parts if part.spec.network is not None), None)


def plain_weight(weight: Any, shape: torch.Size) -> Tensor:
    """A weight dense, without padding, and without the factors of its layer's inputs, as the cases have it."""
    if isinstance(weight, Tensor):
        return weight
    parts = {name: part for name, part in weight.parts.items() if name != "pre_quant_scale"}
    return dense(weight.with_parts(parts).cut(tuple(shape)))


LEVELS = {"int8_tensorwise": 127, "asym_w4a8_int8": 127, "convrot_w4a4": 7}
"""Formats in which the reference also rounds the input of a layer, token by token: the largest whole number."""


def rounded_inputs(path: Path, layer: str) -> int | None:
    """The largest number to which the reference rounds the inputs of a layer; None: it takes them as they are."""
    about = metadata(path).get("_quantization_metadata") if path.is_file() else None
    described = json.loads(about)["layers"].get(layer) if about else None
    if described is None and path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as content:
            name = f"{layer}.comfy_quant"
            described = json.loads(bytes(content.get_tensor(name).tolist())) if name in content.keys() else None  # noqa: SIM118
    return LEVELS.get(described["format"]) if described else None


def check_linear(linear: Linear, component: Component, weight: Any, expected: Tensors, levels: int | None) -> None:
    """The layer of the loaded network, given x, makes y.

    Where the reference rounds its inputs, which the product leaves as they are, y is what the dense weight makes of
    rounded ones, and the layer makes what the dense weight makes of x.
    """
    from omniavatar.checkpoints.formats.packing import rotation

    layer = load_network([component], overrides=heads(component)).get_submodule(linear.layer)
    x, y = (expected[f"linear.{linear.layer}.{which}"].float() for which in "xy")
    made = layer(x).float()
    if levels is None:
        check_near(f"the output of {linear.layer}", made, y, linear.tolerance)
        return
    matrix = dense(weight.cut((y.shape[-1], x.shape[-1])))
    bias = layer.get_parameter("bias").float()
    check_near(f"the output of {linear.layer}", made, functional.linear(x, matrix, bias), linear.tolerance)
    group = getattr(weight, "rotated", 0)
    if group:
        turned = rotation(group, torch.device("cpu"))
        x, matrix = ((one.unflatten(-1, (-1, group)) @ turned).flatten(-2) for one in (x, matrix))
    scale = x.abs().amax(dim=-1, keepdim=True) / levels
    rounded = (x / scale).round() * scale
    check_near(f"{linear.layer} of rounded inputs", functional.linear(rounded, matrix, bias), y, linear.tolerance)


def plain_tensors(path: Path, prefix: str) -> Tensors:
    """What lies unquantised in a file, read without the product; of GGUF files what is F32, F16 or BF16."""
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if path.suffix == ".gguf":
        return dict(gguf_tensors(path))
    return {name.removeprefix(prefix): value for file in files for name, value in stored(file).items()}


def gguf_tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    from gguf import GGMLQuantizationType, GGUFReader

    for tensor in GGUFReader(path).tensors:
        shape = [int(size) for size in reversed(tensor.shape)]
        data = torch.from_numpy(tensor.data.copy())
        if tensor.tensor_type in (GGMLQuantizationType.F32, GGMLQuantizationType.F16):
            yield tensor.name, data.reshape(shape)
        elif tensor.tensor_type == GGMLQuantizationType.BF16:
            yield tensor.name, data.view(torch.bfloat16).reshape(shape)


# --- LoRA


def run_lora(case: Case, folder: Path, place: Path) -> None:
    """The merged weights in float32, the untouched ones, and the report about every key of every file."""
    base = read_all(folder / str(case.base))
    if len(case.args.strengths) != len(case.files):
        raise Failed(f"{len(case.args.strengths)} strengths for {len(case.files)} files")
    merged = {name: value.float() for name, value in base.items()}
    reports: dict[str, Mapping[str, Any]] = {}
    for path, strength in zip(case.files, case.args.strengths, strict=True):
        merged, report = applied(folder / path, merged, strength)
        reports[file_of(folder / path).relative_to(folder).as_posix()] = report
    expected = stored(folder / str(case.expected))
    for name, value in merged.items():
        if name in expected:
            check_near(name, value, expected[name].float(), case.tolerance)
        elif not torch.equal(value, base[name].float()):
            raise Failed(f"{name} has changed")
    if expected.keys() - merged.keys():
        raise Failed(f"there is no weight {min(expected.keys() - merged.keys())}")
    if case.keys is not None:
        check_report(reports, json.loads((folder / case.keys).read_text(encoding="utf-8")))
    if case.expected_rounded is not None:
        check_rounded(merged, stored(folder / case.expected_rounded))


def file_of(path: Path) -> Path:
    """The file of a LoRA, which may be named by its folder."""
    ((file,),) = find_checkpoints(path, registry().formats.suffixes)
    return file


def applied(path: Path, weights: Tensors, strength: float) -> tuple[Tensors, Mapping[str, Any]]:
    """A LoRA on float32 weights, and what its report says of its keys."""
    from omniavatar.checkpoints.lora import read_lora

    file = file_of(path)
    header = read_header((file,), registry().formats)
    state = {name: dense(value) for name, value in read_tensors(header.tensors, device="cpu", dtype=None)}
    settings = read_settings(path / "adapter_config.json") if path.is_dir() else {}
    lora = read_lora(state, metadata=metadata(file), settings=settings, name=str(file))
    fit = lora.fit({name: tuple(value.shape) for name, value in weights.items()})
    changed = dict(weights)
    for name, changes in fit.changes.items():
        for change in changes:
            changed[name] = change.apply(changed[name], strength)
    return changed, fit.report


def metadata(file: Path) -> dict[str, str]:
    if file.suffix != ".safetensors":
        return {}
    with safe_open(file, framework="pt") as content:
        return dict(content.metadata() or {})


def check_report(reports: Mapping[str, Mapping[str, Any]], expected: Mapping[str, Mapping[str, Any]]) -> None:
    """Every key of every file goes where the case says, or is left out with a reason."""
    for file, keys in expected.items():
        if file not in reports:
            raise Failed(f"there is no report about {file}")
        report = reports[file]
        different = keys.keys() ^ report.keys()
        if different:
            raise Failed(f"the report of {file} differs in {len(different)} keys, such as {min(different)}")
        for key, entry in keys.items():
            found = report[key]
            if entry.keys() == {"to"}:
                if getattr(found, "to", None) != entry["to"]:
                    raise Failed(f"{key} goes to {getattr(found, 'to', None)}, expected {entry['to']}")
            elif entry.keys() == {"left_out"}:
                if not getattr(found, "reason", ""):
                    raise Failed(f"{key} is not left out with a reason; expected: {entry['left_out']}")
            else:
                raise Failed(f"the entry of {key} is not understood: {sorted(entry)}")


def check_rounded(merged: Tensors, rounded: Tensors) -> None:
    """After one rounding to bf16: the same, or the next number of that type."""
    for name, value in rounded.items():
        found = merged[name].to(torch.bfloat16)
        apart = (found.view(torch.int16).int() - value.to(torch.bfloat16).view(torch.int16).int()).abs()
        if int(apart.max()) > 1:
            raise Failed(f"{name} is rounded otherwise, by {int(apart.max())} numbers of bf16")


# --- broken


def run_broken(case: Case, folder: Path, place: Path) -> None:
    """One line that says what it must; a control works."""
    if case.args.tree is not None:
        root = build(case.args.tree, folder, place)
        opened = [root / path for path in case.args.open]
    else:
        opened = [folder / path for path in case.files]
    try:
        if case.base is not None:
            apply_all(case, folder, opened)
        elif case.args.tree is not None and "." in case.args.open:
            check_circle(opened)
            return
        else:
            for path in opened:
                use(path, must_work=case.error is None or case.also_acceptable is not None)
    except OmniError as error:
        if case.error is None or is_report(case):
            raise Failed(f"it should work: {error}") from error
        if isinstance(error, UnknownCheckpoint) and "fit none" not in case.error:
            raise Failed(f"its fault is not seen; it is only unknown: {error}") from error
        check_message(str(error), case, opened)
    except SystemExit as error:
        raise Failed("code of the file has run") from error
    else:
        if case.error is not None and case.also_acceptable is None and not is_report(case):
            raise Failed(f"no error; it should say: {case.error}")


def is_report(case: Case) -> bool:
    """A case among the broken ones that must work, with a line in the report."""
    return "not an error" in case.note.lower()


def apply_all(case: Case, folder: Path, opened: Iterable[Path]) -> None:
    base = {name: value.float() for name, value in read_all(folder / str(case.base)).items()}
    for path, strength in zip(opened, case.args.strengths, strict=True):
        merged, report = applied(path, base, strength)
        if is_report(case):
            changed = [name for name, value in merged.items() if not torch.equal(value, base[name])]
            left_out = [key for key, entry in report.items() if getattr(entry, "reason", "")]
            if not changed or not left_out:
                raise Failed(f"{len(changed)} weights change and {len(left_out)} keys are reported as left out")


def use(path: Path, *, must_work: bool) -> None:
    """Read all tensors of a file; where it should not work, as somebody would who wants its network."""
    tensors = read_all(path)
    if must_work and tensors:
        return
    for detection in registry().detect_all(path):
        for component in detection.components:
            read_component(component)


def check_circle(opened: Iterable[Path]) -> None:
    """A scan ends, and finds each file once."""
    for path in opened:
        found = [file.resolve() for verdict in registry().scan(path) for file in (verdict.path,)]
        if not found or len(found) != len(set(found)):
            raise Failed(f"a scan finds {len(found)} files, {len(set(found))} different ones")


WORDS = re.compile(r"[A-Za-z.]*[a-z]_[a-z_A-Z0-9]+|\._[a-z]+|[a-z]+\.[a-z]+")
"""What in a description can only be a name: it stands in the message as well."""


def check_message(text: str, case: Case, opened: Iterable[Path]) -> None:
    """One short line that names the file, and the numbers and names of the description."""
    if "install omniavatar-" in text:
        raise Failed(f"the package that reads the file is not installed: {text}")
    if "\n" in text or len(text) > LONGEST:
        raise Failed(f"the message is not one short line: {text[:200]}")
    if not any(part in text for path in opened for part in (path.name, path.stem)):
        raise Failed(f"the message does not name the file: {text}")
    wanted = case.error or ""
    in_brackets = re.findall(r"\(([^)]*)\)", wanted)
    numbers = [number for group in in_brackets for number in re.findall(r"\b\d+\b", group)]
    lacking = [number for number in numbers if not re.search(rf"\b{number}\b", text)]
    if lacking:
        raise Failed(f"the message lacks {', '.join(lacking)}: {text}")
    names = WORDS.findall(wanted)
    if names and not any(name in text for name in names):
        raise Failed(f"the message names none of {', '.join(names)}: {text}")


RUNNERS = {
    "lora_dialect": run_lora,
    "quantised": run_quantised,
    "gguf": run_quantised,
    "naming": run_naming,
    "broken": run_broken,
}
