"""Bags for the tests of the replay: small, exact, of any format, with whatever is wrong in them.

    make_bag(tmp_path / 'bag', seconds=2.0)

What is in them is what the policy node and a robot publish; they are written by `rosbags`.
"""

from dataclasses import dataclass, field

import numpy as np
from geometry_msgs.msg import PoseStamped
from rclpy.serialization import serialize_message
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
from sensor_msgs.msg import JointState
from std_msgs.msg import Header

from vla_msgs.msg import EndEffectorCommand, PolicyInfo, PolicyStatus
from vla_policy_node.nodes.image_messages import to_image_message
from vla_policy_node.nodes.message_classes import type_name
from vla_policy_node.nodes.messages import to_time
from vla_policy_node.wire.definitions import MessageDefinitions

INSTRUCTION = 'pick up the black bowl'
START_NS = 1_000_000_000_000
PERIOD_NS = 50_000_000
CAMERAS = ('third_person', 'wrist')


@dataclass
class Recipe:
    """What a bag holds.

    alter: topic -> function of (index, message) that returns the message, or None to lose it.
    rewrite: topic -> function of the serialised message that returns what is recorded.
    info: what the policy says of itself, None for nothing.
    size: of the pictures, height and width in px.
    namespace: of the robot, as '/r1'. renamed: topic -> its name in the bag.
    """

    seconds: float = 2.0
    camera_hz: float = 10.0
    wrist_hz: float = 0.0  # 0: as the other camera
    state_hz: float = 20.0
    size: tuple[int, int] = (24, 32)
    instruction: str = INSTRUCTION
    commands: bool = True
    storage: str = 'mcap'
    compression: str = ''
    alter: dict = field(default_factory=dict)
    rewrite: dict = field(default_factory=dict)
    namespace: str = ''
    renamed: dict = field(default_factory=dict)
    info: PolicyInfo | None = None
    omit: tuple[str, ...] = ()
    more_cameras: tuple[str, ...] = ()  # topics
    arrival_delay_ns: int = 0  # recording time less stamp
    late_from_s: float = 1e9  # what comes after this comes late_by_ns later, stamps too
    late_by_ns: int = 0


def make_bag(path, **recipe):
    """Write a bag and return its path."""
    made = Recipe(**recipe)
    definitions, connections = MessageDefinitions(), {}
    writer = Writer(path, version=8, storage_plugin=StoragePlugin[made.storage.upper()])
    if made.compression:
        writer.set_compression(CompressionMode[made.compression.upper()], CompressionFormat.ZSTD)
    with writer:
        for time_ns, topic, message in messages(made):
            kind = type_name(type(message))
            if topic not in connections:
                name = made.renamed.get(topic, f'{made.namespace}{topic}')
                connections[topic] = writer.add_connection(
                    name, kind, typestore=definitions.learn(kind))
            raw = serialize_message(message)
            raw = made.rewrite.get(topic, lambda same: same)(raw)
            writer.write(connections[topic], time_ns + made.arrival_delay_ns, raw)
    return path


def messages(recipe):
    """Yield recording time, topic and message, in the order of time."""
    streams = []
    rates = {'/third_person/image_raw': recipe.camera_hz,
             '/wrist/image_raw': recipe.wrist_hz or recipe.camera_hz,
             '/ee_pose': recipe.state_hz, '/gripper_state': recipe.state_hz,
             **dict.fromkeys(recipe.more_cameras, recipe.camera_hz)}
    for order, (topic, rate) in enumerate(rates.items()):
        count = round(recipe.seconds * rate)
        streams += [(START_NS + round(i * 1e9 / rate), order, topic, i) for i in range(count)]
    for i in range(round(recipe.seconds * 5)):
        streams.append((START_NS + i * 200_000_000, 5, '/policy_status', i))
    streams.append((START_NS + round(recipe.seconds * 1e9), 5, '/policy_status', -1))
    if recipe.info:
        streams.append((START_NS, 7, '/policy_info', 0))
    if recipe.commands:
        streams += [(START_NS + i * PERIOD_NS, 6, '/command', i)
                    for i in range(round(recipe.seconds * 20))]
    for time_ns, _, topic, index in sorted(streams):
        if time_ns >= START_NS + recipe.late_from_s * 1e9:
            time_ns += recipe.late_by_ns
        if topic in recipe.omit:
            continue
        message = _make(recipe, topic, index, time_ns)
        message = recipe.alter.get(topic, lambda index, same: same)(index, message)
        if message is not None:
            yield time_ns, topic, message


def _make(recipe, topic, index, time_ns):
    header = Header(stamp=to_time(time_ns), frame_id='base_link')
    if topic == '/ee_pose':
        message = PoseStamped(header=header)
        message.pose.position.z = 0.5
        message.pose.orientation.w = 1.0
        return message
    if topic == '/gripper_state':
        return JointState(header=header, name=['left', 'right'], position=[0.02, -0.02])
    if topic == '/policy_status':
        return PolicyStatus(header=header, goal_active=index >= 0, epoch=1,
                            instruction=recipe.instruction)
    if topic == '/policy_info':
        return recipe.info
    if topic == '/command':
        message = EndEffectorCommand(header=header, target_time=to_time(time_ns + PERIOD_NS),
                                     gripper=1.0 if index % 40 < 20 else 0.0)
        message.translation.x = 0.001
        return message
    # A bright square that moves over noise: no two pictures are the same.
    is_first = topic == '/third_person/image_raw'
    pixels = np.random.default_rng([index, not is_first]).integers(
        0, 80, (*recipe.size, 3)).astype(np.uint8)
    left = (index if is_first else -index) % (recipe.size[1] - 8)
    pixels[8:16, left:left + 8] = (200, 120, 40)
    return to_image_message(pixels, header)
