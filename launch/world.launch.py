"""Start the simulated LIBERO world alone, for a policy that runs elsewhere.

    ros2 launch vla_policy_node world.launch.py use_sim_time:=true
"""

from pathlib import Path

from launch import LaunchDescription
from launch.actions import IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource


def generate_launch_description():
    bringup = str(Path(__file__).with_name('bringup.launch.py'))
    return LaunchDescription([
        IncludeLaunchDescription(
            PythonLaunchDescriptionSource(bringup),
            launch_arguments={'world': 'true', 'policy': 'false', 'visualizer': 'false'}.items(),
        ),
    ])
