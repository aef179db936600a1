from __future__ import annotations

import hashlib

from omniavatar.checkpoints import fingerprint


def test_items_are_sorted_as_plain_strings() -> None:
    text = "a,a.b,a.b:3,a:1_2"  # "." sorts before ":"
    assert fingerprint({"a": (1, 2), "a.b": (3,)}) == hashlib.md5(text.encode()).hexdigest()


def test_order_of_entries_does_not_matter() -> None:
    assert fingerprint({"a": (1,), "b": (2,)}) == fingerprint({"b": (2,), "a": (1,)})


def test_shapes_count_unless_left_out() -> None:
    assert fingerprint({"a": (1,)}) != fingerprint({"a": (2,)})
    assert fingerprint({"a": (1,)}, shapes=False) == fingerprint({"a": (2,)}, shapes=False)
