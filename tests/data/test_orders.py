"""Orders of tasks and the short names that stand for them."""

from __future__ import annotations

import pytest

from tss.data import AUTHOR_ORDERS, author_order, resolve_order
from tss.data.orders import ALIASES
from tss.errors import ConfigError


def test_orders_of_a_family_hold_the_same_tasks_and_all_have_an_alias():
    sizes = {"asc": 19, "ccd": 5, "ner": 5, "sum": 6, "drg": 5}
    for family, (first, second) in AUTHOR_ORDERS.items():
        assert len(set(first)) == len(first) == sizes[family]
        assert set(first) == set(second) == set(ALIASES[family])
        assert first != second
    assert len(author_order("mixed")) == 40


def test_short_names_find_their_tasks_and_the_rest_is_reported():
    available = ["asc/ding9_CanonPowerShotSD500", "asc/hl5_NikonCoolpix4300", "ner/conll2003", "drg/mwoz_taxi", "x/own"]
    order = resolve_order(["taxi", "Nikon4300", "yelp", "conll2003", "asc/CanonSD500", "x/own", "x/typo"], available)
    assert order.tasks == [
        *("drg/mwoz_taxi", "asc/hl5_NikonCoolpix4300", "ner/conll2003", "asc/ding9_CanonPowerShotSD500", "x/own")
    ]
    assert order.missing == ["yelp", "x/typo"]


def test_parts_of_names_match_nothing():
    assert resolve_order(["Canon", "asc/ding9"], ["asc/ding9_CanonS100"]).tasks == []


def test_a_task_under_its_short_name_in_the_data_comes_first():
    assert resolve_order(["taxi"], ["drg/mwoz_taxi", "drg/taxi"]).tasks == ["drg/taxi"]


def test_a_short_name_of_two_families_must_be_made_clear():
    with pytest.raises(ConfigError, match="'restaurant' is a task of asc and of drg; write asc/restaurant"):
        resolve_order(["restaurant"], ["drg/mwoz_restaurant"])
    assert resolve_order(["drg/restaurant"], ["drg/mwoz_restaurant"]).tasks == ["drg/mwoz_restaurant"]


def test_a_task_asked_for_twice_is_refused():
    with pytest.raises(ConfigError, match="task drg/mwoz_taxi is asked for twice, as 'taxi' and as 'drg/mwoz_taxi'"):
        resolve_order(["taxi", "drg/mwoz_taxi"], ["drg/mwoz_taxi"])


def test_a_seed_shuffles_and_hangs_on_the_tasks_alone():
    names = [f"x/{i}" for i in range(20)]
    one = resolve_order(names, names, seed=1).tasks
    assert sorted(one) == sorted(names)
    assert one not in (names, sorted(names))
    assert resolve_order(names[::-1], names, seed=1).tasks == one
    assert resolve_order(names, names, seed=2).tasks != one


@pytest.mark.parametrize(("family", "number"), [("abc", 0), ("asc", 2), ("asc", -1)])
def test_an_order_that_is_not_there_is_named(family, number):
    with pytest.raises(ConfigError, match=f"no order {number} of family '{family}'; there are orders 0 and 1 of: asc"):
        author_order(family, number)
