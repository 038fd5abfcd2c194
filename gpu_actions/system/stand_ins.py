"""Import a package without another one that it imports, but does not need for what we do with it."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType


class Absent(Exception):
    """Stands for every class of an absent package. Nothing is an instance of it, and nothing raises it."""


@contextmanager
def absent(*names: str) -> Iterator[None]:
    """Put stand-ins into the place of modules during the block, parents first, unless they are imported already.

    What is imported meanwhile keeps the stand-ins; others import the real modules afterwards.
    """
    if names[0] in sys.modules:
        yield
        return
    for name in names:
        module = ModuleType(name)
        module.__getattr__ = lambda _: Absent  # type: ignore[method-assign]
        parent, _, own = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], own, module)
        sys.modules[name] = module
    try:
        yield
    finally:
        for name in names:
            del sys.modules[name]
