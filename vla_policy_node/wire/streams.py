"""Input streams of the policy: names, message types and topics."""

CAMERAS = ('third_person', 'wrist')
POSE, GRIPPER = 'ee_pose', 'gripper_state'


def input_streams(compressed: bool) -> dict[str, tuple[str, str]]:
    """Return stream -> message type and topic, without remapping."""
    kind, suffix = ('CompressedImage', '/compressed') if compressed else ('Image', '')
    return {
        **{camera: (f'sensor_msgs/msg/{kind}', f'{camera}/image_raw{suffix}')
           for camera in CAMERAS},
        POSE: ('geometry_msgs/msg/PoseStamped', POSE),
        GRIPPER: ('sensor_msgs/msg/JointState', GRIPPER),
    }
