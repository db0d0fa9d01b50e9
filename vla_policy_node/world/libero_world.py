"""LIBERO's tasks as a world to step and to look at.

Both images are upright, as a camera on the robot would deliver them. OpenGL's rows run from the
bottom to the top, and that is how LIBERO's own environment hands them out: its raw image is
upside down, not mirrored. The 180 degree turn of the public OpenVLA-OFT evaluation therefore
makes an image that is upright and mirrored: relative to the images here it is
`mirror_horizontal`, for both cameras. `test_world_camera.py` proves it by projection.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import mujoco
import numpy as np

from vla_policy_node.world.initial_states import load_initial_states
from vla_policy_node.world.libero_setup import SUITES, libero_folder, prepare

CAMERAS: Mapping[str, str] = {'third_person': 'agentview', 'wrist': 'robot0_eye_in_hand'}
# Longest episodes (control steps) of the public evaluations on these suites.
HORIZONS = {'libero_spatial': 220, 'libero_object': 280, 'libero_goal': 300}

_SETTLING_STEPS = 10
_HOLD_OPEN = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0])


@dataclass(frozen=True)
class Task:
    """One LIBERO task."""

    suite: str
    task_id: int
    name: str
    instruction: str


@dataclass(frozen=True)
class RobotState:
    """Where the hand is, in LIBERO's world frame."""

    position: np.ndarray  # [3] m, the point between the finger tips
    quaternion_xyzw: np.ndarray  # [4], the hand
    gripper_qpos: np.ndarray  # [2] m, both finger joints


def tasks(suite: str) -> tuple[Task, ...]:
    """Return the tasks of a suite in LIBERO's order; raise ValueError for an unknown suite."""
    if suite not in SUITES:
        raise ValueError(f'There is no suite {suite!r}: choose one of {", ".join(SUITES)}.')
    # Loaded by path: importing the package around this table imports torch.
    table = libero_folder() / 'benchmark' / 'libero_suite_task_map.py'
    spec = importlib.util.spec_from_file_location('libero_suite_task_map', table)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    names = module.libero_task_map[suite]
    return tuple(Task(suite, i, name, name.replace('_', ' ')) for i, name in enumerate(names))


class LiberoWorld:
    """One task, stepped at 20 Hz of simulated time.

    Use it from one thread: the rendering context belongs to the thread that renders first.
    """

    CONTROL_HZ = 20

    def __init__(self, task: Task, image_size: int | tuple[int, int] = 256) -> None:
        """Load `task`; `image_size` is the side of square images, or (width, height), in px."""
        files = prepare()
        from libero.libero.envs.env_wrapper import ControlEnv

        self.task = task
        self.horizon = HORIZONS[task.suite]
        self.steps = 0
        self._width, self._height = (
            (image_size, image_size) if isinstance(image_size, int) else image_size
        )
        self._states = load_initial_states(files.initial_states, task.suite, task.name)
        with contextlib.redirect_stdout(io.StringIO()):
            self._env = ControlEnv(
                bddl_file_name=str(files.libero / 'bddl_files' / task.suite / f'{task.name}.bddl'),
                use_camera_obs=False,
                has_offscreen_renderer=False,
                hard_reset=False,  # a new model per reset would cost 0.4 s and a new renderer
                ignore_done=True,
                control_freq=self.CONTROL_HZ,
            )
        self._renderer: mujoco.Renderer | None = None
        self.reset()

    @property
    def model(self) -> mujoco.MjModel:
        """Return the physics model (privileged)."""
        return self._env.sim.model._model

    @property
    def data(self) -> mujoco.MjData:
        """Return the physics state (privileged)."""
        return self._env.sim.data._data

    @property
    def initial_states(self) -> int:
        """Return how many initial states LIBERO gives for this task."""
        return len(self._states)

    @property
    def success(self) -> bool:
        """Return whether all of LIBERO's goal predicates hold now."""
        return bool(self._env.check_success())

    @property
    def goals(self) -> tuple[tuple[str, ...], ...]:
        """Return the goal, e.g. (('on', 'akita_black_bowl_1', 'plate_1'),); all must hold."""
        return tuple(tuple(goal) for goal in self._env.env.parsed_problem['goal_state'])

    @property
    def objects_of_interest(self) -> tuple[str, ...]:
        """Return the names of the objects or regions that the task is about."""
        return tuple(self._env.obj_of_interest)

    def holds(self, goal: tuple[str, ...]) -> bool:
        """Return whether one of `goals` holds now."""
        return bool(self._env.env._eval_predicate(list(goal)))

    def reset(self, initial_state: int = 0) -> None:
        """Start an episode from one of LIBERO's initial states and let the objects settle."""
        if not 0 <= initial_state < self.initial_states:
            raise ValueError(
                f'Initial state {initial_state} does not exist: '
                f'{self.task.name} has 0 to {self.initial_states - 1}.'
            )
        # LIBERO scatters its furniture by numpy's global generator, a centimetre at most.
        with _numpy_seed(initial_state):
            self._env.reset()
        for robot in self._env.robots:
            # robosuite keeps it across episodes when the model is not loaded anew.
            robot.gripper.current_action = np.zeros(robot.gripper.dof)
        self._env.set_init_state(self._states[initial_state])
        for _ in range(_SETTLING_STEPS):
            self._env.step(_HOLD_OPEN)
        self.steps = 0

    def step(self, action: np.ndarray) -> None:
        """Apply one action for 1/20 s.

        `action` is [7] in [-1, 1]: x, y, z (1.0 is 0.05 m), rotation vector (1.0 is 0.5 rad), both
        in the world frame, and gripper (1 closes, -1 opens). Beyond the range it is clipped.
        """
        action = np.asarray(action, dtype=float)
        if action.shape != (7,) or not np.isfinite(action).all():
            raise ValueError(f'An action is 7 finite numbers, not {action}.')
        self._env.step(np.clip(action, -1, 1))
        self.steps += 1

    def state(self) -> RobotState:
        """Return the state of the hand, as LIBERO's observations give it."""
        robot = self._env.robots[0]
        hand = self.data.body('robot0_right_hand').xquat
        return RobotState(
            position=self.data.site_xpos[robot.eef_site_id].copy(),
            quaternion_xyzw=np.roll(hand, -1),
            gripper_qpos=self.data.qpos[robot._ref_gripper_joint_pos_indexes].copy(),
        )

    def render(self) -> dict[str, np.ndarray]:
        """Return both upright camera images, [height, width, 3] uint8 RGB."""
        if self._renderer is None:
            self._renderer = self._make_renderer()
        options = mujoco.MjvOption()
        options.geomgroup[0] = 0  # what collides
        images = {}
        for name, camera in CAMERAS.items():
            self._renderer.update_scene(self.data, camera, options)
            images[name] = self._renderer.render()
        return images

    def _make_renderer(self) -> mujoco.Renderer:
        visual = self.model.vis
        visual.global_.offwidth = max(self._width, visual.global_.offwidth)
        visual.global_.offheight = max(self._height, visual.global_.offheight)
        # Coarser boxes and cylinders take a third off the time of software rendering.
        visual.quality.numquads = 1
        visual.quality.numslices = 20
        visual.quality.numstacks = 8
        return mujoco.Renderer(self.model, self._height, self._width)

    def camera_matrix(self, camera: str) -> np.ndarray:
        """Return the [3, 4] matrix from world (m) to the pixels of the upright image.

        Pixels are (right, down) from the upper left corner; divide by the third component, which
        is the distance along the optical axis (m).
        """
        view = self.data.camera(CAMERAS[camera])
        fovy_rad = np.deg2rad(self.model.camera(CAMERAS[camera]).fovy[0])
        focal_px = self._height / 2 / np.tan(fovy_rad / 2)
        intrinsic = np.array(
            [[focal_px, 0, self._width / 2], [0, focal_px, self._height / 2], [0, 0, 1]]
        )
        # MuJoCo's cameras look along -z with +y up; pixels run down and depth forward.
        rotation = np.diag([1, -1, -1]) @ view.xmat.reshape(3, 3).T
        return intrinsic @ np.column_stack([rotation, -rotation @ view.xpos])

    def object_position(self, name: str) -> np.ndarray:
        """Return where an object, a fixture or a region is: [3] m in the world (privileged)."""
        bodies = self._env.env.obj_body_id
        if name in bodies:
            return self.data.xpos[bodies[name]].copy()
        if name in self._env.env.object_sites_dict:
            return self.data.site(name).xpos.copy()
        known = ', '.join(sorted([*bodies, *self._env.env.object_sites_dict]))
        raise ValueError(f'There is no {name!r} in {self.task.name}; there are {known}.')

    def close(self) -> None:
        """Free the renderer and the simulation."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None
        self._env.close()


@contextlib.contextmanager
def _numpy_seed(seed: int) -> Iterator[None]:
    """Seed numpy's global generator, and give it back as it was."""
    before = np.random.get_state()  # noqa: NPY002 - LIBERO uses this generator
    np.random.seed(seed)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(before)  # noqa: NPY002
