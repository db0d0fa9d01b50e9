"""The arm between two steps of a policy: what robosuite's controller computes, in less time.

Bit for bit the same, on one processor with the same versions. robosuite looks up every name and
limit anew in each of the 25 substeps of a step, and computes each Jacobian twice; here they are
looked up once an episode, and one call computes both Jacobians. Products and index expressions are
robosuite's own: the last bits of a product depend on the order of an array's memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:  # a ROS workspace without the world lacks it, and imports its node
    import mujoco


class Arm:
    """One robot of robosuite with its controller, until the environment is reset.

    Its controller reads the simulation through this object, too.
    """

    def __init__(self, robot: Any, model: mujoco.MjModel, data: mujoco.MjData):
        self._robot, self._controller = robot, robot.controller
        self._model, self._data = model, data
        self._site = model.site(self._controller.eef_name).id
        self._joints = np.array(self._controller.qpos_index)
        self._dofs = np.array(self._controller.qvel_index)
        self._torque_limits = robot.torque_limits
        self._motors = np.array(robot._ref_joint_actuator_indexes)
        self._fingers = np.array([model.actuator(name).id for name in robot.gripper.actuators])
        low, high = model.actuator_ctrlrange[self._fingers].T
        self._middle, self._reach = 0.5 * (high + low), 0.5 * (high - low)
        self._controller.update = self._update  # shadows the method until the next controller

    def go_on(self, action: np.ndarray) -> None:
        """Set torques and fingers for one more substep of a step whose goal is set.

        action: [7], of the step. MuJoCo must have computed what depends on the positions.
        """
        torques = self._controller.run_controller()
        self._robot.torques = np.clip(torques, *self._torque_limits)
        wanted = self._robot.gripper.format_action(action[self._controller.control_dim:])
        self._data.ctrl[self._fingers] = self._middle + self._reach * wanted
        self._data.ctrl[self._motors] = self._robot.torques

    def _update(self, force: bool = False) -> None:
        """Do what the controller's own `update` does, after MuJoCo's first half of a step."""
        import mujoco

        arm = self._controller
        if not (arm.new_update or force):
            return
        model, data = self._model, self._data
        position, turn = np.empty((3, model.nv)), np.empty((3, model.nv))
        mujoco.mj_jacSite(model, data, position, turn, self._site)
        arm.ee_pos = data.site_xpos[self._site].copy()
        arm.ee_ori_mat = data.site_xmat[self._site].reshape(3, 3).copy()
        arm.ee_pos_vel, arm.ee_ori_vel = np.dot(position, data.qvel), np.dot(turn, data.qvel)
        arm.joint_pos, arm.joint_vel = data.qpos[self._joints], data.qvel[self._dofs]
        arm.J_pos, arm.J_ori = position[:, self._dofs], turn[:, self._dofs]
        arm.J_full = np.vstack([arm.J_pos, arm.J_ori])
        mass = np.empty((model.nv, model.nv))
        mujoco.mj_fullM(model, mass, data.qM)
        arm.mass_matrix = mass[self._dofs, :][:, self._dofs]
        arm.new_update = False
