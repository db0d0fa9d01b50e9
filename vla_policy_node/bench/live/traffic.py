"""Generates the traffic of a robot: two cameras and the state, from a process of its own."""

from dataclasses import dataclass

import numpy as np
from geometry_msgs.msg import PoseStamped
from rclpy.node import Node
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import Header

from vla_policy_node.nodes import qos
from vla_policy_node.nodes.image_messages import to_image_message
from vla_policy_node.nodes.parameters import ParameterStore, parameter
from vla_policy_node.nodes.running import run
from vla_policy_node.policy.interface import CAMERAS

PICTURES = 8


@dataclass(frozen=True)
class CameraParameters:
    """Parameters of the node `cameras`."""

    width: int = parameter(640, 'Width of a picture.', 'px', 1, 8192)
    height: int = parameter(480, 'Height of a picture.', 'px', 1, 8192)
    camera_rate_hz: float = parameter(30.0, 'Rate of both cameras.', 'Hz', 0.1, 1000.0)
    state_rate_hz: float = parameter(100.0, 'Rate of pose and gripper.', 'Hz', 0.1, 1000.0)


class CamerasNode(Node):
    """Publishes noise pictures and the state of a robot that stands still."""

    def __init__(self, **node_options):
        super().__init__('cameras', **node_options)
        parameters = ParameterStore(self, CameraParameters).checked()
        noise = np.random.default_rng(0)
        shape = (parameters.height, parameters.width, 3)
        # Each camera has its own pictures: identical ones would count as the same camera twice.
        self._cameras = [
            (self.create_publisher(Image, f'{camera}/image_raw', qos.camera_input()),
             [to_image_message(noise.integers(0, 256, shape, np.uint8), Header())
              for _ in range(PICTURES)])
            for camera in CAMERAS]
        self._count = 0
        self._pose = self.create_publisher(PoseStamped, 'ee_pose', qos.state_input())
        self._gripper = self.create_publisher(JointState, 'gripper_state', qos.state_input())
        self.create_timer(1 / parameters.camera_rate_hz, self._publish_pictures)
        self.create_timer(1 / parameters.state_rate_hz, self._publish_state)

    def _publish_pictures(self) -> None:
        self._count += 1
        stamp = self.get_clock().now().to_msg()
        for camera, pictures in self._cameras:
            picture = pictures[self._count % PICTURES]
            picture.header.stamp = stamp
            camera.publish(picture)

    def _publish_state(self) -> None:
        header = Header(stamp=self.get_clock().now().to_msg(), frame_id='base_link')
        pose = PoseStamped(header=header)
        pose.pose.position.z = 1.0
        self._pose.publish(pose)
        self._gripper.publish(JointState(header=header, name=['left', 'right'],
                                         position=[0.04, -0.04]))


def main(args=None):
    """Publish until SIGINT or SIGTERM."""
    run(CamerasNode, args)


if __name__ == '__main__':
    main()
