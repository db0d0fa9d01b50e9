"""What colcon finds and what it installs."""

import json
import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from vla_policy_node.system.description import NodeSpec
from vla_policy_node.system.files import NODES

ROOT = Path(__file__).parents[2]
PACKAGES = {'vla_policy_node', 'vla_msgs'}


def packages_found(*arguments):
    beside_python = Path(sys.executable).parent / 'colcon'
    colcon = str(beside_python) if beside_python.exists() else shutil.which('colcon')
    if colcon is None:
        pytest.skip('colcon is not installed')
    done = subprocess.run(
        [colcon, '--log-base', os.devnull, 'list', '--names-only', *arguments],
        cwd=ROOT, check=True, capture_output=True, text=True)
    return done.stdout.split()


def test_both_packages_are_found_with_both_base_paths():
    found = packages_found('--base-paths', '.', 'vla_msgs')
    assert sorted(found) == sorted(PACKAGES)


def test_the_messages_are_built_first():
    found = packages_found('--base-paths', '.', 'vla_msgs', '--topological-order')
    assert found == ['vla_msgs', 'vla_policy_node']


def test_without_base_paths_colcon_stops_at_the_root_package():
    """The trap that the README warns of; if colcon ever looks further, it need not any more."""
    assert packages_found() == ['vla_policy_node']


def test_what_stands_in_for_ros_in_our_environment_is_no_package_of_a_workspace(manifest):
    stand_in = ROOT / 'scripts' / 'ros'
    assert not packages_found('--base-paths', 'scripts')
    assert not packages_found('--base-paths', '.', 'vla_msgs', '--packages-select', 'tf2_msgs')
    found = packages_found('--base-paths', *(str(path) for path in stand_in.glob('*/')))
    assert found == ['tf2_msgs']
    assert {*found} <= {depend.text for depend in manifest.findall('depend')}


@pytest.fixture(scope='module')
def setup_arguments():
    """Return what setup.py hands to setuptools."""
    code = ('import setuptools, json; '
            'setuptools.setup = lambda **kw: print(json.dumps(kw)); '
            'import runpy; runpy.run_path("setup.py")')
    done = subprocess.run(
        [sys.executable, '-c', code], cwd=ROOT, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


@pytest.fixture(scope='module')
def manifest():
    return ElementTree.parse(ROOT / 'package.xml').getroot()


def test_setup_and_manifest_agree(setup_arguments, manifest):
    for field in ('name', 'version', 'license'):
        assert setup_arguments[field] == manifest.findtext(field), field
    assert manifest.find('maintainer').attrib['email'] == setup_arguments['maintainer_email']
    assert manifest.findtext('export/build_type') == 'ament_python'


def test_both_manifests_have_the_same_version(manifest):
    messages = ElementTree.parse(ROOT / 'vla_msgs' / 'package.xml').getroot()
    assert messages.findtext('version') == manifest.findtext('version')


def test_launch_and_configuration_files_are_installed(setup_arguments):
    installed = dict(setup_arguments['data_files'])
    share = 'share/vla_policy_node'
    for folder, pattern in (
            ('launch', '*.launch.py'), ('config', '*'), ('config/security', '*'),
            ('config/training', '*')):
        paths = (path for path in (ROOT / folder).glob(pattern) if path.is_file())
        files = {f'{folder}/{path.name}' for path in paths}
        assert files
        assert set(installed[f'{share}/{folder}']) == files
    assert installed[share] == ['package.xml']
    assert 'share/ament_index/resource_index/packages' in installed


def test_only_the_package_itself_is_installed(setup_arguments):
    assert {name.split('.')[0] for name in setup_arguments['packages']} == {'vla_policy_node'}
    folders = {path.parent for path in (ROOT / 'vla_policy_node').rglob('*.py')}
    names = {'.'.join(folder.relative_to(ROOT).parts) for folder in folders}
    assert set(setup_arguments['packages']) == names, 'a folder lacks its __init__.py'


def test_console_scripts_name_functions_that_exist(setup_arguments):
    scripts = dict(
        re.fullmatch(r'(\S+) = (\S+)', line).groups()
        for line in setup_arguments['entry_points']['console_scripts'])
    for target in scripts.values():
        module, function = target.split(':')
        path = ROOT.joinpath(*module.split('.'))
        path = path / '__init__.py' if path.is_dir() else path.with_suffix('.py')
        assert f'\ndef {function}(' in path.read_text(encoding='utf-8'), target
    assert {NodeSpec(name).executable for name in NODES} <= scripts.keys()


def test_every_ros_package_that_is_imported_is_declared(manifest):
    declared = {e.text for tag in ('depend', 'exec_depend') for e in manifest.findall(tag)}
    ros = re.compile(
        r'^\s*(?:from|import) (\w+_msgs|rclpy|\w+_interfaces|ament_\w+)\b', re.MULTILINE)
    imported = set()
    for path in (ROOT / 'vla_policy_node').rglob('*.py'):
        imported |= set(ros.findall(path.read_text(encoding='utf-8')))
    assert imported <= declared
