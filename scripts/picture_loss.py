"""How much the pictures of two sets of demonstrations differ, e.g. after a round trip in videos.

    python scripts/picture_loss.py data/object data/again
"""

import sys

import numpy as np

from vla_policy_node.training.demonstrations import Demonstrations


def main(before: str, after: str) -> None:
    """Print the peak signal-to-noise ratio over all frames and cameras."""
    one, other = Demonstrations(before), Demonstrations(after)
    if len(one) != len(other):
        sys.exit(f'{before} has {len(one)} frames and {after} {len(other)}.')
    errors = [np.mean((one.picture(frame, camera).astype(float)
                       - other.picture(frame, camera)) ** 2)
              for camera in one.document['cameras'] for frame in range(len(one))]
    if not any(errors):
        sys.exit('All pictures are the same, bit by bit.')
    decibels = 10 * np.log10(255**2 / np.maximum(errors, 1e-9))
    print(f'{len(errors)} pictures: {np.median(decibels):.1f} dB in the median, '
          f'{decibels.min():.1f} dB at worst')


if __name__ == '__main__':
    main(*sys.argv[1:3])
