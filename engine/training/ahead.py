"""Doing the next piece of work in the background while the present one is used."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Given = TypeVar("Given")
Made = TypeVar("Made")


def ahead(make: Callable[[Given], Made], items: Iterable[Given]) -> Iterator[Made]:
    """Yield what `make` makes of each item, in their order; a thread makes the next one meanwhile.

    An error in `make` comes where its item would. Close the iterator when leaving it before its end.
    """
    with ThreadPoolExecutor(1, "ahead") as thread:
        following = None
        for item in items:
            made, following = following, thread.submit(make, item)
            if made is not None:
                yield made.result()
        if following is not None:
            yield following.result()
