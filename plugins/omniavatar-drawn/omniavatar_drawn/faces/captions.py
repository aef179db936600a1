"""Describes a face, its scene and its manner in one natural sentence, as a prompt would."""

from __future__ import annotations

import numpy as np

from omniavatar_drawn.faces.identity import Clothes, Hair, Identity, Wall
from omniavatar_drawn.faces.performance import Manner, Mood, Performance

_HAIR: dict[Hair, str] = {
    "short": "short {} hair",
    "parted": "side-parted {} hair",
    "spiky": "spiky {} hair",
    "curly": "curly {} hair",
    "afro": "a big {} afro",
    "bob": "a {} bob",
    "long": "long straight {} hair",
    "wavy": "long wavy {} hair",
    "bun": "{} hair in a bun",
    "ponytail": "a {} ponytail",
    "shaved": "very short {} hair",
    "bald": "a bald head",
}
_SEEN_BELOW_A_HAT = ("bob", "long", "wavy", "ponytail")
_WALL: dict[Wall, str] = {
    "plain": "a plain {} wall",
    "gradient": "a smooth {} background",
    "stripes": "a striped {} wall",
    "dots": "a dotted {} wall",
    "window": "a {} wall with a window",
    "shelf": "a bookshelf on a {} wall",
    "plant": "a {} wall with a plant",
    "lights": "a {} background with soft lights",
    "picture": "a {} wall with a picture",
}
_CLOTHES: dict[Clothes, str] = {
    "t-shirt": "a {} t-shirt",
    "striped top": "a {} and {} striped top",
    "v-neck": "a {} v-neck sweater",
    "shirt": "a {} shirt",
    "hoodie": "a {} hoodie",
    "jacket": "a {} jacket with {} tie",
    "dress": "a {} dress and a necklace",
}
_MANNERS: dict[Manner, tuple[str, ...]] = {
    "still": ("keeping the head still", "without moving the head", "sitting very still"),
    "calm": ("moving the head calmly", "with calm movements", "gently swaying the head"),
    "lively": ("moving the head a lot", "with lively movements", "nodding and swaying lively"),
}
_MOODS: dict[Mood, tuple[str, ...]] = {
    "neutral": ("",),
    "smiling": ("smiling", "with a smile", "cheerful"),
    "surprised": ("surprised", "with raised eyebrows", "looking surprised"),
    "serious": ("serious", "with a frown", "looking serious"),
}
_SENTENCES = (
    "{who} with {looks}, wearing {clothes}, talks in front of {wall}{manner}.",
    "{who} with {looks} and {clothes} speaks to the camera, {wall} behind{manner}.",
    "In front of {wall}, {who} with {looks} in {clothes} is talking{manner}.",
    "A cartoon of {who} with {looks}, dressed in {clothes}, talking in front of {wall}{manner}.",
    "Portrait of {who} who wears {clothes} and has {looks}, speaking before {wall}{manner}.",
)


def caption(who: Identity, performance: Performance | None = None, *, phrasing: int | None = None) -> str:
    """One sentence that says who talks where and, with a performance, how; always the same for the same arguments.

    phrasing: chooses the words; by default the identity's own number does.
    """
    random = np.random.Generator(np.random.PCG64([who.seed if phrasing is None else phrasing, 0xCA7]))
    sentence = _SENTENCES[int(random.integers(len(_SENTENCES)))]
    manner = _manner(performance, random) if performance else ""
    text = sentence.format(
        who=_article(f"{who.skin.name}-skinned {who.person}" if random.random() < 0.35 else who.person),
        looks=_listed(_looks(who, random)),
        clothes=_article(_CLOTHES[who.clothes].format(who.clothes_colour.name, who.second_colour.name)),
        wall=_article(_WALL[who.wall].format(who.wall_colour.name)),
        manner=f", {manner}" if manner else "",
    )
    return text[0].upper() + text[1:]


def _looks(who: Identity, random: np.random.Generator) -> list[str]:
    looks = []
    if who.hat is None or (who.hat != "headscarf" and who.hair in _SEEN_BELOW_A_HAT):
        looks.append(_article(_HAIR[who.hair].format(who.hair_colour.name)))
    elif who.hat != "headscarf" and who.hair not in ("bald", "shaved"):
        looks.append(f"{who.hair_colour.name} hair")
    if who.hat:
        looks.append(_article(f"{who.hat_colour.name} {who.hat}"))
    if who.beard:
        colour = f"{who.hair_colour.name} " if who.hair == "bald" else ""
        looks.append(_article(f"a {colour}{who.beard}"))
    if who.glasses:
        looks.append(("{} glasses" if random.random() < 0.5 else "glasses").format(who.glasses))
    if who.earrings and random.random() < 0.7:
        looks.append("golden earrings")
    if random.random() < 0.3:
        looks.append(f"{who.eyes.name} eyes")
    if who.freckles:
        looks.append("freckles")
    return looks


def _manner(performance: Performance, random: np.random.Generator) -> str:
    words = (_MOODS[performance.mood], _MANNERS[performance.manner])
    chosen = [options[int(random.integers(len(options)))] for options in words]
    return ", ".join(word for word in chosen if word)


def _article(phrase: str) -> str:
    """`phrase` with "a" or "an" in front where it is singular."""
    for article in ("a ", "an "):
        phrase = phrase.removeprefix(article)
    if phrase.split()[-1] in ("hair", "bun") and " hair" in f" {phrase}":
        return phrase
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def _listed(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
