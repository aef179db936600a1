"""Attention over tokens that are spread over ranks: Ulysses (arXiv:2309.14509) and ring (arXiv:2310.01889).

Both make a strategy for q, k, v (b s heads head_dim) that hold one part of the sequence; it gives that part of the
result. Padding at the end of the sequence is cut off before any attention is computed.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional

from omniavatar.distributed.groups import Group, Groups
from omniavatar.distributed.sharding import Sharding
from omniavatar.errors import PlanError
from omniavatar.models.attention import Attention, sdpa

HOPPER = (9, 0)
"""From this compute capability on, cuDNN's kernel is the fastest that also gives the log-sum-exp."""


def sequence_attention(inner: Attention, groups: Groups, sharding: Sharding) -> Attention:
    """The strategy for shards of `sharding`: Ulysses inside, ring across, whichever have more than one rank.

    `inner` attends to what Ulysses has brought together; a ring computes attention itself. Raises PlanError if it would
    have to replace another strategy than the default.
    """
    return sequence_wrapper(groups, sharding)(inner)


def sequence_wrapper(groups: Groups, sharding: Sharding) -> Callable[[Attention], Attention]:
    """`sequence_attention` for one call of a transformer, to be put around whatever attends in each block."""
    part = sharding.shard_length * groups.ulysses.size
    lengths = [max(0, min(part, sharding.length - part * rank)) for rank in range(groups.ring.size)]
    length = lengths[groups.ring.rank]
    exchanged = ulysses_wrapper(groups.ulysses, length) if groups.ulysses.size > 1 else None

    def around(inner: Attention) -> Attention:
        if groups.ring.size > 1:
            if inner is not sdpa:
                raise PlanError(
                    "a ring joins parts of attention by their log-sum-exp, which another unit's attention does not "
                    "give; take sequence-parallel(ring=1), or leave that unit out"
                )
            inner = ring_attention(groups.ring, lengths)
        if exchanged is not None:
            return exchanged(inner)
        if length == sharding.shard_length:
            return inner
        return lambda q, k, v: padded(inner(q[:, :length], k[:, :length], v[:, :length]), q.shape[1])

    return around


@contextmanager
def not_our_future() -> Iterator[None]:
    """Leave out what torch says to yunchang's authors about features that will go."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def ulysses_wrapper(group: Group, length: int) -> Callable[[Attention], Attention]:
    """Exchange shards of tokens for shards of heads (yunchang's all-to-all), attend with `inner`, exchange back.

    length: tokens without padding that the group holds together. The number of heads is a multiple of the group's size.
    """
    with not_our_future():
        from yunchang.comm.all_to_all import SeqAllToAll4D

    def around(inner: Attention) -> Attention:
        def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            q, k, v = (SeqAllToAll4D.apply(group.handle, x, 2, 1) for x in (q, k, v))
            out = inner(q[:, :length], k[:, :length], v[:, :length])
            result: Tensor = SeqAllToAll4D.apply(group.handle, padded(out, q.shape[1]), 1, 2)
            return result

        return attention

    return around


def ring_attention(group: Group, lengths: Sequence[int]) -> Attention:
    """Attend to the keys and values of every rank in turn as they travel around the ring (yunchang's communication).

    lengths: tokens without padding of every rank of the group; q, k and v have those of this rank. The partial results
    are joined by their log-sum-exp.
    """
    with not_our_future():
        from yunchang.ring.utils import RingComm, update_out_and_lse

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        communication = RingComm(group.handle)
        k, v = (padded(x, max(lengths)).contiguous() for x in (k, v))
        out, lse = None, None
        for step in range(group.size):
            is_last = step + 1 == group.size
            if not is_last:
                following = communication.send_recv(k), communication.send_recv(v)
                communication.commit()
            count = lengths[(group.rank - step) % group.size]
            if count and q.shape[1]:
                out, lse = update_out_and_lse(out, lse, *attention_and_lse(q, k[:, :count], v[:, :count]))
            if not is_last:
                communication.wait()
                k, v = following
        return q if out is None else out.to(q.dtype)

    return attention


def attention_and_lse(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Attention (b s h d) and the log-sum-exp of its scores (b h s), which stays in float32."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    kernels = torch.ops.aten
    if q.device.type == "cpu":
        out, lse = kernels._scaled_dot_product_flash_attention_for_cpu(q, k, v)
    elif q.dtype == torch.float32:
        out, lse, *_ = kernels._scaled_dot_product_efficient_attention(q, k, v, None, True)
    elif torch.cuda.get_device_capability(q.device) >= HOPPER:
        out, lse, *_ = kernels._scaled_dot_product_cudnn_attention(q, k, v, None, True)
    else:
        out, lse, *_ = kernels._scaled_dot_product_flash_attention(q, k, v)
    # Some kernels keep an axis of length 1, some round the number of queries up.
    return out.transpose(1, 2), lse.flatten(2)[..., : q.shape[2]]


def padded(tokens: Tensor, length: int) -> Tensor:
    """Zeros appended along the tokens (b s h d) up to `length`."""
    missing = length - tokens.shape[1]
    return functional.pad(tokens, (0, 0, 0, 0, 0, missing)) if missing else tokens
