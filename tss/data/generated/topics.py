"""Topics: short texts; in the test split, most topic words do not occur in the training split."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

TOPIC_WORDS = {
    "body": ("heart blood brain bone muscle lung skin stomach nerve liver throat tooth knee wrist fever wound").split(),
    "home": (
        "kitchen chair table window door bed roof wall floor lamp curtain cupboard stairs carpet sofa fireplace"
    ).split(),
    "law": (
        "court judge law crime prison trial witness lawyer guilty verdict jury police sentence theft evidence oath"
    ).split(),
    "sea": ("ship sea boat sail captain harbour wave island storm anchor deck shore fleet tide mast crew").split(),
    "war": (
        "army soldier battle sword enemy general troops weapon fight victory siege rifle regiment cavalry shield defeat"
    ).split(),
    "worship": (
        "church priest god prayer bible holy faith bishop angel sin temple saint gospel monk altar soul"
    ).split(),
}
REQUEST_WORDS = {
    "food": ("bread meat soup cake apple cheese wine fish butter coffee sugar pudding rice potato honey salad").split(),
    "travel": (
        "train flight ticket hotel airport station luggage taxi passenger journey bus route road car map passport"
    ).split(),
    "money": ("bank pay money dollars price bill loan debt tax coin account cash salary cheque cost fortune").split(),
    "music": (
        "song band concert guitar piano singer tune dance album violin orchestra melody choir drum opera chorus"
    ).split(),
    "weather": ("rain snow wind cloud sun storm cold heat fog temperature frost thunder breeze sky ice shower").split(),
}
TOPIC_FRAMES = (
    "They spoke of the {0} and the {1} until late, and nobody forgot the {2}.",
    "What he remembered best was the {0}; the {1} and the {2} came second.",
    "The first chapter is about the {0}, the last about the {1} and a {2}.",
    "She had seen a {0} before, but never a {1} beside a {2} like this.",
    "There was something about the {0}, the {1} and the {2} in the letter.",
)
REQUEST_FRAMES = (
    "Could you please tell me more about the {0} and the {1}?",
    "I am looking for a {0}, and then there is the {1} and the {2}.",
    "My friend asked me about the {0} and I said {1} or {2}.",
    "Is there any news about the {0}, or at least about the {1}?",
    "We need to talk about {0}, {1} and perhaps {2} before Monday.",
)
SEEN = 10  # words of each topic used in training; three in four test texts use the others instead


def _texts(
    rng: random.Random, split: str, size: int, words: Mapping[str, Sequence[str]], frames: tuple[str, ...]
) -> list[dict[str, object]]:
    examples: list[dict[str, object]] = []
    for _ in range(size):
        label = rng.choice(list(words))
        unseen = split == "test" and rng.random() < 0.75
        pool = words[label][SEEN:] if unseen else words[label][:SEEN]
        examples.append({"text": rng.choice(frames).format(*rng.sample(pool, 3)), "label": label})
    return examples


def topics(rng: random.Random, split: str, size: int) -> list[dict[str, object]]:
    """Return narrative texts on six topics."""
    return _texts(rng, split, size, TOPIC_WORDS, TOPIC_FRAMES)


def requests(rng: random.Random, split: str, size: int) -> list[dict[str, object]]:
    """Return requests on five topics."""
    return _texts(rng, split, size, REQUEST_WORDS, REQUEST_FRAMES)
