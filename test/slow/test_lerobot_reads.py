"""LeRobot itself reads what is written here, from an environment of its own.

LeRobot wants another numpy than this project, so it is not in its environment:

    python3.12 -m venv /tmp/lerobot && /tmp/lerobot/bin/pip install 'lerobot[dataset]==0.6.1'
    VLA_LEROBOT_PYTHON=/tmp/lerobot/bin/python pytest test/slow/test_lerobot_reads.py
"""

import json
import os
import subprocess
from pathlib import Path

import pytest

pytest.importorskip('pyarrow')
pytest.importorskip('av')
from lerobot_data import PACK, write_recording

PYTHON = os.environ.get('VLA_LEROBOT_PYTHON', '')
READING = '''
import json, sys
import numpy as np
from lerobot.datasets.lerobot_dataset import LeRobotDataset
root, pack, kind = sys.argv[1:]
source, back = np.load(f'{pack}/source_{kind}.npz'), np.load(f'{pack}/readback.npz')
tasks = json.load(open(f'{pack}/source_{kind}_tasks.json'))
apart = json.load(open(f'{pack}/meta.json'))['delta_timestamps'][kind]
dataset = LeRobotDataset('a/b', root=root, video_backend='pyav', delta_timestamps=apart)
rows = [(e, f) for e, asked in enumerate(tasks) for f in range(len(asked))]
assert len(dataset) == len(rows) and dataset.num_episodes == len(tasks)
worst, compared = float('inf'), 0
for index, (episode, frame) in enumerate(rows):
    item = dataset[index]
    assert item['task'] == tasks[episode][frame]
    for key, value in item.items():
        name = f'{kind}__{index}__{key}'
        if '.images.' in key:
            picture = (value.numpy() * 255).round().transpose(1, 2, 0)
            error = np.mean((picture - source[f'ep{episode}__{key}'][frame]) ** 2)
            worst = min(worst, 10 * np.log10(255**2 / error) if error else float('inf'))
        elif name in back.files and key != 'task_index':
            assert np.array_equal(np.asarray(value).squeeze(), back[name].squeeze()), name
            compared += 1
print(json.dumps({'worst_db': float(worst), 'compared': compared}))
'''


@pytest.mark.skipif(not PYTHON, reason='VLA_LEROBOT_PYTHON names no Python with lerobot in it')
@pytest.mark.parametrize(('kind', 'least_db'), [('video', 27), ('image', float('inf'))])
def test_lerobot_reads_the_values_the_padding_and_the_pictures(tmp_path, kind, least_db):
    folder = write_recording(tmp_path, kind)
    environment = {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'}
    done = subprocess.run(
        [PYTHON, '-W', 'ignore', '-c', READING, str(folder), str(Path(PACK)), kind],
        env={**environment, 'HF_HUB_OFFLINE': '1', 'HF_HOME': str(tmp_path / 'hub')},
        capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found['worst_db'] >= least_db and found['compared'] > 20
