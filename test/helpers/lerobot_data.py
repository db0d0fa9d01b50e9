"""The recordings of the pack `lerobot_v3`, written by our own writer."""

import json
from pathlib import Path

import numpy as np

PACK = Path(__file__).parents[1] / 'data' / 'lerobot_v3'
FPS = {'video': 10, 'image': 20}


def write_recording(folder: Path, kind: str, **options) -> Path:
    """Write what was handed to LeRobot's writer into folder/dataset; return that."""
    from vla_policy_node.lerobot.assemble import assemble
    from vla_policy_node.lerobot.info import Feature
    from vla_policy_node.lerobot.parts import DatasetPlan, EpisodeParts

    source = np.load(PACK / f'source_{kind}.npz')
    tasks = json.loads((PACK / f'source_{kind}_tasks.json').read_text())
    described = json.loads((PACK / f'dataset_{kind}' / 'meta' / 'info.json').read_text())
    features = tuple(
        Feature(key, entry['dtype'], tuple(entry['shape']), tuple(entry['names'] or ()))
        for key, entry in described['features'].items()
        if key.startswith(('observation', 'action', 'next')))
    (folder / 'parts').mkdir(parents=True)
    (folder / 'dataset').mkdir()
    plan = DatasetPlan(FPS[kind], features, described['robot_type'])
    parts = EpisodeParts(folder / 'parts', plan)
    for number, asked in enumerate(tasks):
        values = {feature.key: source[f'ep{number}__{feature.key}'] for feature in features}
        parts.write(number, values, asked, values)
    assemble(parts, len(tasks), folder / 'dataset', **options)
    return folder / 'dataset'
