"""What LIBERO's objects are called in instructions."""


def object_words(name: str) -> str:
    """'alphabet_soup_1' -> 'alphabet soup'."""
    return name.rpartition('_')[0].replace('_', ' ')


def basket_instruction(name: str) -> str:
    """How libero_object asks for an object."""
    return f'pick up the {object_words(name)} and place it in the basket'
