"""Play a recorded bag through the live policy node, with /clock, instead of cameras and a robot.

    ros2 launch vla_policy_node replay.launch.py play:=out/demo/bag
    ros2 launch vla_policy_node replay.launch.py play:=out/demo/bag lock_step:=true record:=again

In real time, or with lock_step:=true one observation after the other; then the node sends exactly
what `vla replay` computes. All arguments of bringup.launch.py.
"""

from pathlib import Path

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource


def generate_launch_description():
    bringup = str(Path(__file__).with_name('bringup.launch.py'))
    return LaunchDescription([
        DeclareLaunchArgument('play', description='Folder of the bag.'),
        IncludeLaunchDescription(PythonLaunchDescriptionSource(bringup)),
    ])
