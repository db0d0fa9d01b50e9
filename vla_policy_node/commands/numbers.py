"""Parses lists of numbers on the command line."""


def parse_numbers(text: str) -> tuple[int, ...]:
    """Read '0-3,7' as (0, 1, 2, 3, 7); ValueError for anything else."""
    numbers = []
    try:
        for part in text.split(','):
            first, _, last = part.partition('-')
            numbers += range(int(first), int(last or first) + 1)
    except ValueError:
        numbers = []
    if not numbers:
        raise ValueError(f"tasks is '{text}'; write numbers and ranges, e.g. 0-3,7.")
    return tuple(dict.fromkeys(numbers))
