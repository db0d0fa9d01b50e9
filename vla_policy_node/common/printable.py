"""Text that somebody else wrote, such as names in a bag, on our terminal."""


def printable(text: str) -> str:
    """Return the text without what would move the cursor; lines stay lines."""
    return ''.join(letter if letter.isprintable() or letter in '\n\t' else '?' for letter in text)
