"""Sentences without end for synthetic speech, put together from small vocabularies in five languages."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Vocabulary(NamedTuple):
    """What a sentence is made of: `frames` name the other fields in braces."""

    frames: tuple[str, ...]
    subject: tuple[str, ...]
    action: tuple[str, ...]
    thing: tuple[str, ...]
    when: tuple[str, ...]
    short: tuple[str, ...]


VOCABULARIES: dict[str, Vocabulary] = {
    "en": Vocabulary(
        (
            "{subject} {action} {thing} {when}.",
            "{when}, {subject} {action} {thing}.",
            "{short}! {subject} {action} {thing}.",
            "Did you know that {subject} {action} {thing} {when}?",
            "{short}. {when} {subject} {action} {number} of them, and {thing} too.",
            "{short}, {short}.",
        ),
        ("my brother", "the old teacher", "a young engineer", "our neighbour", "the whole team", "she", "he",
         "everybody",
         "the captain of the boat", "a woman from Oslo", "the children", "nobody"),
        ("found", "bought", "would like to see", "always remembers", "painted", "carried home", "talked about",
         "forgot",
         "asked for", "was looking at", "gave away", "measured"),
        ("the yellow umbrella", "five warm loaves of bread", "a map of the harbour", "this beautiful idea", "the news",
         "an apple and a knife", "the weather on the coast", "thirty small bottles", "a very quiet machine",
         "the music of the evening", "our favourite film", "a pair of brown shoes"),
        ("yesterday", "early in the morning", "before the summer", "every second week", "after a long walk", "at noon",
         "when the rain stopped", "in the year two thousand and nine", "at the end of the show", "once upon a time"),
        ("hello there", "well", "oh no", "thank you", "good evening", "wait a moment", "yes of course", "listen to me",
         "amazing", "I see", "all right", "see you tomorrow"),
    ),
    "de": Vocabulary(
        (
            "{subject} {action} {thing} {when}.",
            "{short}! {subject} {action} {when} {thing}.",
            "Wusstest du das? {subject} {action} {thing} {when}.",
            "{short}, {subject} {action} {number} davon.",
            "{short}, {short}.",
        ),
        ("mein Bruder", "die alte Lehrerin", "unser Nachbar", "das ganze Haus", "eine junge Frau", "der Kapitän",
         "niemand"),
        ("sucht", "kauft", "vergisst", "malt", "bringt", "erzählt von", "findet", "öffnet"),
        ("den gelben Schirm", "fünf warme Brote", "eine schöne Idee", "das Wetter an der Küste", "die Musik am Abend",
         "ein Paar braune Schuhe", "den Schlüssel der Tür"),
        ("gestern", "früh am Morgen", "vor dem Sommer", "nach einer Woche", "um halb acht", "am Ende des Jahres"),
        ("guten Tag", "na gut", "vielen Dank", "oh nein", "einen Augenblick bitte", "bis morgen", "wunderbar"),
    ),
    "fr": Vocabulary(
        (
            "{subject} {action} {thing} {when}.",
            "{when}, {subject} {action} {thing}.",
            "{short}! {subject} {action} {thing}.",
            "{short}, {subject} {action} {number} fois {thing}.",
            "{short}, {short}.",
        ),
        ("mon frère", "la vieille maîtresse", "notre voisin", "tout le monde", "une jeune femme", "le capitaine",
         "personne"),
        ("cherche", "achète", "oublie", "regarde", "apporte", "demande", "trouve", "préfère"),
        ("le parapluie jaune", "cinq pains chauds", "une belle idée", "le temps sur la côte", "la musique du soir",
         "une paire de chaussures", "la clé de la porte"),
        ("hier", "tôt le matin", "avant l'été", "chaque semaine", "vers huit heures", "à la fin de l'année"),
        ("bonjour", "eh bien", "merci beaucoup", "oh non", "un instant s'il vous plaît", "à demain", "magnifique"),
    ),
    "es": Vocabulary(
        (
            "{subject} {action} {thing} {when}.",
            "{when}, {subject} {action} {thing}.",
            "{short}! {subject} {action} {thing}.",
            "{short}, {subject} {action} {number} veces {thing}.",
            "{short}, {short}.",
        ),
        ("mi hermano", "la vieja maestra", "nuestro vecino", "todo el mundo", "una mujer joven", "el capitán", "nadie"),
        ("busca", "compra", "olvida", "mira", "trae", "pide", "encuentra", "prefiere"),
        ("el paraguas amarillo", "cinco panes calientes", "una idea hermosa", "el tiempo en la costa",
         "la música de la noche", "un par de zapatos", "la llave de la puerta"),
        ("ayer", "temprano por la mañana", "antes del verano", "cada semana", "a las ocho", "al final del año"),
        ("hola", "pues bien", "muchas gracias", "ay no", "un momento por favor", "hasta mañana", "maravilloso"),
    ),
    "it": Vocabulary(
        (
            "{subject} {action} {thing} {when}.",
            "{when}, {subject} {action} {thing}.",
            "{short}! {subject} {action} {thing}.",
            "{short}, {subject} {action} {number} volte {thing}.",
            "{short}, {short}.",
        ),
        ("mio fratello", "la vecchia maestra", "il nostro vicino", "ogni persona", "una giovane donna", "il capitano"),
        ("cerca", "compra", "dimentica", "guarda", "porta", "chiede", "trova", "preferisce"),
        ("l'ombrello giallo", "cinque pani caldi", "una bella idea", "il tempo sulla costa", "la musica della sera",
         "un paio di scarpe", "la chiave della porta"),
        ("ieri", "la mattina presto", "prima dell'estate", "ogni settimana", "alle otto", "alla fine dell'anno"),
        ("buongiorno", "allora", "grazie mille", "oh no", "un momento per favore", "a domani", "meraviglioso"),
    ),
}  # fmt: skip


def sentence(language: str, random: np.random.Generator) -> str:
    """One sentence in a language of `VOCABULARIES`."""
    words = VOCABULARIES[language]

    def one(choices: tuple[str, ...]) -> str:
        return choices[int(random.integers(len(choices)))]

    text = one(words.frames)
    while "{" in text:
        name = text[text.index("{") + 1 : text.index("}")]
        word = str(int(random.integers(2, 2000))) if name == "number" else one(getattr(words, name))
        text = text.replace(f"{{{name}}}", word, 1)
    return text[0].upper() + text[1:]
