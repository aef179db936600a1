"""Loss and gradients of a batch, launched kernel by kernel or replayed as one CUDA graph.

Small networks leave a GPU waiting for the program that launches its kernels; a graph launches all of a batch at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

Batch = Mapping[str, Tensor]
Loss = Callable[[Batch], Tensor]
Precision = Literal["fp32", "bf16"]


class Gradients:
    """Adds the gradients of a loss to those of the parameters; returns the loss.

    precision: of the arithmetic. part: what the loss is multiplied with.
    """

    def __init__(self, loss: Loss, parameters: Sequence[nn.Parameter], precision: Precision, part: float = 1.0) -> None:
        self.loss = loss
        self.parameters = parameters
        self.precision = precision
        self.part = part

    def __call__(self, batch: Batch) -> Tensor:
        return self.add(batch).detach()

    def add(self, batch: Batch) -> Tensor:
        """Forwards and backwards."""
        kind = self.parameters[0].device.type
        with torch.autocast(kind, torch.bfloat16, enabled=self.precision == "bf16", cache_enabled=False):
            loss = self.loss(batch) * self.part
        loss.backward()
        return loss

    def clear(self) -> None:
        """Begin a new sum."""
        for weight in self.parameters:
            weight.grad = None


@dataclass(frozen=True)
class Recording:
    """A graph, the tensors it reads and the loss it writes."""

    graph: torch.cuda.CUDAGraph
    batch: Batch
    loss: Tensor


class GraphedGradients(Gradients):
    """The same on CUDA as a graph, recorded for every shape of batch when it is first seen.

    The loss must be made of the batch's tensors and the weights alone, with no look at a value by the program.
    """

    WARM_UP = 3

    def __init__(self, loss: Loss, parameters: Sequence[nn.Parameter], precision: Precision, part: float = 1.0) -> None:
        super().__init__(loss, parameters, precision, part)
        self.recordings: dict[tuple[tuple[str, torch.Size], ...], Recording] = {}
        self.stream = torch.cuda.Stream()

    def __call__(self, batch: Batch) -> Tensor:
        shapes = tuple((name, value.shape) for name, value in batch.items())
        if shapes not in self.recordings:
            self.recordings[shapes] = self._record(batch)
        recording = self.recordings[shapes]
        for name, value in batch.items():
            recording.batch[name].copy_(value)
        recording.graph.replay()
        return recording.loss.clone()

    def clear(self) -> None:
        """Gradients stay where the graphs write them."""
        gradients = [weight.grad for weight in self.parameters if weight.grad is not None]
        if gradients:
            torch._foreach_zero_(gradients)

    def _record(self, batch: Batch) -> Recording:
        """Record a batch of this shape; the gradients stay as they were."""
        held = {name: value.clone() for name, value in batch.items()}
        for weight in self.parameters:
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
        before = [weight.grad.clone() for weight in self.parameters if weight.grad is not None]
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            for _ in range(self.WARM_UP):
                self.add(held)
        torch.cuda.current_stream().wait_stream(self.stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self.stream):
            loss = self.add(held).detach()
        for weight, gradient in zip(self.parameters, before, strict=True):
            if weight.grad is not None:
                weight.grad.copy_(gradient)
        return Recording(graph, held, loss)
