"""What holds for every test: its part of the suite, and the same examples, threads and random
numbers in every run, whatever ran before it.
"""

import gc
import itertools
import signal
import sys

import marks
import pytest
from hypothesis import settings

# Laws are checked on the same examples in every run, however slow the machine is.
settings.register_profile('deterministic', deadline=None, derandomize=True)
settings.load_profile('deterministic')

# With two threads a matrix library may add in another order than with one, so a test compares bits
# only with what was computed with as many.
TORCH_THREADS = 1
_number = itertools.count()


@pytest.fixture(scope='session', autouse=True)
def pinned_threads():
    """Torch computes with one thread, also what fixtures of a module make."""
    torch = sys.modules.get('torch')  # not for tests that need none
    if torch is None:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(TORCH_THREADS)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope='session', autouse=True)
def small_heap():
    """Keep what was imported and collected out of sight of the garbage collector.

    A node collects garbage when it frees its policy, which takes 0.3 s with a million objects of
    libraries and tests to look at: a minute in all.
    """
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope='session', autouse=True)
def interruptible():
    """Let processes that tests start be ended by signals, also under `&` and `nohup`.

    A shell has its background jobs ignore SIGINT, nohup has them ignore SIGHUP, and what is
    ignored is inherited.
    """
    handlers = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}
    before = {number: signal.getsignal(number) for number in handlers}
    for number, handler in handlers.items():
        if before[number] == signal.SIG_IGN:
            signal.signal(number, handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def own_state_directory(tmp_path_factory, monkeypatch):
    """No robot of a test is stopped by what an earlier test, or the user, has latched."""
    folder = tmp_path_factory.getbasetemp() / 'state' / str(next(_number))
    monkeypatch.setenv('XDG_STATE_HOME', str(folder))


@pytest.fixture(autouse=True)
def own_process_state(pinned_threads):
    """Every test begins with the same random numbers, and leaves torch with the threads it had."""
    torch = sys.modules.get('torch')
    if torch is None:
        yield
        return
    torch.set_num_threads(TORCH_THREADS)  # the test before may have been the first to import it
    torch.manual_seed(0)
    yield
    left, _ = torch.get_num_threads(), torch.set_num_threads(TORCH_THREADS)
    assert left == TORCH_THREADS, (
        f'The test left torch with {left} threads: set them with vla_policy_node.common.scoped.')


def pytest_itemcollected(item):
    """Mark every test with its part of the suite: its folder, unless it bears `slow` itself."""
    try:
        part = marks.part_of(item.path)
    except ValueError as error:
        raise pytest.UsageError(str(error)) from error
    item.add_marker('slow' if item.get_closest_marker('slow') else part)
    if marks.is_live(item.path):
        item.add_marker('alone')
    if item.config.pluginmanager.hasplugin('xdist'):  # one process runs a group, in order
        alone = item.get_closest_marker('alone')
        item.add_marker(pytest.mark.xdist_group('alone' if alone else str(item.path)))


@pytest.hookimpl(trylast=True)  # behind the shuffling
def pytest_collection_modifyitems(config, items):
    """Run the parts one after the other; side by side, what must be alone comes last."""
    side_by_side = hasattr(config, 'workerinput')  # one of the processes of xdist

    def place(item):
        part = next(
            index for index, part in enumerate(marks.PARTS) if item.get_closest_marker(part))
        return side_by_side and item.get_closest_marker('alone') is not None, part

    items.sort(key=place)
