"""Linear layers whose weights stay packed: as few bytes in memory as in the file, dense for the time of each use.

layer = PackedLinear(packed, linear.bias)      # packed: a PackedTensor
layer(x)                                       # x W^T + b in the type of x, with W made dense from its parts
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from omniavatar.models.packed_tensor import PackedTensor


class PackedLayer(nn.Module):
    """Base of linear layers that keep a packed weight in parameters of their own."""

    in_features: int
    out_features: int
    bias: nn.Parameter | None

    @staticmethod
    def kept(packed: PackedTensor) -> dict[str, Tensor]:
        """The tensors of a packed weight by the names of the layer's parameters."""
        raise NotImplementedError

    def packed(self) -> PackedTensor:
        """The weight as it is kept now."""
        raise NotImplementedError

    def dense_weight(self) -> Tensor:
        """The weight (out in), float32."""
        return self.packed().dense()

    def _take(self, packed: PackedTensor, bias: Tensor | None) -> None:
        self.out_features, self.in_features = packed.shape
        for name, part in self.kept(packed).items():
            self.register_parameter(name, nn.Parameter(part, requires_grad=False))
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    def extra_repr(self) -> str:
        """The sizes, as of `nn.Linear`."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


class PackedLinear(PackedLayer):
    """A linear layer whose weight, of any packing, is brought to the type of the input for each use.

    Its parameters are the parts of the weight, `weight_<part>`, so that what moves, streams or shards parameters finds
    them; single numbers have one dimension, as sharding needs.
    """

    def __init__(self, packed: PackedTensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self._form = packed.with_parts({})
        self._names = {part: f"weight_{part}" for part in packed.parts}
        self._scalars = frozenset(part for part, tensor in packed.parts.items() if not tensor.ndim)
        self._take(packed, bias)

    @staticmethod
    def kept(packed: PackedTensor) -> dict[str, Tensor]:
        return {
            f"weight_{part}": tensor.reshape(1) if not tensor.ndim else tensor for part, tensor in packed.parts.items()
        }

    def packed(self) -> PackedTensor:
        parts: dict[str, Tensor] = {}
        for part, name in self._names.items():
            tensor: Tensor = getattr(self, name)
            parts[part] = tensor.reshape(()) if part in self._scalars else tensor
        return self._form.with_parts(parts)

    def forward(self, x: Tensor) -> Tensor:
        """(... in_features) -> (... out_features)."""
        return functional.linear(x, self.packed().dense(x.dtype), None if self.bias is None else self.bias.to(x.dtype))


def is_linear(layer: nn.Module) -> bool:
    """Whether a module is a linear layer, plain or packed, and not of a class that uses its weight in its own way."""
    return type(layer) is nn.Linear or isinstance(layer, PackedLayer)
