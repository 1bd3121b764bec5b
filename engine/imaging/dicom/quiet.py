"""Silence for libraries that talk too much."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quietly() -> Iterator[None]:
    """Silence the libraries' warnings, which may quote a patient's name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
