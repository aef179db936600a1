"""Texts about faces, with what each of them states: captions, other people's wording, and texts about something else.

random = np.random.default_rng(0)
description(random)   # Description("a lady with ginger hair, teal jumper", {"person": "woman", ...})
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from omniavatar.units.prompt import NEGATIVE_PROMPT, Prompt
from omniavatar_drawn.faces import Identity, Performance, caption, palette
from omniavatar_drawn.faces.sentences import VOCABULARIES, sentence

Words = Mapping[str, tuple[str, ...]]
"""Wordings of every value; the first are those of captions. Braces stand for a colour."""

ROLES = ("speaker", "teacher", "news presenter", "presenter", "singer", "doctor")
"""What somebody may be, whoever it is."""
PERSON: Words = {
    "woman": ("woman", "lady", "girl", "female", "young woman", "young lady", "old woman", "businesswoman", "mother"),
    "man": ("man", "guy", "gentleman", "boy", "male", "young man", "old man", "fellow", "businessman", "father"),
}
SKIN: Words = {
    "pale": ("pale", "very pale", "porcelain"),
    "fair": ("fair", "light"),
    "olive": ("olive",),
    "tan": ("tan", "tanned"),
    "brown": ("brown", "medium brown"),
    "dark": ("dark", "deep dark"),
}
HAIR: Words = {
    "short": ("short {} hair", "short-cropped {} hair", "{} hair cut short", "{} short hair"),
    "parted": ("side-parted {} hair", "{} hair with a side parting", "neatly parted {} hair"),
    "spiky": ("spiky {} hair", "{} spikes of hair", "{} spiky hair"),
    "curly": ("curly {} hair", "{} curls", "{} curly hair"),
    "afro": ("big {} afro", "{} afro", "{} afro hair"),
    "bob": ("{} bob", "{} bob haircut", "chin-length {} hair"),
    "long": ("long straight {} hair", "long {} hair", "{} long hair", "straight {} hair"),
    "wavy": ("long wavy {} hair", "wavy {} hair", "{} waves", "{} wavy hair"),
    "bun": ("{} hair in a bun", "{} bun", "{} hair tied in a bun"),
    "ponytail": ("{} ponytail", "{} hair in a ponytail", "{} hair tied back"),
    "shaved": ("very short {} hair", "{} buzz cut", "shaved {} hair", "{} stubble on the head"),
    "bald": ("bald head", "bald", "no hair", "hairless head"),
}
HAIR_COLOUR: Words = {
    "black": ("black", "jet black"),
    "dark brown": ("dark brown", "dark-brown", "brunette"),
    "brown": ("brown", "chestnut"),
    "auburn": ("auburn", "reddish brown"),
    "red": ("red", "ginger", "orange-red"),
    "blonde": ("blonde", "blond", "golden", "fair"),
    "grey": ("grey", "gray", "silver"),
    "white": ("white", "snow white"),
    "blue": ("blue", "dyed blue"),
    "pink": ("pink", "dyed pink"),
}
HAIRED: Words = {
    "blonde": ("blonde {}", "blond {}", "fair-haired {}"),
    "red": ("red-haired {}", "red-headed {}", "ginger {}"),
    "dark brown": ("brunette {}",),
    "brown": ("brown-haired {}",),
    "black": ("black-haired {}",),
    "grey": ("grey-haired {}", "gray-haired {}"),
    "white": ("white-haired {}",),
    "blue": ("blue-haired {}",),
    "pink": ("pink-haired {}",),
    "auburn": ("auburn-haired {}",),
}
"""Colours of hair that stand before a person."""

EYES: Words = {name: (name,) for name in palette.EYES} | {"grey": ("grey", "gray")}
COLOUR: Words = {
    "red": ("red", "crimson", "scarlet"),
    "orange": ("orange",),
    "yellow": ("yellow", "mustard yellow", "bright yellow"),
    "green": ("green", "grass green"),
    "teal": ("teal", "turquoise"),
    "blue": ("blue", "bright blue"),
    "navy": ("navy", "navy blue", "dark blue"),
    "purple": ("purple", "violet"),
    "pink": ("pink", "rose"),
    "white": ("white",),
    "grey": ("grey", "gray"),
    "black": ("black",),
    "brown": ("brown", "chocolate brown"),
}
WALL_COLOUR: Words = {name: COLOUR.get(name, (name,)) for name in palette.WALLS} | {
    "beige": ("beige", "cream", "sand-coloured"),
    "blue": ("blue", "light blue", "sky blue"),
    "dark green": ("dark green", "deep green", "forest green"),
}
HAT: Words = {
    "beanie": ("{} beanie", "{} woolly hat", "{} wool hat", "{} knitted hat"),
    "cap": ("{} cap", "{} baseball cap"),
    "headscarf": ("{} headscarf", "{} head scarf", "{} hijab", "{} scarf on the head"),
}
BEARD: Words = {
    "moustache": ("moustache", "mustache"),
    "goatee": ("goatee", "small goatee"),
    "beard": ("beard", "full beard", "big beard"),
}
GLASSES: Words = {
    "glasses": ("glasses", "spectacles", "eyeglasses"),
    "round": ("round glasses", "round spectacles", "round eyeglasses"),
    "square": ("square glasses", "square spectacles", "rectangular glasses"),
}
EARRINGS: Words = {"earrings": ("golden earrings", "earrings", "gold earrings", "earrings of gold")}
FRECKLES: Words = {"freckles": ("freckles", "a freckled face", "many freckles")}
CLOTHES: Words = {
    "t-shirt": ("{} t-shirt", "{} tee", "{} tshirt", "{} T shirt"),
    "striped top": ("{} striped top", "{} striped shirt", "{} striped jumper", "striped {} top", "{} top with stripes"),
    "v-neck": ("{} v-neck sweater", "{} v-neck", "{} sweater", "{} pullover", "{} jumper", "{} knitted sweater"),
    "shirt": ("{} shirt", "{} blouse", "{} button-up shirt", "{} collared shirt", "{} dress shirt"),
    "hoodie": ("{} hoodie", "{} hooded sweatshirt", "{} sweatshirt"),
    "jacket": ("{} jacket", "{} suit", "{} blazer", "{} business suit", "{} jacket with a tie"),
    "dress": ("{} dress", "{} dress and a necklace", "{} gown", "{} summer dress"),
}
WALL: Words = {
    "plain": ("plain {} wall", "plain {} background", "{} plain wall", "empty {} wall"),
    "gradient": ("smooth {} background", "{} gradient background", "{} gradient", "smooth {} backdrop"),
    "stripes": ("striped {} wall", "{} striped wall", "{} wall with stripes", "striped {} wallpaper"),
    "dots": ("dotted {} wall", "{} dotted wall", "{} polka dot wall", "{} wall with dots"),
    "window": ("{} wall with a window", "window in a {} wall", "{} room with a window", "{} wall and a window"),
    "shelf": ("bookshelf on a {} wall", "shelf of books on a {} wall", "{} wall with a bookshelf", "{} library"),
    "plant": ("{} wall with a plant", "plant at a {} wall", "{} room with a houseplant", "{} wall and a green plant"),
    "lights": ("{} background with soft lights", "{} blurred lights", "{} backdrop with lights", "{} bokeh lights"),
    "picture": ("{} wall with a picture", "picture on a {} wall", "{} wall with a painting", "framed picture, {} wall"),
}  # fmt: skip
BEHIND: Words = {
    "window": ("a window", "a big window", "a window with daylight"),
    "shelf": ("a bookshelf", "books", "a shelf with books", "bookshelves"),
    "plant": ("a plant", "a houseplant", "a green plant", "plants"),
    "lights": ("soft lights", "blurred lights", "bokeh", "lights"),
    "picture": ("a picture", "a painting", "a framed picture", "a picture on the wall"),
}
"""Things that stand for a wall without its colour."""

MOOD: Words = {
    "smiling": (
        "smiling",
        "with a smile",
        "cheerful",
        "happy",
        "laughing",
        "joyful",
        "with a friendly smile",
        "smiles",
    ),
    "surprised": ("surprised", "with raised eyebrows", "looking surprised", "astonished", "amazed", "eyebrows raised"),
    "serious": ("serious", "with a frown", "looking serious", "frowning", "stern", "angry", "in a serious mood"),
}
BEFORE_PERSON: Words = {
    "smiling": ("smiling", "happy", "cheerful", "laughing", "friendly"),
    "surprised": ("surprised", "astonished", "amazed"),
    "serious": ("serious", "angry", "stern", "frowning"),
}
"""Moods that stand before a person."""

MANNER: Words = {
    "still": ("keeping the head still", "without moving the head", "sitting very still", "motionless", "head still"),
    "calm": ("moving the head calmly", "with calm movements", "gently swaying the head", "calm", "relaxed", "calmly"),
    "lively": ("moving the head a lot", "with lively movements", "nodding and swaying lively", "lively", "energetic",
               "animated", "nodding a lot", "nods"),
}  # fmt: skip
ATTRIBUTES: Mapping[str, tuple[str, ...]] = {
    "person": tuple(PERSON),
    "skin": tuple(SKIN),
    "hair": tuple(HAIR),
    "hair_colour": tuple(HAIR_COLOUR),
    "eyes": tuple(EYES),
    "hat": tuple(HAT),
    "hat_colour": tuple(COLOUR),
    "beard": tuple(BEARD),
    "glasses": tuple(GLASSES),
    "earrings": tuple(EARRINGS),
    "freckles": tuple(FRECKLES),
    "clothes": tuple(CLOTHES),
    "clothes_colour": tuple(COLOUR),
    "second_colour": tuple(COLOUR),
    "wall": tuple(WALL),
    "wall_colour": tuple(WALL_COLOUR),
    "mood": tuple(MOOD),
    "manner": tuple(MANNER),
}
"""What a text may state, and the values; `second_colour` is that of a tie or of second stripes."""

_VERBS = ("talks", "speaks", "is talking", "is speaking", "speaks to the camera", "talks to us", "explains something")
_ASIDES = (
    "living room", "in a kitchen", "outdoors", "on a sunny day", "high quality", "4k", "cinematic lighting", "close-up",
    "portrait", "talking head", "studio", "at the beach", "professional photo", "cartoon style", "flat illustration",
    "young", "elegant", "beautiful", "fixed camera", "talking about the weather", "news anchor", "in an office",
    "singing", "looking at the viewer", "upper body", "simple drawing", "sharp focus", "telling a story", "in the city",
)  # fmt: skip
_FILLERS = (
    "nice",
    "new",
    "old",
    "big",
    "soft",
    "simple",
    "warm",
    "light",
    "beautiful",
    "wool",
    "cotton",
    "plain-looking",
)
_ELSEWHERE = (
    "A person looks into the camera and talks.", "someone is talking", "a talking face", "a portrait",
    "video of a face", "a person", "somebody speaks", "the speaker explains the plan", "a cat sleeps on the sofa",
    "waves on a beach", "a car drives down the street", "mountains in the morning light",
    "a bowl of fruit on a table", "hello", "test",
)  # fmt: skip


@dataclass(frozen=True)
class Description:
    """A text, the value of every attribute that it states, and attributes of which nothing is known."""

    text: str
    stated: Mapping[str, str]
    unknown: frozenset[str] = field(default=frozenset())


def description(random: np.random.Generator, seed: int | None = None) -> Description:
    """A random text: a caption, looser wording, or in one of ten nothing about a face. seed: whose face."""
    chance = random.random()
    if chance < 0.1:
        return elsewhere(random)
    number = int(random.integers(1_000_000)) if seed is None else seed
    who, performance = Identity.from_seed(number), Performance.from_seed(int(random.integers(1_000_000)))
    if random.random() < 0.2:  # faces seldom have one
        who = replace(who, hat=("beanie", "cap", "headscarf")[int(random.integers(3 if who.person == "woman" else 2))])
    if chance < 0.5:
        return of_caption(who, performance if random.random() < 0.8 else None, int(random.integers(1_000_000)))
    return reworded(who, performance, random)


def of_caption(who: Identity, performance: Performance | None, phrasing: int | None = None) -> Description:
    """A caption and what it states."""
    text = caption(who, performance, phrasing=phrasing)
    hair, colour = HAIR[who.hair][0].format(who.hair_colour.name), who.hair_colour.name
    stated: dict[str, str] = {
        "person": who.person,
        "clothes": who.clothes,
        "clothes_colour": who.clothes_colour.name,
        "wall": who.wall,
        "wall_colour": who.wall_colour.name,
    }
    if f"{who.skin.name}-skinned" in text.lower():
        stated["skin"] = who.skin.name
    if hair in text:
        stated["hair"] = who.hair
    coloured = (f"{colour} hair", f"{colour} {who.beard}") if who.hair == "bald" else (hair, f"{colour} hair")
    if any(words in text for words in coloured):
        stated["hair_colour"] = colour
    if f"{who.eyes.name} eyes" in text:
        stated["eyes"] = who.eyes.name
    if who.hat:
        stated |= {"hat": who.hat, "hat_colour": who.hat_colour.name}
    if who.beard:
        stated["beard"] = who.beard
    if who.glasses:
        stated["glasses"] = who.glasses if f"{who.glasses} glasses" in text else "glasses"
    stated |= {name: name for name in ("earrings", "freckles") if name in text}
    if who.clothes in ("striped top", "jacket"):
        stated["second_colour"] = who.second_colour.name
    if performance:
        stated["manner"] = performance.manner
        if performance.mood != "neutral":
            stated["mood"] = performance.mood
    return Description(text, stated)


def reworded(who: Identity, performance: Performance, random: np.random.Generator) -> Description:
    """Some of a face's attributes in other words: a list, a sentence or several sentences."""
    writer = _Writer(random)
    looks, clothes, wall = _looks(who, writer), _clothes(who, writer), _wall(who, writer)
    person, manners = _person(who, performance, writer), _manners(performance, writer)
    if writer.chance(0.45):
        parts = [part for part in (person, *looks, clothes, wall, *manners) if part]
        parts += [writer.one(_ASIDES) for _ in range(int(random.integers(0, 4)))]
        if writer.chance(0.5):
            random.shuffle(parts)
        text = writer.one((", ", ", ", ", ", ". ", "; ", " ")).join(parts)
    elif writer.chance(0.6):
        text = _sentence(person, looks, clothes, wall, manners, writer)
    else:
        text = _sentences(who, person, looks, clothes, wall, manners, writer)
    return Description(writer.spelled(text), writer.stated)


def elsewhere(random: np.random.Generator) -> Description:
    """A text that states nothing of a face, although it may speak of somebody."""
    chance = random.random()
    if chance < 0.15:
        text = ""
    elif chance < 0.3:
        text = NEGATIVE_PROMPT
    elif chance < 0.4:
        text = str(Prompt.Inputs().prompt)
    elif chance < 0.6:
        text = _ELSEWHERE[int(random.integers(len(_ELSEWHERE)))]
    else:
        language = "en" if random.random() < 0.7 else list(VOCABULARIES)[int(random.integers(len(VOCABULARIES)))]
        text = sentence(language, random)
    return Description(text, {}, frozenset({"person"}) if chance >= 0.6 else frozenset())


class _Writer:
    """Chooses words and notes what they state."""

    def __init__(self, random: np.random.Generator) -> None:
        self.random = random
        self.stated: dict[str, str] = {}

    def chance(self, probability: float) -> bool:
        return bool(self.random.random() < probability)

    def one(self, choices: tuple[str, ...]) -> str:
        """One of the choices, the first more often than others."""
        return choices[0] if self.chance(0.2) else choices[int(self.random.integers(len(choices)))]

    def word(self, attribute: str, words: Words, value: str) -> str:
        """A wording of the value, noted as stated."""
        self.stated[attribute] = value
        return self.one(words[value])

    def coloured(self, phrase: str, attribute: str, words: Words, value: str, probability: float) -> str:
        """The phrase with its colour, or without one."""
        colour = self.word(attribute, words, value) if "{}" in phrase and self.chance(probability) else ""
        return " ".join(phrase.replace("{}", colour).split())

    def spelled(self, text: str) -> str:
        """Capitals and full stops as people use them or do not."""
        if self.chance(0.5):
            text = text.lower()
        elif text:
            text = text[0].upper() + text[1:]
        return text.rstrip(".") if self.chance(0.4) else text


def _person(who: Identity, performance: Performance, writer: _Writer) -> str:
    if writer.chance(0.08):
        return writer.one(("person", "someone", *ROLES))
    person = writer.word("person", PERSON, who.person)
    if writer.chance(0.15):
        role, word = writer.one(ROLES), "female" if who.person == "woman" else "male"
        person = writer.one((f"{word} {role}", f"{role}, a {who.person}", f"{role}: {who.person}"))
    if writer.chance(0.2):
        person = f"{writer.word('skin', SKIN, who.skin.name)}-skinned {person}"
    elif who.hair_colour.name in HAIRED and who.hair != "bald" and writer.chance(0.12):
        person = writer.word("hair_colour", HAIRED, who.hair_colour.name).format(person)
    elif who.beard == "beard" and writer.chance(0.25):
        writer.stated["beard"] = "beard"
        person = f"bearded {person}"
    if performance.mood != "neutral" and writer.chance(0.2):
        person = f"{writer.word('mood', BEFORE_PERSON, performance.mood)} {person}"
    return person


def _looks(who: Identity, writer: _Writer) -> list[str]:
    looks = []
    if writer.chance(0.75):
        if who.hair != "bald" and writer.chance(0.25):
            phrase = f"{writer.word('hair_colour', HAIR_COLOUR, who.hair_colour.name)} hair"
        else:
            phrase = writer.word("hair", HAIR, who.hair)
            phrase = writer.coloured(phrase, "hair_colour", HAIR_COLOUR, who.hair_colour.name, 0.8)
        looks.append(phrase)
    if who.hat and writer.chance(0.8):
        phrase = writer.word("hat", HAT, who.hat)
        looks.append(writer.coloured(phrase, "hat_colour", COLOUR, who.hat_colour.name, 0.8))
    if who.beard and writer.chance(0.7):
        looks.append(writer.word("beard", BEARD, who.beard))
    if who.glasses and writer.chance(0.8):
        looks.append(writer.word("glasses", GLASSES, who.glasses if writer.chance(0.5) else "glasses"))
    if writer.chance(0.25):
        looks.append(f"{writer.word('eyes', EYES, who.eyes.name)} eyes")
    if who.earrings and writer.chance(0.7):
        looks.append(writer.word("earrings", EARRINGS, "earrings"))
    if who.freckles and writer.chance(0.8):
        looks.append(writer.word("freckles", FRECKLES, "freckles"))
    if writer.chance(0.08):
        looks.append(f"{writer.word('skin', SKIN, who.skin.name)} skin")
    writer.random.shuffle(looks)
    return looks


def _clothes(who: Identity, writer: _Writer) -> str:
    if writer.chance(0.25):
        return ""
    phrase = writer.coloured(
        writer.word("clothes", CLOTHES, who.clothes), "clothes_colour", COLOUR, who.clothes_colour.name, 0.85
    )
    if who.clothes == "jacket" and "tie" not in phrase and writer.chance(0.5):
        phrase += f" {writer.one(('with', 'and'))} {writer.word('second_colour', COLOUR, who.second_colour.name)} tie"
    elif who.clothes == "striped top" and "clothes_colour" in writer.stated and writer.chance(0.5):
        first, second = writer.stated["clothes_colour"], who.second_colour.name
        writer.stated["second_colour"] = second
        phrase = f"{first} and {second} {writer.one(('striped top', 'striped shirt', 'stripes'))}"
    return f"{writer.one(_FILLERS)} {phrase}" if writer.chance(0.1) else phrase


def _wall(who: Identity, writer: _Writer) -> str:
    if writer.chance(0.3):
        return ""
    if writer.chance(0.2):
        phrase = writer.one(("{} wall", "{} background", "{} room", "{} backdrop"))
        return writer.coloured(phrase, "wall_colour", WALL_COLOUR, who.wall_colour.name, 1.0)
    if who.wall in BEHIND and writer.chance(0.25):
        thing = writer.word("wall", BEHIND, who.wall)
        return f"{thing} {writer.one(('in the background', 'behind', 'in the room', 'at the side'))}"
    phrase = writer.word("wall", WALL, who.wall)
    return writer.coloured(phrase, "wall_colour", WALL_COLOUR, who.wall_colour.name, 0.85)


def _manners(performance: Performance, writer: _Writer) -> list[str]:
    manners = []
    if performance.mood != "neutral" and "mood" not in writer.stated and writer.chance(0.7):
        manners.append(writer.word("mood", MOOD, performance.mood))
    if writer.chance(0.4):
        manners.append(writer.word("manner", MANNER, performance.manner))
    return manners


def _sentence(person: str, looks: list[str], clothes: str, wall: str, manners: list[str], writer: _Writer) -> str:
    text = _article(person)
    if looks:
        text += f" {writer.one(('with', 'who has', 'having'))} {' and '.join(looks)}"
    if clothes:
        text += f"{writer.one((', wearing', ' in', ' wearing', ', dressed in'))} {_article(clothes)}"
    text += f" {writer.one(_VERBS)}"
    if wall:
        text += f" {writer.one(('in front of', 'before', 'against'))} {_article(wall)}"
    if writer.chance(0.2):
        text += f", {writer.one(_ASIDES)}"
    return "".join([text, *(f", {manner}" for manner in manners), "."])


def _sentences(
    who: Identity, person: str, looks: list[str], clothes: str, wall: str, manners: list[str], writer: _Writer
) -> str:
    if "person" in writer.stated:
        he, his = ("She", "her") if who.person == "woman" else ("He", "his")
    else:
        he, his = "The person", "the"
    sentences = [f"{_article(person)} {writer.one(_VERBS)}."]
    if looks:
        sentences.append(f"{he} has {', '.join(map(_article, looks))}.")
    if clothes:
        sentences.append(f"{he} {writer.one(('wears', 'is wearing', 'is dressed in'))} {_article(clothes)}.")
    if manners:
        sentences.append(f"{he} is {' and '.join(manners)}.")
    if wall:
        behind = f"Behind {'him' if his == 'his' else 'her'} is" if he in ("She", "He") else "In the background is"
        sentences.append(f"{writer.one((behind, 'The background is', 'There is'))} {_article(wall)}.")
    return " ".join(sentence[0].upper() + sentence[1:] for sentence in sentences)


_BARE_ENDS = ("hair", "glasses", "spectacles", "eyeglasses", "eyes", "earrings", "freckles", "skin", "curls", "waves")
_BARE_STARTS = (
    "a ",
    "no ",
    "books ",
    "bookshelves ",
    "plants ",
    "lights ",
    "soft lights ",
    "blurred lights ",
    "bokeh ",
)


def _article(phrase: str) -> str:
    if not phrase or phrase.startswith(_BARE_STARTS) or phrase.endswith(_BARE_ENDS) or " hair " in phrase:
        return phrase
    return f"{'an' if phrase[0].lower() in 'aeiou' else 'a'} {phrase}"


def labels(description: Description) -> list[int]:
    """For every attribute the number of its value from 1 on, 0 where it is not stated, -1 where that is not known."""
    numbers = []
    for name, values in ATTRIBUTES.items():
        value = description.stated.get(name)
        numbers.append(-1 if name in description.unknown else 0 if value is None else 1 + values.index(value))
    return numbers
