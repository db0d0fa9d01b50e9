"""In a workspace built as README says the nodes start: what they import is declared there."""

import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from importlib import metadata
from pathlib import Path

import pytest
from marks import imports_of
from tiny_model import runs_here
from training_data import small_config

from vla_policy_node import acceleration

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / 'vla_policy_node'
# rosdep key -> distribution; keys that are ROS packages keep their names.
KEYS = {
    'python3-huggingface-hub-pip': 'huggingface_hub', 'python3-matplotlib': 'matplotlib',
    'python3-numpy': 'numpy', 'python3-opencv': 'opencv-python-headless', 'python3-pil': 'pillow',
    'python3-pytorch-pip': 'torch', 'python3-rich': 'rich', 'python3-rosbags-pip': 'rosbags',
    'python3-scipy': 'scipy', 'python3-simplejpeg-pip': 'simplejpeg', 'python3-typer': 'typer',
    'python3-yaml': 'PyYAML',
}
# What a node does without, with a sentence or another way: 8- and 4-bit weights, kernels that
# come with torch's CUDA build.
OPTIONAL = {'torchao', 'triton'}
# The simulated world needs requirements/, as README says.
NODES = sorted(f'vla_policy_node.nodes.{path.stem}' for path in (PACKAGE / 'nodes').glob('*.py')
               if path.stem != '__init__' and not path.stem.startswith('world_'))
METHODS = [f'vla_policy_node.acceleration.{path.stem}'
           for path in (PACKAGE / 'acceleration').glob('*.py') if path.stem != '__init__']

HIDING = '''
import sys

class Declared:
    @staticmethod
    def find_spec(name, path=None, target=None):
        top = name.partition('.')[0]
        if top not in {allowed!r} | sys.stdlib_module_names and not top.startswith('_sysconfig'):
            raise ModuleNotFoundError(f'No module named {{name!r}}', name=name)

sys.meta_path.insert(0, Declared)
'''
IMPORT_ALL = '''
import importlib
for name in {names!r}:
    importlib.import_module(name)
'''
LOAD_EACH = '''
import sys, tempfile
from pathlib import Path
import numpy as np
from vla_policy_node.runtime.small import create_small_checkpoint
from vla_policy_node.policy.interface import CAMERAS, InferenceRequest, Observation
from vla_policy_node.policy.local import LocalPolicy
checkpoint = create_small_checkpoint(
    Path(tempfile.mkdtemp()) / 'small', config={config!r})
image = np.zeros((64, 64, 3), np.uint8)
for name in {names!r}:
    policy = LocalPolicy.load(checkpoint, methods=(name,))
    for _ in range(2):
        policy.infer(InferenceRequest(
            Observation(dict.fromkeys(CAMERAS, image), np.zeros(8), 'pick up the milk')))
'''


def declared_packages():
    """Distributions and ROS packages that package.xml and README's pip line name."""
    manifest = ElementTree.parse(ROOT / 'package.xml').getroot()
    keys = {e.text for tag in ('depend', 'exec_depend') for e in manifest.findall(tag)}
    (line,) = re.findall(r'^pip install --break-system-packages ([\w\- .]+)',
                         (ROOT / 'README.md').read_text(encoding='utf-8'), re.MULTILINE)
    return {KEYS.get(key, key) for key in keys} | set(line.split())


def normal(name):
    return re.sub(r'[-_.]+', '-', name).lower()


def importable(names):
    """Top-level modules of these packages and of all that they require."""
    modules_of = {}
    for module, distributions in metadata.packages_distributions().items():
        for distribution in distributions:
            modules_of.setdefault(normal(distribution), set()).add(module)
    found, modules, waiting = set(), set(), list(names)
    while waiting:
        name = normal(waiting.pop())
        if name in found:
            continue
        found.add(name)
        modules |= modules_of.get(name, {name.replace('-', '_')})
        for distribution in (name, f'ros-{name}'):  # ROS packages as wheels
            try:
                requires = metadata.requires(distribution) or []
            except metadata.PackageNotFoundError:
                continue
            modules |= modules_of.get(distribution, set())
            waiting += [re.match(r'[\w.-]+', requirement)[0] for requirement in requires
                        if 'extra ==' not in requirement]
    return modules


def run_with_declared_only(code):
    allowed = importable(declared_packages()) | {'vla_policy_node'}
    done = subprocess.run(
        [sys.executable, '-c', HIDING.format(allowed=allowed) + code],
        cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def file_of(module):
    path = ROOT.joinpath(*module.split('.'))
    return next((p for p in (path.with_suffix('.py'), path / '__init__.py') if p.is_file()), None)


def reached_from(modules):
    """Everything from outside that these import, also later and inside of functions."""
    seen, outside, waiting = set(), {}, list(modules)
    while waiting:
        path = file_of(waiting.pop())
        if path is None or path in seen:
            continue
        seen.add(path)
        for name in imports_of(path):
            top = name.split('.')[0]
            if top == 'vla_policy_node':
                waiting.append(name)
            elif top not in sys.stdlib_module_names:
                outside.setdefault(top, path.relative_to(ROOT))
    return outside


def test_whatever_the_nodes_ever_import_is_declared():
    """Also what a method, a dtype or a bag needs only when it is chosen."""
    allowed = importable(declared_packages()) | OPTIONAL
    missing = {name: str(path) for name, path in reached_from(NODES + METHODS).items()
               if name not in allowed}
    assert not missing, 'declare it in package.xml or in README, "In a ROS 2 workspace"'


def test_what_is_not_declared_is_hidden():
    """Else the tests below would prove nothing."""
    with pytest.raises(AssertionError, match="No module named 'mujoco'"):
        run_with_declared_only('import mujoco')


@pytest.mark.slow
def test_every_module_of_the_nodes_is_imported_with_the_declared_packages_alone():
    """And of every executable: the simulated world says what it lacks when it starts."""
    scripts = re.findall(r"'\w+ = ([\w.]+):main'", (ROOT / 'setup.py').read_text(encoding='utf-8'))
    assert len(scripts) > 5
    run_with_declared_only(IMPORT_ALL.format(names=[*NODES, *scripts]))


def test_no_key_is_one_that_ubuntu_24_04_lacks():
    """rosdep knows python3-torch, but that release has no such package: the whole call fails."""
    keys = [e.text for e in ElementTree.parse(ROOT / 'package.xml').iter('exec_depend')]
    assert 'python3-pytorch-pip' in keys and 'python3-torch' not in keys


@pytest.mark.slow
def test_a_policy_runs_every_method_with_the_declared_packages_alone():
    names = [name for name in acceleration.available()
             if runs_here(name) and not acceleration.named(name).weights_file]
    config = small_config()
    config['text_config']['num_hidden_layers'] = 6  # some methods begin at a later one
    run_with_declared_only(LOAD_EACH.format(names=names, config=config))
