"""A folder of made-up demonstrations for the tests of training: coloured squares, no simulator."""

import json
from pathlib import Path

import numpy as np

from vla_policy_node.training import demonstrations
from vla_policy_node.training.dataset_statistics import write_statistics

CAMERAS = ('third_person', 'wrist')
OBJECTS = ('milk_1', 'butter_1', 'basket_1')
SEGMENTS = (*OBJECTS, 'gripper', 'arm')
COLOURS = np.array([[220, 40, 40], [40, 220, 40], [40, 40, 220]], np.uint8)
PX = 56


def make_demonstrations(
    directory: Path, episodes: int = 26, steps: int = 10, layout: str = 'shuffled'
) -> Path:
    """Write episodes in which the action is where the named square is."""
    demonstrations.write_document(directory, {
        'format': demonstrations.FORMAT, 'suite': 'libero_object', 'layout': layout,
        'cameras': list(CAMERAS), 'image_px': PX, 'labels_px': PX,
    })
    for seed in range(episodes):
        demonstrations.write_demonstration(directory, episode(seed, steps, layout))
    write_statistics(demonstrations.Demonstrations(directory))
    return directory


def episode(seed: int, steps: int, layout: str) -> demonstrations.Demonstration:
    """Squares of 14 px at random places, the same in both cameras."""
    rng = np.random.default_rng(seed)
    corners = 14 * rng.permutation(16)[:3, None] // np.array([4, 1]) % 56 // 14 * 14
    image = np.full((PX, PX, 3), 128, np.uint8)
    labels = np.zeros((PX, PX), np.uint8)
    for index, (row, column) in enumerate(corners):
        image[row : row + 14, column : column + 14] = COLOURS[index]
        labels[row : row + 14, column : column + 14] = index + 1
    places = np.column_stack([(corners + 7) / PX - 0.5, np.zeros(3)])
    target = int(rng.integers(2))
    frames = range(0, steps, 4)
    action = np.zeros((steps, 7))
    action[:, :3] = places[target] + rng.normal(0, 0.01, (steps, 3))
    action[:, 6] = np.arange(steps) < steps // 2
    words = OBJECTS[target].split('_')[0]
    return demonstrations.Demonstration(
        proprio=rng.normal(0, 0.1, (steps, 8)), action=action, executed=action,
        frame_step=list(frames), object_position=np.repeat(places[None], len(frames), 0),
        images=dict.fromkeys(CAMERAS, [image] * len(frames)),
        labels=dict.fromkeys(CAMERAS, [labels] * len(frames)),
        suite='libero_object', task_id=0, layout=layout, seed=seed, noise=0.0, success=True,
        instruction=f'pick up the {words} and place it in the basket', target=OBJECTS[target],
        objects=OBJECTS, segments=SEGMENTS)


def small_config() -> dict:
    """Sizes of a model that trains in milliseconds."""
    from vla_policy_node.runtime.small import CONFIG

    config = json.loads(json.dumps(CONFIG))
    for encoder in config['vision_tiny'].values():
        encoder.update(embed_dim=16, feature_block=0, num_heads=2, mlp_hidden=32, img_size=PX)
    config['text_config'].update(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48)
    return config
