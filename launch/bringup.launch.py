"""Start the policy, the visualizer and, if asked, the simulated world and RViz.

    ros2 launch vla_policy_node bringup.launch.py checkpoint:=/path/to/checkpoint
    ros2 launch vla_policy_node bringup.launch.py world:=true rviz:=true
    ros2 launch vla_policy_node bringup.launch.py --show-args

What is started is described in vla_policy_node/system/description.py.
"""

import signal

from launch import LaunchDescription
from launch.actions import (
    DeclareLaunchArgument,
    EmitEvent,
    OpaqueFunction,
    RegisterEventHandler,
    SetEnvironmentVariable,
    Shutdown,
)
from launch.conditions import IfCondition
from launch.event_handlers import OnShutdown
from launch.events.process import SignalProcess
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from vla_policy_node.system.arguments import ARGUMENTS
from vla_policy_node.system.description import describe, topic_arguments
from vla_policy_node.system.files import share_directory
from vla_policy_node.system.processes import leash, middleware_environment


def declare(argument):
    value = argument.default
    return DeclareLaunchArgument(
        argument.name,
        default_value=str(value).lower() if isinstance(value, bool) else value,
        description=argument.description,
        choices=list(argument.choices) or None,
    )


def start(context):
    given = {a.name: LaunchConfiguration(a.name).perform(context) for a in ARGUMENTS}
    # Topics of a contract that is known only now; a launch file around this one may have others.
    more = topic_arguments(given)
    given |= {name: value for name, value in context.launch_configurations.items()
              if name in more}
    return [
        Node(
            package=node.package,
            executable=node.executable,
            name=node.name,
            ros_arguments=node.ros_arguments(),
            additional_env=leash(),
            output='screen',
            emulate_tty=True,
            on_exit=Shutdown(reason=f'{node.name} ended'),
        )
        for node in describe(given)
    ]


def interrupt(event, context):
    """Interrupt the nodes at once, whatever ended the launch.

    After a SIGINT, launch takes for granted that its nodes have got one, too. That is so in a
    terminal; else they would drive on for the 5 s until it sends SIGTERM.
    """
    return EmitEvent(event=SignalProcess(
        signal_number=signal.SIGINT, process_matcher=lambda process: True))


def generate_launch_description():
    rviz = Node(
        package='rviz2',
        executable='rviz2',
        arguments=['-d', str(share_directory() / 'config' / 'vla.rviz')],
        condition=IfCondition(LaunchConfiguration('rviz')),
    )
    return LaunchDescription([
        *(declare(argument) for argument in ARGUMENTS),
        DeclareLaunchArgument('rviz', default_value='false', description='Start RViz.'),
        *(SetEnvironmentVariable(*pair) for pair in middleware_environment().items()),
        OpaqueFunction(function=start),
        RegisterEventHandler(OnShutdown(on_shutdown=interrupt)),
        rviz,
    ])
