"""Task orders: those of the TSS authors and seeded ones, and the task that each short name refers to.

The authors' code uses short task names ("CanonSD500", "emails"); names of data folders include the collection as well.
`ALIASES` lists the folder names for each short name; names are never matched by substring.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from tss.errors import ConfigError
from tss.seeding import stream

# The first two orders that the authors published for each family; they published none for all forty tasks mixed.
AUTHOR_ORDERS: dict[str, tuple[tuple[str, ...], ...]] = {
    "asc": (
        (
            *("laptop", "restaurant", "HitachiRouter", "CanonS100", "ipod", "ApexAD2600", "Nokia6600", "CanonSD500"),
            *("Creative", "Norton", "MicroMP3", "Speaker", "LinksysRouter", "Nokia6610", "Nikon4300", "CanonG3"),
            *("Computer", "Router", "DiaperChamp"),
        ),
        (
            *("CanonG3", "Computer", "DiaperChamp", "Router", "Creative", "Nokia6610", "Norton", "restaurant"),
            *("Nikon4300", "HitachiRouter", "MicroMP3", "LinksysRouter", "ApexAD2600", "ipod", "Nokia6600"),
            *("CanonSD500", "Speaker", "CanonS100", "laptop"),
        ),
    ),
    "ccd": (("yelp", "amazon", "yahoo", "dbpedia", "agnews"), ("yahoo", "yelp", "amazon", "dbpedia", "agnews")),
    "ner": (("conll2003", "wikigold", "btc", "re3d", "gum"), ("btc", "conll2003", "wikigold", "re3d", "gum")),
    "sum": (("nyt", "stack", "emails", "reddit", "icsi", "ami"), ("nyt", "stack", "reddit", "emails", "ami", "icsi")),
    "drg": (
        ("taxi", "hotel", "attraction", "train", "restaurant"),
        ("train", "attraction", "taxi", "hotel", "restaurant"),
    ),
}

# family -> short name -> names that the task may have in a data folder; the first that exists is used
ALIASES: dict[str, dict[str, tuple[str, ...]]] = {
    "asc": {
        "laptop": ("semeval14_laptop",),
        "restaurant": ("semeval14_restaurant",),
        "Speaker": ("liu3_Speaker", "bing3_Speaker"),
        "Router": ("liu3_Router", "bing3_Router"),
        "Computer": ("liu3_Computer", "bing3_Computer"),
        "Nokia6610": ("hl5_Nokia6610",),
        "Nikon4300": ("hl5_NikonCoolpix4300",),
        "Creative": ("hl5_CreativeLabsNomadJukeboxZenXtra40GB",),
        "CanonG3": ("hl5_CanonG3",),
        "ApexAD2600": ("hl5_ApexAD2600Progressive",),
        "CanonSD500": ("ding9_CanonPowerShotSD500",),
        "CanonS100": ("ding9_CanonS100",),
        "DiaperChamp": ("ding9_DiaperChamp",),
        "HitachiRouter": ("ding9_HitachiRouter",),
        "ipod": ("ding9_ipod",),
        "LinksysRouter": ("ding9_LinksysRouter",),
        "MicroMP3": ("ding9_MicroMP3",),
        "Nokia6600": ("ding9_Nokia6600",),
        "Norton": ("ding9_Norton",),
    },
    "ccd": dict.fromkeys(("yelp", "amazon", "yahoo", "dbpedia", "agnews"), ()),
    "ner": dict.fromkeys(("conll2003", "wikigold", "btc", "re3d", "gum"), ()),
    "sum": {
        "nyt": ("convosumm_nyt",),
        "stack": ("convosumm_stack",),
        "emails": ("convosumm_email", "convosumm_emails"),
        "reddit": ("convosumm_reddit",),
        "icsi": (),
        "ami": (),
    },
    "drg": {name: (f"mwoz_{name}",) for name in ("taxi", "hotel", "attraction", "train", "restaurant")},
}


class Order(NamedTuple):
    """Tasks in order, by their names in the data, and the requested names without a task in the data."""

    tasks: list[str]
    missing: list[str]


def author_order(family: str, number: int = 0) -> list[str]:
    """Return the authors' order of a family as "family/short name"; "mixed" gives all families one after the other.

    Raises:
        ConfigError: there is no such family or number.
    """
    if family == "mixed":
        return [name for each in AUTHOR_ORDERS for name in author_order(each, number)]
    if family not in AUTHOR_ORDERS or not 0 <= number < len(AUTHOR_ORDERS[family]):
        raise ConfigError(
            f"no order {number} of family {family!r}; there are orders 0 and 1 of: {', '.join(AUTHOR_ORDERS)}, mixed"
        )
    return [f"{family}/{name}" for name in AUTHOR_ORDERS[family][number]]


def resolve_order(names: Sequence[str], available: Sequence[str], seed: int | None = None) -> Order:
    """Return the task in the data for each name: the name itself if it exists, otherwise the first existing alias.

    Args:
        names: "family/task", "family/short name", or a short name that only one family has.
        available: the available tasks, from `list_tasks`.
        seed: shuffles the result if given; the shuffle depends only on the seed and the tasks, not on their order.

    Returns:
        The tasks, and the names without one: no name is dropped silently.

    Raises:
        ConfigError: a short name exists in several families, or two names refer to the same task.
    """
    tasks: dict[str, str] = {}
    missing = []
    for name in names:
        task = next((candidate for candidate in candidates(name) if candidate in available), None)
        if task is None:
            missing.append(name)
        elif task in tasks:
            raise ConfigError(f"task {task} is asked for twice, as {tasks[task]!r} and as {name!r}")
        else:
            tasks[task] = name
    order = list(tasks)
    if seed is not None:
        order.sort()
        stream("order", seed).shuffle(order)
    return Order(order, missing)


def candidates(name: str) -> list[str]:
    """Return the full names that a name may refer to, in order of preference."""
    family, slash, short = name.partition("/")
    if slash:
        return [name, *(f"{family}/{full}" for full in ALIASES.get(family, {}).get(short, ()))]
    families = [family for family, table in ALIASES.items() if name in table]
    if len(families) > 1:
        raise ConfigError(f"{name!r} is a task of {' and of '.join(families)}; write {families[0]}/{name}, for example")
    return [full for family in families for full in candidates(f"{family}/{name}")]
