"""The ratchet of type errors: no folder may have more than is written down, and fewer is kept."""

import importlib.util
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

ROOT = next(folder for folder in Path(__file__).parents if (folder / 'setup.py').is_file())
COUNTS = st.dictionaries(st.sampled_from(['control', 'nn', 'world']), st.integers(0, 9))


@pytest.fixture(scope='module')
def ratchet():
    path = ROOT / 'scripts' / 'check_types.py'
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_errors_are_counted_by_folder(ratchet):
    report = '\n'.join((
        'vla_policy_node/nodes/goals.py:3: error: Item "None" has no attribute  [union-attr]',
        'vla_policy_node/nodes/goals.py:3: note: this is no error: a note',
        'vla_policy_node/bench/live/fault_trials.py:7: error: bad  [misc]',
        'vla_policy_node/loose_file.py:7: error: bad  [misc]',
        'Found 3 errors in 3 files (checked 310 source files)',
    ))
    assert ratchet.count_errors(report) == {'nodes': 1, 'bench': 1, '.': 1}


@given(found=COUNTS, allowed=COUNTS)
def test_a_folder_is_named_exactly_if_its_number_differs(ratchet, found, allowed):
    more, fewer = ratchet.compare(found, allowed)
    for folder in {*found, *allowed}:
        count, limit = found.get(folder, 0), allowed.get(folder, 0)
        assert any(line.startswith(f'{folder}:') for line in more) == (count > limit)
        assert any(line.startswith(f'{folder}:') for line in fewer) == (count < limit)


@given(found=COUNTS, allowed=COUNTS)
def test_limits_only_go_down(ratchet, found, allowed):
    lowered = ratchet.lowered(found, allowed)
    assert all(lowered[folder] <= allowed[folder] for folder in lowered)
    assert not ratchet.compare(lowered, allowed)[0]
    if not ratchet.compare(found, allowed)[0]:
        assert ratchet.compare(found, lowered) == ([], [])


@given(found=COUNTS, allowed=COUNTS)
def test_moved_code_takes_its_errors_along_but_brings_no_other(ratchet, found, allowed):
    limits = ratchet.moved(found, allowed)
    assert (limits is None) == (sum(found.values()) > sum(allowed.values()))
    assert limits is None or ratchet.compare(found, limits) == ([], [])


def test_what_others_build_on_may_have_no_error(ratchet):
    allowed = json.loads(ratchet.LIMITS.read_text())
    assert not {'control', 'policy', 'nn', 'acceleration'} & allowed.keys()
