"""Texts with what they state: captions are read rightly, other wordings are complete, other texts state nothing."""

from __future__ import annotations

import numpy as np
from omniavatar_drawn.encoders.descriptions import (
    ATTRIBUTES,
    Description,
    description,
    elsewhere,
    labels,
    of_caption,
    reworded,
)
from omniavatar_drawn.encoders.paraphrases import PARAPHRASES
from omniavatar_drawn.faces import Identity, Performance


def test_captions_state_what_their_faces_are() -> None:
    for seed in range(150):
        who, performance = Identity.from_seed(seed), Performance.from_seed(seed)
        said = of_caption(who, performance)
        assert {"person", "clothes", "clothes_colour", "wall", "wall_colour", "manner"} <= said.stated.keys()
        assert ("mood" in said.stated) == (performance.mood != "neutral")
        assert ("beard" in said.stated) == (who.beard is not None)
        assert ("hair" in said.stated) == (who.hat is None or ("hair_colour" in said.stated and "hair" in said.stated))
        for name in ("skin", "hair_colour", "clothes_colour", "wall_colour", "hat_colour", "eyes"):
            if name in said.stated:
                assert said.stated[name] == getattr(who, name).name
                assert said.stated[name] in said.text.lower()
        assert all(value in ATTRIBUTES[name] for name, value in said.stated.items())


def test_a_caption_without_a_performance_states_no_manner() -> None:
    said = of_caption(Identity.from_seed(3), None)
    assert not {"mood", "manner"} & said.stated.keys()


def test_hidden_hair_is_not_stated() -> None:
    scarves = [who for who in map(Identity.from_seed, range(300)) if who.hat == "headscarf"]
    assert scarves
    for who in scarves:
        said = of_caption(who, None)
        assert not {"hair", "hair_colour"} & said.stated.keys()
        assert said.stated["hat"] == "headscarf"


def test_other_wordings_state_only_what_is_true_and_vary() -> None:
    who, performance = Identity.from_seed(11), Performance.from_seed(11)
    said = [reworded(who, performance, np.random.default_rng(seed)) for seed in range(200)]
    assert len({one.text for one in said}) > 190
    assert not any("{" in one.text for one in said)
    for one in said:
        assert one.stated.get("person", who.person) == who.person
        assert one.stated.get("clothes_colour", who.clothes_colour.name) == who.clothes_colour.name
        assert one.stated.get("wall", who.wall) == who.wall
    assert {len(one.stated) for one in said} >= {3, 4, 5, 6, 7, 8}


def test_every_value_is_stated_somewhere() -> None:
    random = np.random.default_rng(5)
    seen = {pair for _ in range(1500) for pair in description(random).stated.items()}
    assert {(name, value) for name, values in ATTRIBUTES.items() for value in values} <= seen


def test_other_texts_state_nothing() -> None:
    random = np.random.default_rng(0)
    texts = [elsewhere(random) for _ in range(200)]
    assert all(not one.stated for one in texts)
    assert {"", "A person looks into the camera and talks."} <= {one.text for one in texts}
    assert any(one.text.startswith("static picture") for one in texts)


def test_labels_are_numbers_of_values() -> None:
    numbers = labels(Description("a man", {"person": "man", "glasses": "round"}, frozenset({"skin"})))
    expected = {"person": 2, "glasses": 2, "skin": -1}
    assert numbers == [expected.get(name, 0) for name in ATTRIBUTES]


def test_hand_written_texts_state_known_values() -> None:
    assert len(PARAPHRASES) >= 20
    for one in PARAPHRASES:
        assert all(number > 0 for number in labels(one) if number)
        assert sum(number > 0 for number in labels(one)) == len(one.stated)
