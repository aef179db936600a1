"""Texts written by hand, to test a text encoder on: never trained on, and what each of them states."""

from __future__ import annotations

from omniavatar_drawn.encoders.descriptions import Description

PARAPHRASES: tuple[Description, ...] = tuple(
    Description(text, dict(pair.split("=") for pair in stated.split(", ")))
    for text, stated in (
        ("young lady, red hair, blue sweater, living room",
         "person=woman, hair_colour=red, clothes=v-neck, clothes_colour=blue"),
        ("An old gentleman with a white beard reads the news in a black suit.",
         "person=man, beard=beard, clothes=jacket, clothes_colour=black"),
        ("a girl with a pink bob and big round glasses says hello",
         "person=woman, hair=bob, hair_colour=pink, glasses=round"),
        ("Bald man with a moustache, orange hoodie, brick background",
         "person=man, hair=bald, beard=moustache, clothes=hoodie, clothes_colour=orange"),
        ("She has curly black hair and wears a yellow dress; behind her there is a green wall with a window.",
         "person=woman, hair=curly, hair_colour=black, clothes=dress, clothes_colour=yellow, wall=window, "
         "wall_colour=green"),
        ("happy woman, blonde ponytail, white t-shirt, plant in the background",
         "person=woman, mood=smiling, hair=ponytail, hair_colour=blonde, clothes=t-shirt, clothes_colour=white, "
         "wall=plant"),
        ("serious businessman in a navy suit with a red tie, grey wall",
         "person=man, mood=serious, clothes=jacket, clothes_colour=navy, second_colour=red, wall_colour=grey"),
        ("The guy wears a blue baseball cap and a purple tee and laughs.",
         "person=man, hat=cap, hat_colour=blue, clothes=t-shirt, clothes_colour=purple, mood=smiling"),
        ("a woman in a green headscarf talking in front of a bookshelf",
         "person=woman, hat=headscarf, hat_colour=green, wall=shelf"),
        ("Close-up of a dark-skinned man with an afro, looking surprised, purple background with lights",
         "person=man, skin=dark, hair=afro, mood=surprised, wall=lights, wall_colour=purple"),
        ("blue-eyed teenager: a boy with spiky blonde hair, freckles and a red pullover",
         "person=man, hair=spiky, hair_colour=blonde, freckles=freckles, clothes=v-neck, clothes_colour=red"),
        ("elegant lady, grey hair in a bun, gold earrings, pearl necklace, black dress",
         "person=woman, hair=bun, hair_colour=grey, earrings=earrings, clothes=dress, clothes_colour=black"),
        ("Man. Brown beard. Square glasses. White shirt. He keeps still.",
         "person=man, beard=beard, glasses=square, clothes=shirt, clothes_colour=white, manner=still"),
        ("A cheerful lady with long wavy brown hair talks with lively gestures in a yellow room.",
         "person=woman, mood=smiling, hair=wavy, hair_colour=brown, manner=lively, wall_colour=yellow"),
        ("portrait of a female teacher wearing a teal blouse, a painting hangs on the orange wall",
         "person=woman, clothes=shirt, clothes_colour=teal, wall=picture, wall_colour=orange"),
        ("angry guy with black hair in a grey hoodie against a striped red wall",
         "person=man, mood=serious, hair_colour=black, clothes=hoodie, clothes_colour=grey, wall=stripes, "
         "wall_colour=red"),
        ("my mother, auburn hair, green eyes, wearing a purple cardigan sweater",
         "person=woman, hair_colour=auburn, eyes=green, clothes=v-neck, clothes_colour=purple"),
        ("A man in a striped top of white and blue speaks calmly, the wall behind him is plain and beige.",
         "person=man, clothes=striped top, manner=calm, wall=plain, wall_colour=beige"),
        ("someone with ginger hair, a goatee and a green beanie",
         "hair_colour=red, beard=goatee, hat=beanie, hat_colour=green"),
        ("a tanned woman with straight long black hair, brown eyes, pink shirt, white polka dot wall",
         "person=woman, skin=tan, hair=long, hair_colour=black, eyes=brown, clothes=shirt, clothes_colour=pink, "
         "wall=dots, wall_colour=white"),
        ("Pale young man with glasses, side-parted brown hair, brown jacket, frowning",
         "person=man, glasses=glasses, hair=parted, hair_colour=brown, clothes=jacket, "
         "clothes_colour=brown, mood=serious"),
        ("Video of a smiling girl, short blue hair, black tshirt, soft pink gradient behind her, she nods a lot",
         "person=woman, mood=smiling, hair=short, hair_colour=blue, clothes=t-shirt, clothes_colour=black, "
         "wall=gradient, wall_colour=pink, manner=lively"),
        ("news presenter: man with grey hair, dark blue suit, yellow tie, dark green backdrop",
         "person=man, hair_colour=grey, clothes=jacket, clothes_colour=navy, second_colour=yellow, "
         "wall_colour=dark green"),
        ("a relaxed fellow with very short hair and a full beard, orange t-shirt, houseplant next to him",
         "person=man, manner=calm, hair=shaved, beard=beard, clothes=t-shirt, clothes_colour=orange, wall=plant"),
        ("A lady in a yellow raincoat hoodie with grey hair speaks in front of a blue wall.",
         "person=woman, clothes=hoodie, clothes_colour=yellow, hair_colour=grey, wall_colour=blue"),
        ("man with a moustache and a red cap, white shirt, window behind him",
         "person=man, beard=moustache, hat=cap, hat_colour=red, clothes=shirt, clothes_colour=white, wall=window"),
        ("a black woman's portrait: big brown afro, golden earrings, orange dress, teal wall",
         "person=woman, hair=afro, hair_colour=brown, earrings=earrings, clothes=dress, clothes_colour=orange, "
         "wall_colour=teal"),
        ("bearded guy wearing square spectacles and a brown sweater, he looks angry",
         "person=man, beard=beard, glasses=square, clothes=v-neck, clothes_colour=brown, mood=serious"),
        ("pink-haired girl in black, with a cap, laughing, bookshelf behind her",
         "person=woman, hair_colour=pink, hat=cap, mood=smiling, wall=shelf"),
        ("a boss in a grey jacket and a purple tie; the wall is orange; he is bald",
         "person=man, clothes=jacket, clothes_colour=grey, second_colour=purple, wall_colour=orange, hair=bald"),
        ("Woman with freckles and a navy beanie, green t-shirt, dots on the yellow wall",
         "person=woman, freckles=freckles, hat=beanie, hat_colour=navy, clothes=t-shirt, clothes_colour=green, "
         "wall=dots, wall_colour=yellow"),
        ("the girl's blonde hair is in a bun and her sweater is red",
         "person=woman, hair_colour=blonde, hair=bun, clothes=v-neck, clothes_colour=red"),
        ("astonished young man, curly hair, blue eyes, pink hoodie, plain grey background",
         "person=man, mood=surprised, hair=curly, eyes=blue, clothes=hoodie, clothes_colour=pink, wall=plain, "
         "wall_colour=grey"),
        ("grandfather, white hair, round glasses and a green v-neck, sits motionless before a red wall with a picture",
         "person=man, hair_colour=white, glasses=round, clothes=v-neck, clothes_colour=green, manner=still, "
         "wall=picture, wall_colour=red"),
        ("A talking woman. Hair: long, auburn. Clothes: teal and white stripes. Background: purple lights.",
         "person=woman, hair=long, hair_colour=auburn, clothes=striped top, clothes_colour=teal, "
         "second_colour=white, wall=lights, wall_colour=purple"),
        ("happy person in a black suit with a yellow tie against a smooth dark green background",
         "mood=smiling, clothes=jacket, clothes_colour=black, second_colour=yellow, wall=gradient, "
         "wall_colour=dark green"),
    )
)  # fmt: skip
