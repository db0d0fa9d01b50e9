"""What `vla replay` leaves: the page in a real browser, the exports read back, the commands."""

import json
import re
import subprocess
import sys
from pathlib import Path

import chromium
import cv2
import numpy as np
import pytest
from node_bench import create_tiny_checkpoint
from PIL import Image
from replay_bag import INSTRUCTION, make_bag
from rich.console import Console

from vla_policy_node.replay import charts, many
from vla_policy_node.replay.bag import Bag
from vla_policy_node.replay.evaluate import evaluate_bag
from vla_policy_node.replay.gate import GateLimits, parse_error_limit
from vla_policy_node.replay.many import replay_bags
from vla_policy_node.replay.settings import ReplaySettings
from vla_policy_node.system.files import share_directory


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    return str(create_tiny_checkpoint(tmp_path_factory.mktemp('tiny')))


@pytest.fixture(scope='module')
def report(tmp_path_factory, checkpoint):
    """The report of a bag with everything that can be written beside it."""
    folder = tmp_path_factory.mktemp('report')
    settings = ReplaySettings(
        'dense', 'random_tokens:count=8', checkpoint=checkpoint, rerun=True, mcap=True,
        limits=GateLimits((parse_error_limit('1m'),), 1e6, 0.5))
    evaluate_bag(make_bag(folder / 'bag', size=(96, 128)), settings, folder / 'out')
    return folder / 'out'


def test_the_page_opens_in_a_browser_without_an_error_and_shows_every_image(report, tmp_path):
    done = chromium.open_page(
        report / 'report.html', '--window-size=1000,3000', '--hide-scrollbars',
        f'--screenshot={tmp_path / "page.png"}')
    assert chromium.console(done) == []
    screenshot = np.asarray(Image.open(tmp_path / 'page.png').convert('RGB'))
    assert screenshot.shape[:2] == (3000, 1000)
    # Every strip of the page shows something.
    assert all(strip.std() > 2.0 for strip in np.array_split(screenshot, 10))
    shown = chromium.images(report / 'report.html', tmp_path)
    assert len(shown) == 26  # six plots, and two policies in ten moments
    assert all(complete and width > 200 and height > 100 for complete, width, height in shown)


@pytest.mark.parametrize(('width', 'picture'), [(920, charts.WIDE), (400, charts.NARROW)])
def test_the_page_fits_its_window_and_has_charts_for_it(report, tmp_path, width, picture):
    found = chromium.layout(report / 'report.html', tmp_path, width)
    assert found['width'] == width  # nothing but tables scrolls sideways
    assert found['smallest'] >= 13
    assert len(found['charts']) == 6
    for pixels, shown in found['charts']:
        assert pixels == round(picture.width_in * picture.dpi)
        assert shown > 0.85 * width


def test_the_page_is_one_file_that_loads_nothing(report):
    text = (report / 'report.html').read_text()
    assert "default-src 'none'" in text
    assert 'http:' not in text.replace('http-equiv', '')
    assert 'https:' not in text
    assert '<script' not in text
    assert INSTRUCTION in text
    assert 'passed' in text


FIGURE = re.compile(
    r'<div id="(\w+)"><figure id="(\w+)-large".*?<a class="open" href="#(\w+)-large">(.*?)</a>'
    r'<a class="close" href="#(\w+)">.*?<figcaption>(.*?)<span class="run">(.*?)</span>', re.S)


def test_every_figure_says_what_is_seen_what_it_means_and_of_which_run(report):
    found = FIGURE.findall((report / 'report.html').read_text())
    assert len(found) == 16
    for at, large, opens, inside, closes, caption, run in found:
        assert at == large == opens == closes
        for alt in re.findall(r'alt="(.*?)"', inside):
            assert len(alt) > 40
            assert alt not in caption and caption not in alt
        assert re.search(r'dense against random_tokens.* on .*bag, \d{4}-\d\d-\d\d .*'
                         r'vla_policy_node', run)


def test_the_page_says_how_it_ranks_and_what_else_ran(report):
    text = (report / 'report.html').read_text()
    assert 'by the RMS of the difference over all elements' in text
    load = json.loads((report / 'latency.json').read_text())['load']
    assert f'{load["cores"]} cores, load average' in text
    assert text.count('other programs kept') >= 2  # beside the chart and above the table
    distances = [float(d) for d in re.findall(r'are ([\d.]+) action units apart', text)]
    assert distances == sorted(distances, reverse=True)
    assert len(distances) == 10


def test_the_video_shows_every_inference(report):
    video = cv2.VideoCapture(str(report / 'overlay.mp4'))
    assert video.get(cv2.CAP_PROP_FRAME_COUNT) == 20
    readable, frame = video.read()
    assert readable
    assert frame.std() > 10


def test_the_mcap_opens_and_its_layout_names_its_topics(report):
    with Bag(report / 'foxglove') as bag:
        types = bag.types
        assert bag.counts['/overlay'] == bag.counts['/a/action_chunk'] == 20
    assert types == {
        '/overlay': 'sensor_msgs/msg/CompressedImage',
        '/difference': 'geometry_msgs/msg/Vector3Stamped',
        **{f'/{name}/command': 'vla_msgs/msg/EndEffectorCommand' for name in 'ab'},
        **{f'/{name}/action_chunk': 'vla_msgs/msg/ActionChunk' for name in 'ab'},
    }
    layout = json.loads((share_directory() / 'config' / 'foxglove_layout.json').read_text())
    plotted = {path['value'].split('.')[0] for panel in layout['configById'].values()
               for path in panel.get('paths', ())}
    pictures = {panel['imageMode']['imageTopic'] for panel in layout['configById'].values()
                if 'imageMode' in panel}
    assert plotted | pictures <= types.keys()
    assert '/overlay' in pictures


def test_the_rerun_recording_holds_cameras_masks_actions_and_latency(report):
    from rerun.chunk import RrdReader

    schema = RrdReader(report / 'replay.rrd').store().schema()
    paths = {column.entity_path for column in schema.component_columns()}
    for wanted in ('/cameras/third_person', '/cameras/wrist/dense', '/actions/bag/x_m',
                   '/actions/random_tokens_count_8/gripper', '/latency_ms/dense',
                   '/difference/translation_mm'):
        assert wanted in paths


def run_vla(*arguments):
    return subprocess.run([sys.executable, '-m', 'vla_policy_node', *map(str, arguments)],
                          capture_output=True, text=True, timeout=280, check=False)


@pytest.mark.parametrize(('limit', 'code'), [('1m', 0), ('1e-6mm', 1)])
def test_the_command_is_a_test_with_an_exit_code(checkpoint, tmp_path, limit, code):
    bag = make_bag(tmp_path / 'bag', seconds=0.6)
    done = run_vla('replay', bag, '--config', 'dense', '--checkpoint', checkpoint, '--max-error',
                   limit, '--no-video', '--out', tmp_path / 'out')
    assert done.returncode == code, done.stderr
    assert ('passed' if code == 0 else 'failed') in done.stdout
    assert (tmp_path / 'out' / 'report.html').is_file()


def test_the_command_says_in_one_sentence_what_it_cannot_do(tmp_path):
    done = run_vla('replay', tmp_path / 'none', '--out', tmp_path / 'out')
    assert done.returncode == 2
    assert done.stderr.strip() == f"There is no bag '{tmp_path / 'none'}'."


# --- many bags ---


@pytest.fixture(scope='module')
def bags(tmp_path_factory):
    folder = tmp_path_factory.mktemp('bags')
    (folder / 'broken').mkdir()
    (folder / 'broken' / 'metadata.yaml').write_text('rosbag2_bagfile_information: {}')
    return [make_bag(folder / 'one', seconds=0.6), folder / 'broken',
            make_bag(folder / 'two', seconds=0.8)]


def check_merged(out, passed):
    assert not passed  # one bag failed
    merged = json.loads((out / 'report.json').read_text())
    assert list(merged['bags']) == ['one', 'two']
    assert 'does not say what its files are' in merged['failed']['broken']
    assert merged['mean']['tokens_kept_b'] == 8.0
    assert (out / 'one' / 'report.html').is_file()
    assert not (out / 'broken').exists()
    page = (out / 'report.html').read_text()
    assert '2 of 3 bags' in page
    assert 'two/report.html' in page


@pytest.mark.parametrize('workers', [1, 2])
def test_a_failed_bag_is_reported_and_skipped(bags, checkpoint, tmp_path, workers):
    settings = ReplaySettings('dense', 'random_tokens:count=8', checkpoint=checkpoint, video=False)
    passed = replay_bags(bags, settings, tmp_path / 'out', workers, '', Console(quiet=True))
    check_merged(tmp_path / 'out', passed)


def test_an_interrupted_run_goes_on_where_it_was(bags, checkpoint, tmp_path, monkeypatch):
    settings = ReplaySettings('dense', checkpoint=checkpoint, video=False)
    run_one, ran = many.run_one, []

    def interrupted(bag, *rest):
        ran.append(Path(bag).name)
        if len(ran) == 2:
            raise KeyboardInterrupt
        return run_one(bag, *rest)

    monkeypatch.setattr(many, 'run_one', interrupted)
    with pytest.raises(KeyboardInterrupt):
        replay_bags([bags[0], bags[2]], settings, tmp_path / 'out', 1, '', Console(quiet=True))
    assert not (tmp_path / 'out' / 'report.json').exists()
    assert replay_bags(
        [bags[0], bags[2]], settings, tmp_path / 'out', 1, '', Console(quiet=True))
    assert ran == ['one', 'two', 'two']
    assert list(json.loads((tmp_path / 'out' / 'report.json').read_text())['bags']) == [
        'one', 'two']


def test_bags_are_spread_over_a_ray_cluster(bags, checkpoint, tmp_path):
    ray = pytest.importorskip('ray', reason='ray is an extra')
    settings = ReplaySettings('dense', 'random_tokens:count=8', checkpoint=checkpoint, video=False)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        passed = replay_bags(bags, settings, tmp_path / 'out', 1, 'auto', Console(quiet=True))
    finally:
        ray.shutdown()
    check_merged(tmp_path / 'out', passed)


def test_ray_without_a_cluster_is_one_sentence(bags, checkpoint, tmp_path):
    pytest.importorskip('ray', reason='ray is an extra')
    settings = ReplaySettings('dense', checkpoint=checkpoint)
    with pytest.raises(ValueError, match='There is no Ray cluster at'):
        replay_bags(bags, settings, tmp_path / 'out', 1, '127.0.0.1:1', Console(quiet=True))
    assert not (tmp_path / 'out').exists()
