"""The part `unit` runs where neither ROS nor the simulated world is installed."""

import sys

import marks
import pytest


@pytest.fixture(autouse=True)
def nothing_of_other_parts(monkeypatch):
    """Make what the other parts need look as if it were not installed, in every test."""
    loaded = [name for name in sys.modules if name.startswith(marks.NOT_IN_UNIT)]
    for name in {*marks.NOT_IN_UNIT, *loaded}:
        if name.partition('.')[0] in marks.NOT_IN_UNIT:
            monkeypatch.setitem(sys.modules, name, None)
