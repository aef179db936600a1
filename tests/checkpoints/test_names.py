from __future__ import annotations

import pytest

from omniavatar.checkpoints.names import Rename, matches, rename, undo


@pytest.mark.parametrize(
    ("pattern", "name", "expected"),
    [
        ("*", "a.b", True),
        ("blocks.*.weight", "blocks.0.q.weight", True),
        ("blocks.*.weight", "blocks.0.q.bias", False),
        ("a.{b,c}", "a.c", True),
        ("a.{b,c}", "a.d", False),
        ("{,model.}a", "a", True),
        ("a.b", "axb", False),
    ],
)
def test_patterns(pattern: str, name: str, expected: bool) -> None:
    assert matches(name, [pattern]) is expected


RULES = [
    Rename("model.*", "*"),
    Rename("blocks.*.attn{1,2}.to_{q,out.0}.*", "blocks.*.{self_attn,cross_attn}.{q,o}.*"),
]


@pytest.mark.parametrize(
    ("file", "network"),
    [
        ("model.blocks.3.attn2.to_out.0.bias", "blocks.3.cross_attn.o.bias"),
        ("model.blocks.12.attn1.to_q.weight", "blocks.12.self_attn.q.weight"),
        ("model.head", "head"),
    ],
)
def test_rules_apply_in_order_and_can_be_undone(file: str, network: str) -> None:
    assert rename(file, RULES) == network
    assert undo(network, RULES) == file


@pytest.mark.parametrize(("file", "network"), [("a.*", "a"), ("a.{b,c}", "a.{b,c,d}"), ("*.{a,b}", "{a,b}.*")])
def test_a_rule_needs_both_sides_alike(file: str, network: str) -> None:
    with pytest.raises(ValueError, match="both sides"):
        Rename(file, network)
