"""What a policy wants of a robot, and whether a robot has it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vla_policy_node.contract.parts import ContractError

if TYPE_CHECKING:
    from vla_policy_node.contract.robot import RobotContract


@dataclass(frozen=True)
class PolicySpec:
    """Inputs and outputs of a policy, as plain data.

    cameras: the roles whose pictures it looks at, in its order. state: names of the numbers that
    it is told, in its order; empty if it is told none. actions: kind and dimension of each group
    of numbers in one action, in its order.
    """

    cameras: tuple[str, ...]
    state: tuple[str, ...]
    actions: tuple[tuple[str, int], ...]

    @property
    def action_dimension(self) -> int:
        """Numbers of one action."""
        return sum(dimension for _, dimension in self.actions)

    def state_places(self, robot: RobotContract) -> tuple[int, ...]:
        """Return for each number of the policy's state its place among the robot's. Raises."""
        for name in self.state:
            if name not in robot.state_names:
                raise ContractError(
                    f"The policy is told '{name}', which the contract of {robot.name} does not "
                    f'have; it has {", ".join(robot.state_names) or "no state"}.')
        return tuple(robot.state_names.index(name) for name in self.state)

    def check(self, robot: RobotContract) -> None:
        """Raise ContractError with one sentence if the robot is not what the policy wants."""
        for camera in self.cameras:
            if camera not in robot.camera_names:
                raise ContractError(
                    f"The policy looks at the camera '{camera}', which the contract of "
                    f'{robot.name} does not have; it has {", ".join(robot.camera_names)}.')
        self.state_places(robot)
        offered = robot.policy_spec().actions
        if self.actions != offered:
            raise ContractError(
                f'The policy answers with {_words(self.actions)}; the contract of {robot.name} '
                f'has {_words(offered)}.')


def _words(actions: tuple[tuple[str, int], ...]) -> str:
    return ', '.join(f'{kind} ({dimension})' for kind, dimension in actions)
