"""The visualizer over real DDS: it pairs by exact stamp, and works only for those who watch."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import qos_profile_sensor_data
from ros_testing import ros, spin_until  # noqa: F401
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from vla_msgs.msg import TokenSelection
from vla_policy_node.contract import find_contract, to_plain
from vla_policy_node.nodes import qos, visualizer_node
from vla_policy_node.nodes.image_messages import to_image_message
from vla_policy_node.nodes.messages import SHADOW_ENTRY
from vla_policy_node.nodes.parameters import ParameterError
from vla_policy_node.nodes.visualizer_node import VisualizerNode
from vla_policy_node.wire.images import decode_image

pytestmark = pytest.mark.usefixtures('ros')

PIXELS = np.full((96, 128, 3), (200, 120, 40), np.uint8)


class Bench:
    """A visualizer, the policy and the cameras that feed it, and somebody who may watch."""

    def __init__(self, **parameters):
        overrides = [Parameter(name, value=value) for name, value in parameters.items()]
        self.visualizer = VisualizerNode(parameter_overrides=overrides)
        self.other = Node('other')
        self.executor = SingleThreadedExecutor()
        self.executor.add_node(self.visualizer)
        self.executor.add_node(self.other)
        compressed = parameters.get('compressed', False)
        suffix = '/compressed' if compressed else ''
        self.camera = self.other.create_publisher(
            CompressedImage if compressed else Image,
            f'third_person/image_raw{suffix}',
            qos.overlay_output(),  # reliable, so that a lost image cannot fail a test
        )
        self.selections = self.other.create_publisher(
            TokenSelection, 'token_selection', qos.event_output()
        )
        self.overlays = []
        assert self.spin_until(self.fed)

    def fed(self):
        return self.camera.get_subscription_count() and self.selections.get_subscription_count()

    def spin_until(self, predicate):
        return spin_until(self.executor, predicate)

    def watch(self, camera='third_person'):
        subscription = self.other.create_subscription(
            Image, f'{camera}/overlay', self.overlays.append, qos.overlay_output()
        )
        assert self.spin_until(lambda: subscription.get_publisher_count() > 0)
        output = self.visualizer._cameras[camera].overlay
        assert self.spin_until(lambda: output.get_subscription_count() > 0)
        return subscription

    def publish_image(self, sec, image=None):
        self.camera.publish(image or to_image_message(PIXELS, header(sec)))
        frames = self.visualizer._cameras['third_person'].frames
        assert self.spin_until(lambda: sec * 1_000_000_000 in frames)

    def close(self):
        self.executor.shutdown()
        self.visualizer.destroy_node()
        self.other.destroy_node()


@pytest.fixture
def bench(request):
    made = Bench(**{'max_rate_hz': 100.0, **getattr(request, 'param', {})})
    yield made
    made.close()


@pytest.fixture
def draws(monkeypatch):
    """Record the stamp of every selection that is drawn."""
    stamps = []
    draw = visualizer_node._draw

    def recorded(image, selection, remark):
        stamps.append(selection.header.stamp.sec)
        return draw(image, selection, remark)

    monkeypatch.setattr(visualizer_node, '_draw', recorded)
    return stamps


def header(sec):
    return Header(stamp=Time(sec=sec), frame_id='agent_camera')


def selection(sec, **fields):
    kept = np.zeros((16, 16), bool)
    kept[:4] = True
    message = {
        'header': header(sec),
        'camera': 'third_person',
        'method': 'lightvla',
        'grid_height': 16,
        'grid_width': 16,
        'kept': kept.ravel().tolist(),
        'crop_width': 1.0,
        'crop_height': 1.0,
        'camera_transform': 'none',
    }
    return TokenSelection(**{**message, **fields})


def test_the_overlay_carries_the_header_of_the_image_and_shows_its_kept_pixels(bench):
    bench.watch()
    bench.publish_image(7)
    bench.selections.publish(selection(7))
    assert bench.spin_until(lambda: bench.overlays)
    overlay = bench.overlays[0]
    assert overlay.header == header(7)
    picture = decode_image(overlay)
    assert picture.shape[1] == 640
    np.testing.assert_array_equal(picture[40, 320], PIXELS[0, 0])
    assert picture[400, 320].max() < 0.5 * PIXELS.max()


def test_a_selection_that_comes_before_its_image_is_drawn_when_the_image_comes(bench):
    bench.watch()
    bench.selections.publish(selection(7))
    camera = bench.visualizer._cameras['third_person']
    assert bench.spin_until(lambda: camera.waiting is not None)
    bench.publish_image(7)
    assert bench.spin_until(lambda: bench.overlays)
    assert bench.overlays[0].header == header(7)


def test_only_the_image_with_exactly_the_same_stamp_is_drawn(bench, draws):
    bench.watch()
    for sec in (7, 9):
        bench.publish_image(sec)
    bench.selections.publish(selection(8))  # between the two: no image of its own
    bench.selections.publish(selection(9))  # the sentinel: it comes after everything above
    assert bench.spin_until(lambda: bench.overlays)
    assert draws == [9]
    assert [overlay.header.stamp.sec for overlay in bench.overlays] == [9]


def test_nothing_is_decoded_or_drawn_until_somebody_watches(bench, draws):
    bench.publish_image(7)
    bench.publish_image(8)
    decoded = []
    decode = bench.visualizer._decode
    bench.visualizer._decode = lambda message: decoded.append(message) or decode(message)
    handled = record_calls(bench.visualizer, '_on_selection')
    bench.selections.publish(selection(7))
    assert bench.spin_until(lambda: handled)
    assert (decoded, draws) == ([], [])

    bench.watch()
    bench.selections.publish(selection(8))
    assert bench.spin_until(lambda: bench.overlays)
    assert (len(decoded), draws) == (1, [8])


def record_calls(node, name):
    """Let the node's subscriptions call a recording stand-in of one of its callbacks."""
    calls = []
    callback = getattr(node, name)
    for subscription in node.subscriptions:
        if subscription.callback == callback:
            subscription.callback = lambda message: (callback(message), calls.append(message))
    return calls


def test_what_the_shadow_found_is_shown_below_the_caption(bench):
    bench.watch()
    bench.publish_image(7)
    bench.selections.publish(selection(7))
    assert bench.spin_until(lambda: bench.overlays)
    diagnostics = bench.other.create_publisher(
        DiagnosticArray, '/diagnostics', qos.event_output())
    said = DiagnosticArray(status=[
        DiagnosticStatus(name=f'{node}{SHADOW_ENTRY}', message=message) for node, message in (
            ('/policy', 'pruning saved 20 ms'), ('/r1/policy', 'another robot'),
            ('/my/policy', 'another robot'), ('policy', 'another robot'))])
    told = []

    def heard():
        diagnostics.publish(said)  # as the node does, again and again
        told.append(bench.visualizer._shadow)
        return told[-1]

    assert bench.spin_until(heard)
    assert told[-1] == 'pruning saved 20 ms'
    # On a fast machine all this takes less than the shortest time between overlays.
    bench.visualizer._cameras['third_person'].drawn_at_s = float('-inf')
    bench.publish_image(8)
    bench.selections.publish(selection(8))
    assert bench.spin_until(lambda: len(bench.overlays) == 2)
    before, after = bench.overlays
    assert after.height > before.height  # one more line


@pytest.mark.parametrize('bench', [{'max_rate_hz': 0.1}], indirect=True)
def test_overlays_come_no_faster_than_the_maximum_rate(bench, draws):
    bench.watch()
    handled = record_calls(bench.visualizer, '_on_selection')
    for sec in range(1, 6):
        bench.publish_image(sec)
        bench.selections.publish(selection(sec))
        assert bench.spin_until(lambda count=sec: len(handled) == count)
    assert draws == [1]


@pytest.mark.parametrize('bench', [{'image_history': 3}], indirect=True)
def test_only_the_newest_images_are_kept(bench):
    for sec in range(1, 8):
        bench.publish_image(sec)
    frames = bench.visualizer._cameras['third_person'].frames
    assert [stamp_ns // 1_000_000_000 for stamp_ns in frames] == [5, 6, 7]


@pytest.mark.parametrize('bench', [{'compressed': True}], indirect=True)
def test_compressed_images_are_drawn_too(bench):
    bench.watch()
    _, data = cv2.imencode('.png', PIXELS[..., ::-1])
    image = CompressedImage(header=header(7), format='png', data=data.tobytes())
    bench.publish_image(7, image)
    bench.selections.publish(selection(7))
    assert bench.spin_until(lambda: bench.overlays)
    np.testing.assert_array_equal(decode_image(bench.overlays[0])[40, 320], PIXELS[0, 0])


@pytest.mark.parametrize(
    'broken',
    [
        {'kept': [True] * 10},
        {'kept': [], 'grid_height': 0},
        {'scores': [1.0]},
        {'crop_width': 0.0},
        {'camera_transform': 'sideways'},
        {'camera': 'ceiling'},
    ],
)
def test_a_selection_that_contradicts_itself_is_not_drawn_and_stops_nothing(bench, broken):
    bench.watch()
    bench.publish_image(7)
    bench.publish_image(8)
    handled = record_calls(bench.visualizer, '_on_selection')
    bench.selections.publish(selection(7, **broken))
    assert bench.spin_until(lambda: handled)
    bench.visualizer._cameras['third_person'].drawn_at_s = float('-inf')
    bench.selections.publish(selection(8))
    assert bench.spin_until(lambda: bench.overlays)
    assert [overlay.header.stamp.sec for overlay in bench.overlays] == [8]


def test_an_unreadable_image_is_not_drawn_and_stops_nothing(bench):
    bench.watch()
    bench.publish_image(7, Image(header=header(7), encoding='32FC1', height=4, width=4))
    bench.publish_image(8)
    handled = record_calls(bench.visualizer, '_on_selection')
    bench.selections.publish(selection(7))
    assert bench.spin_until(lambda: handled)
    bench.visualizer._cameras['third_person'].drawn_at_s = float('-inf')
    bench.selections.publish(selection(8))
    assert bench.spin_until(lambda: bench.overlays)
    assert [overlay.header.stamp.sec for overlay in bench.overlays] == [8]


def test_every_parameter_is_described_and_a_bad_value_is_refused(bench):
    node = bench.visualizer
    for name in ('compressed', 'image_history', 'max_rate_hz'):
        assert node.describe_parameter(name).description
    for name, value in (('compressed', True), ('image_history', 0), ('max_rate_hz', 0.0)):
        assert not node.set_parameters([Parameter(name, value=value)])[0].successful
    assert node.set_parameters([Parameter('max_rate_hz', value=2.0)])[0].successful


def test_a_bad_value_in_the_parameter_file_is_refused_with_a_sentence():
    with pytest.raises(ParameterError, match=r'max_rate_hz is 0\.0 Hz; it must lie between'):
        VisualizerNode(parameter_overrides=[Parameter('max_rate_hz', value=0.0)])


def test_a_camera_that_publishes_best_effort_is_heard(bench):
    camera = bench.other.create_publisher(Image, 'wrist/image_raw', qos_profile_sensor_data)
    assert bench.spin_until(lambda: camera.get_subscription_count() > 0)


def test_the_rviz_configuration_shows_the_topics_that_the_node_publishes(bench):
    config = yaml.safe_load((Path(__file__).parents[2] / 'config' / 'vla.rviz').read_text())
    displays = config['Visualization Manager']['Displays']
    shown = {display['Topic']['Value'] for display in displays if 'Topic' in display}
    assert shown == {camera.overlay.topic_name for camera in bench.visualizer._cameras.values()}


def test_overlays_bear_the_names_of_the_cameras_of_the_contract(tmp_path):
    plain = to_plain(find_contract(''))
    plain['cameras'] = [{'name': name, 'topic': f'cam_{name}/rgb'}
                        for name in ('high', 'left', 'right')]
    contract = tmp_path / 'robot.yaml'
    contract.write_text(yaml.safe_dump(plain))
    node = VisualizerNode(parameter_overrides=[Parameter('contract', value=str(contract))])
    try:
        published = {topic for topic, _ in node.get_publisher_names_and_types_by_node(
            node.get_name(), node.get_namespace())}
        assert {topic for topic in published if topic.endswith('/overlay')} == {
            '/high/overlay', '/left/overlay', '/right/overlay'}
    finally:
        node.destroy_node()
