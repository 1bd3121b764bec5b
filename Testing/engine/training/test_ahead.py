"""Work done ahead: in order, by one piece at most, with errors where they belong, and ended when it is left."""

import threading
from contextlib import closing

import pytest
from conftest import PATIENCE_SECONDS

from engine.training.ahead import ahead


def test_all_come_in_their_order():
    assert list(ahead(str, range(5))) == ["0", "1", "2", "3", "4"] and list(ahead(str, [])) == []


def test_the_next_one_is_made_while_one_is_used_and_no_further_one():
    made = {number: threading.Event() for number in range(4)}
    for number in ahead(lambda number: made[number].set() or number, range(4)):
        if number < 3:
            assert made[number + 1].wait(PATIENCE_SECONDS)
        assert not any(made[later].is_set() for later in range(number + 2, 4))


def test_an_error_comes_where_its_item_would():
    used = []
    with pytest.raises(ZeroDivisionError):
        for value in ahead(lambda number: 1 / number, [1, 2, 0, 4]):
            used.append(value)
    assert used == [1, 0.5]


def test_nothing_is_made_any_more_once_it_is_left():
    made = []
    with closing(ahead(lambda number: made.append(number) or number, range(100))) as values:
        next(values)
    assert len(made) <= 2 and not any(thread.name.startswith("ahead") for thread in threading.enumerate())
