"""State dicts rewritten in the quantised forms of the field, for files of tiny networks."""

from __future__ import annotations

import torch
from torch import Tensor

State = dict[str, Tensor]
LARGEST = {torch.float8_e4m3fn: 448.0, torch.float8_e5m2: 57344.0, torch.int8: 127.0}


def is_matrix_of_a_block(name: str, tensor: Tensor) -> bool:
    """What quantised files of Wan usually quantise."""
    return name.startswith("blocks.") and name.endswith(".weight") and tensor.ndim == 2


def scaled(
    state: State, dtype: torch.dtype = torch.float8_e4m3fn, *, rows: bool = False, suffix: str = "scale_weight"
) -> State:
    """Matrices in the blocks as 8-bit numbers with a scale for each, or for each output."""
    made: State = {"scaled_fp8": torch.empty(0, dtype=dtype)} if suffix == "scale_weight" else {}
    for name, tensor in state.items():
        if not is_matrix_of_a_block(name, tensor):
            made[name] = tensor
            continue
        weight = tensor.float()
        largest = weight.abs().amax(dim=1, keepdim=True) if rows else weight.abs().max()
        scale = largest / LARGEST[dtype]
        numbers = weight / scale
        made[name] = (numbers if dtype.is_floating_point else numbers.round()).to(dtype)
        made[f"{name.removesuffix('.weight')}.{suffix}"] = scale
    return made


def raw(state: State, dtype: torch.dtype = torch.float8_e4m3fn) -> State:
    """Every matrix cast to fp8."""
    return {name: tensor.to(dtype) if tensor.ndim == 2 else tensor for name, tensor in state.items()}


def dense(state: State) -> State:
    """What such a state means, float32."""
    made: State = {}
    for name, tensor in state.items():
        layer = name.removesuffix(".weight")
        scale = next(
            (state[key] for end in ("scale_weight", "weight_scale") if (key := f"{layer}.{end}") in state), None
        )
        if name.endswith(".weight") and scale is not None:
            made[name] = tensor.float() * scale
        elif not name.endswith(("scale_weight", "weight_scale", "scaled_fp8")):
            made[name] = tensor.float()
    return made
