"""Names of LIBERO's objects as instructions use them."""

# Where all objects of a suite belong. libero_goal is not here: each of its tasks has its own.
GOALS = {'libero_object': 'basket_1', 'libero_spatial': 'plate_1'}


def object_words(name: str) -> str:
    """'alphabet_soup_1' -> 'alphabet soup'."""
    return name.rpartition('_')[0].replace('_', ' ')


def basket_instruction(name: str) -> str:
    """How libero_object asks for an object."""
    return f'pick up the {object_words(name)} and place it in the basket'
