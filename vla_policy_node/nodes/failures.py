"""Logs exceptions from callbacks, which must not end the node, without filling the disk."""

import traceback
from collections import Counter
from collections.abc import Callable


class FailureLog:
    """Logs the full exception if it is the 1st, 2nd, 4th, 8th ... of its kind and place.

    log: receives the text. Not thread-safe.
    """

    def __init__(self, log: Callable[[str], None]):
        self._log = log
        self._counts: Counter[tuple] = Counter()

    def note(self, error: BaseException) -> None:
        """Log the exception or only count it; called where it was caught."""
        *_, frame = traceback.walk_tb(error.__traceback__)
        key = type(error), frame[0].f_code.co_filename, frame[1]
        self._counts[key] += 1
        count = self._counts[key]
        if count & (count - 1) == 0:
            text = ''.join(traceback.format_exception(error)).rstrip()
            self._log(f'{text}\n({count} of these so far; this goes on.)')
