"""Serialised messages of cameras and robots, made without ROS, and bags of them.

    write_topics(tmp_path / 'a.mcap', {'/camera': [(time_ns, image(time_ns))]})
"""

import cv2
import numpy as np
from bag_bytes import channel, message, record, text, write_mcap

from vla_policy_node.wire.definitions import MessageDefinitions

_DEFINITIONS = MessageDefinitions()
IMAGE, COMPRESSED = 'sensor_msgs/msg/Image', 'sensor_msgs/msg/CompressedImage'
POSE, JOINTS = 'geometry_msgs/msg/PoseStamped', 'sensor_msgs/msg/JointState'
TRANSFORMS = 'tf2_msgs/msg/TFMessage'


def make(kind, **fields):
    return _DEFINITIONS.kind(kind)(**fields)


def header(stamp_ns, frame_id='base_link'):
    stamp = make('builtin_interfaces/msg/Time', sec=stamp_ns // 10**9, nanosec=stamp_ns % 10**9)
    return make('std_msgs/msg/Header', stamp=stamp, frame_id=frame_id)


def image(stamp_ns, encoding='rgb8', channels=3):
    data = np.random.default_rng(stamp_ns % 2**32).integers(0, 256, 24 * 32 * channels, np.uint8)
    return _DEFINITIONS.write(make(
        IMAGE, header=header(stamp_ns), height=24, width=32, encoding=encoding, is_bigendian=0,
        step=32 * channels, data=data))


def compressed(stamp_ns, form='rgb8; jpeg compressed bgr8', extension='.jpg'):
    picture = np.random.default_rng(stamp_ns % 2**32).integers(0, 256, (24, 32, 3), np.uint8)
    return _DEFINITIONS.write(make(
        COMPRESSED, header=header(stamp_ns), format=form,
        data=cv2.imencode(extension, picture)[1].ravel()))


def pose(stamp_ns, frame_id='base_link'):
    return _DEFINITIONS.write(make(POSE, header=header(stamp_ns, frame_id), pose=make(
        'geometry_msgs/msg/Pose',
        position=make('geometry_msgs/msg/Point', x=0.0, y=0.0, z=0.5),
        orientation=make('geometry_msgs/msg/Quaternion', x=0.0, y=0.0, z=0.0, w=1.0))))


def joints(stamp_ns, position=(0.02, -0.02), names=()):
    names = [*names] or [f'joint{index}' for index in range(len(position))]
    return _DEFINITIONS.write(make(
        JOINTS, header=header(stamp_ns), name=names, position=np.array(position),
        velocity=np.zeros(0), effort=np.zeros(0)))


def transforms(links):
    """A TFMessage. links: parent, child, stamp in ns, translation, quaternion x y z w."""
    return _DEFINITIONS.write(make(TRANSFORMS, transforms=[make(
        'geometry_msgs/msg/TransformStamped', header=header(stamp_ns, parent),
        child_frame_id=child, transform=make(
            'geometry_msgs/msg/Transform',
            translation=make('geometry_msgs/msg/Vector3', **dict(zip('xyz', at, strict=True))),
            rotation=make('geometry_msgs/msg/Quaternion', **dict(
                zip('xyzw', turn, strict=True)))))
        for parent, child, stamp_ns, at, turn in links]))


def write_topics(path, topics, kinds):
    """Write an MCAP. topics: name -> times (ns) and messages. kinds: name -> message type."""
    schemas = {kind: number for number, kind in enumerate(dict.fromkeys(kinds.values()), 1)}
    data = b''.join(record(3, number.to_bytes(2, 'little') + text(kind.encode())
                           + text(b'ros2msg') + text(b'')) for kind, number in schemas.items())
    rows = []
    for number, (name, messages) in enumerate(topics.items(), 1):
        data += channel(number, name.encode(), schemas[kinds[name]])
        rows += [(time_ns, number, raw) for time_ns, raw in messages]
    return write_mcap(path, data + b''.join(
        message(number, time_ns, raw) for time_ns, number, raw in sorted(rows)))
