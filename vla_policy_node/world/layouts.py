"""Object layouts at the start of an episode: LIBERO's own, or shuffled.

LIBERO's own initial states move the objects by a few millimetres only, so a state-only policy can
memorise them. 'shuffled' forces a policy to look. Where an instruction names its object, all
objects but the basket change places at random and every one is moved by up to 2.5 cm
(`shuffle`). Where it describes an object by its neighbours, everything on the table moves
together, so that the words stay true (`shift`). Demonstrations and evaluations draw from disjoint
seeds.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

LAYOUTS = ('standard', 'shuffled')
HELD_OUT_SEED = 1_000_000  # seeds from here on are for evaluation only
# Where the seeds of each set of held-out layouts begin. All choices (of a method, its constants, a
# recipe) are made on `development`; `test` is looked at once a release, so that its figures are
# not those of what happened to be best on it.
SPLITS = {'development': HELD_OUT_SEED, 'test': 2 * HELD_OUT_SEED}
HELD_OUT_STATES = 10  # of LIBERO's initial states of a task, the last ones
JITTER_M = 0.025
CLEARANCE_M = 0.005
# How far the objects of libero_spatial move together, x and y: nearer to the robot only, which at
# LIBERO's places stretches its arm already; not into stove and cabinet.
SHIFT_M = np.array([(-0.08, 0.0), (-0.03, 0.08)])

_TRIES = 200


def standard_state(seed: int, states: int) -> int:
    """Return which of LIBERO's `states` initial states a seed stands for.

    The last ten are kept for held-out seeds.
    """
    if seed >= HELD_OUT_SEED:
        return states - HELD_OUT_STATES + (seed - HELD_OUT_SEED) % HELD_OUT_STATES
    return seed % (states - HELD_OUT_STATES)


def shuffle(
    places: np.ndarray, radii: Sequence[float], fixed: Sequence[bool], rng: np.random.Generator
) -> np.ndarray:
    """Return new places, [N, 2] m: permuted, except where `fixed`, and all of them jittered.

    places: [N, 2] m. radii: [N] m, of a circle around each object. Objects keep CLEARANCE_M
    between their circles; where the scene is too tight for that, the widest of the places tried.
    """
    movable = np.flatnonzero(~np.asarray(fixed))
    radii = np.asarray(radii, float)
    reach = radii[:, None] + radii + CLEARANCE_M
    np.fill_diagonal(reach, -np.inf)
    best, widest = places, -np.inf
    for _ in range(_TRIES):
        candidate = places.copy()
        candidate[movable] = places[rng.permutation(movable)]
        candidate += rng.uniform(-JITTER_M, JITTER_M, places.shape)
        distance = np.linalg.norm(candidate[:, None] - candidate, axis=-1)
        gap = (distance - reach).min()
        if gap > widest:
            best, widest = candidate, gap
        if gap >= 0:
            break
    return best


def shift(
    places: np.ndarray, fixed: Sequence[bool], rng: np.random.Generator
) -> np.ndarray:
    """Return places [N, 2] m, all but the `fixed` ones moved by the same SHIFT_M."""
    moved = places + rng.uniform(*SHIFT_M.T)
    return np.where(np.asarray(fixed)[:, None], places, moved)
