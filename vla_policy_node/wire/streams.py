"""What the policy listens to: names, message types and topics."""

from geometry_msgs.msg import PoseStamped
from sensor_msgs.msg import CompressedImage, Image, JointState

CAMERAS = ('third_person', 'wrist')
POSE, GRIPPER = 'ee_pose', 'gripper_state'


def input_streams(compressed: bool) -> dict[str, tuple[type, str]]:
    """Return stream -> message type and topic, without remapping."""
    kind, suffix = (CompressedImage, '/compressed') if compressed else (Image, '')
    return {
        **{camera: (kind, f'{camera}/image_raw{suffix}') for camera in CAMERAS},
        POSE: (PoseStamped, POSE),
        GRIPPER: (JointState, GRIPPER),
    }
