"""LIBERO tasks as a world with `reset`, `step` and cameras.

Both images are upright, as a camera on the robot would deliver them. OpenGL's rows run from the
bottom to the top, and that is how LIBERO's own environment hands them out: its raw image is
upside down, not mirrored. The 180 degree turn of the public OpenVLA-OFT evaluation therefore
makes an image that is upright and mirrored: relative to the images here it is
`mirror_horizontal`, for both cameras. `test_world_camera.py` proves it by projection.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from vla_policy_node.common.gl import gl_problem
from vla_policy_node.world import layouts
from vla_policy_node.world.arm import Arm
from vla_policy_node.world.initial_states import load_initial_states
from vla_policy_node.world.libero_setup import SUITES, libero_folder, prepare
from vla_policy_node.world.words import GOALS, basket_instruction

if TYPE_CHECKING:  # a ROS workspace without the world lacks it, and imports its node
    import mujoco

CAMERAS: Mapping[str, str] = {'third_person': 'agentview', 'wrist': 'robot0_eye_in_hand'}
# Longest episodes (control steps) of the public evaluations on these suites.
HORIZONS = {'libero_spatial': 220, 'libero_object': 280, 'libero_goal': 300}
SHUFFLED_SUITES = ('libero_object', 'libero_spatial')

_SETTLING_STEPS = 10
_BASKET = GOALS['libero_object']
_ROBOT_SEGMENTS = ('gripper', 'arm')
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
    """Pose of the hand in LIBERO's world frame."""

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
        self._goals = tuple(tuple(goal) for goal in self._env.env.parsed_problem['goal_state'])
        self._instruction = task.instruction
        self._substeps = round(1 / self.CONTROL_HZ / self.model.opt.timestep)
        self.reset()
        self._radii_m = [self._radius(name) for name in self.objects]

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
        """Return whether all goals hold now, by LIBERO's own predicates."""
        return all(self.holds(goal) for goal in self.goals)

    @property
    def goals(self) -> tuple[tuple[str, ...], ...]:
        """Return the goal, e.g. (('on', 'akita_black_bowl_1', 'plate_1'),); all must hold."""
        return self._goals

    @property
    def instruction(self) -> str:
        """Return the instruction in plain words."""
        return self._instruction

    @property
    def objects(self) -> tuple[str, ...]:
        """Return the names of the objects that can be moved, e.g. 'alphabet_soup_1'."""
        return tuple(self._env.env.objects_dict)

    @property
    def target(self) -> str:
        """Return the name of the object that has to be picked up, or moved, first."""
        return self._goals[0][1]

    def holds(self, goal: tuple[str, ...]) -> bool:
        """Return whether one of `goals` holds now."""
        return bool(self._env.env._eval_predicate(list(goal)))

    def retarget(self, name: str) -> None:
        """Ask for another object of the scene from now on: goal and instruction change.

        Only where every object can go to the same place, which is libero_object.
        """
        if self.task.suite != 'libero_object' or name not in self.objects or name == _BASKET:
            raise ValueError(f'{self.task.name} cannot ask for {name!r}.')
        self._goals = (('in', name, f'{_BASKET}_contain_region'),)
        self._instruction = basket_instruction(name)

    def reset(self, initial_state: int = 0) -> None:
        """Start an episode from one of LIBERO's initial states and let the objects settle."""
        if not 0 <= initial_state < self.initial_states:
            raise ValueError(
                f'Initial state {initial_state} does not exist: '
                f'{self.task.name} has 0 to {self.initial_states - 1}.'
            )
        self._restart(self._states[initial_state], initial_state)

    def reset_layout(self, layout: str, seed: int) -> None:
        """Start an episode with the objects laid out by `world.layouts`; same seed, same scene.

        layout: 'standard' or, for libero_object and libero_spatial, 'shuffled'.
        """
        if layout not in layouts.LAYOUTS:
            raise ValueError(
                f'There is no layout {layout!r}: choose one of {", ".join(layouts.LAYOUTS)}.')
        if layout == 'standard':
            self.reset(layouts.standard_state(seed, self.initial_states))
            return
        if self.task.suite not in SHUFFLED_SUITES:
            raise ValueError(
                f'{self.task.suite} has no shuffled layout, only {" and ".join(SHUFFLED_SUITES)} '
                'have. Use --layout standard.')
        self._restart(self._shuffled_state(seed), seed)

    def layout_digest(self) -> str:
        """sha256 of where everything is, to a tenth of a millimetre."""
        return hashlib.sha256(np.round(self.data.qpos, 4).tobytes()).hexdigest()

    def scatter(self, seed: int) -> None:
        """Move the objects, and nothing else, to a shuffled layout; they do not settle.

        For still pictures: a hundredth of the time of `reset_layout`.
        """
        import mujoco

        state = self._shuffled_state(seed)
        for name in self.objects:
            joint = self.data.joint(self._env.env.objects_dict[name].joints[0])
            address = self.model.joint(joint.name).qposadr[0]
            joint.qpos = state[1 + address:][:7]
            joint.qvel = 0
        mujoco.mj_forward(self.model, self.data)

    def _shuffled_state(self, seed: int) -> np.ndarray:
        """Return [1 + nq + nv]: one of LIBERO's initial states with its objects shuffled."""
        rng = np.random.default_rng(seed)
        state = self._states[rng.integers(self.initial_states)].copy()
        places = self._planar_addresses() + 1  # the state starts with the time
        if self.task.suite == 'libero_spatial':
            state[places] = layouts.shift(state[places], self._on_furniture(), rng)
        else:
            fixed = [name == _BASKET for name in self.objects]
            state[places] = layouts.shuffle(state[places], self._radii_m, fixed, rng)
        return state

    def _on_furniture(self) -> list[bool]:
        """Return of each object whether it starts on or in a fixture."""
        begin = self._env.env.parsed_problem['initial_state']
        place = {name: where for _, name, where in (fact for fact in begin if len(fact) == 3)}
        fixtures = tuple(self._env.env.fixtures_dict)
        return [place[name].startswith(fixtures) for name in self.objects]

    def _restart(self, state: np.ndarray, seed: int) -> None:
        # LIBERO scatters its furniture by numpy's global generator, a centimetre at most.
        with _numpy_seed(seed):
            self._env.reset()
        (robot,) = self._env.robots
        # robosuite keeps it across episodes when the model is not loaded anew.
        robot.gripper.current_action = np.zeros(robot.gripper.dof)
        self._arm = Arm(robot, self.model, self.data)
        self._env.set_init_state(state)
        for _ in range(_SETTLING_STEPS):
            self._advance(_HOLD_OPEN)
        self.steps = 0

    def _planar_addresses(self) -> np.ndarray:
        """Return [objects, 2], where in qpos the x and y of each object are."""
        joints = [self._env.env.objects_dict[name].joints[0] for name in self.objects]
        return np.array([self.model.joint(joint).qposadr + [0, 1] for joint in joints])

    def _radius(self, name: str) -> float:
        """Return the radius (m) of a vertical cylinder around what collides of an object."""
        body = self._env.env.obj_body_id[name]
        geoms = np.flatnonzero(
            (self.model.body_rootid[self.model.geom_bodyid] == body)
            & (self.model.geom_contype > 0)
        )
        corners = self.data.geom_xpos[geoms][:, None] + np.einsum(
            'gij,cj,gj->gci',
            self.data.geom_xmat[geoms].reshape(-1, 3, 3),
            np.array(np.meshgrid(*[[-1, 1]] * 3)).reshape(3, -1).T,
            self.model.geom_aabb[geoms][:, 3:],
        )
        return float(np.linalg.norm(corners[..., :2] - self.data.xpos[body][:2], axis=-1).max())

    def step(self, action: np.ndarray) -> None:
        """Apply one action for 1/20 s.

        `action` is [7] in [-1, 1]: x, y, z (1.0 is 0.05 m), rotation vector (1.0 is 0.5 rad), both
        in the world frame, and gripper (1 closes, -1 opens). Beyond the range it is clipped.
        """
        action = np.asarray(action, dtype=float)
        if action.shape != (7,) or not np.isfinite(action).all():
            raise ValueError(f'An action is 7 finite numbers, not {action}.')
        self._advance(np.clip(action, -1, 1))
        self.steps += 1

    def _advance(self, action: np.ndarray) -> None:
        """Do what robosuite's `step` does to the simulation, in 0.45 of its time.

        Bit for bit the same, on one processor with the same versions.

        robosuite computes the whole dynamics three times per substep: before the controller,
        inside it, and in the step itself. The controller needs only the part that depends on
        positions and velocities, which is the first half of MuJoCo's step. Sensors, reward and
        observations, which nobody reads here, are left out.
        """
        import mujoco

        environment = self._env.env
        simulation, model, data = environment.sim, self.model, self.data
        simulation.forward = _nothing  # shadows the method while the controller runs
        try:
            for substep in range(self._substeps):
                mujoco.mj_step1(model, data)
                if substep:
                    self._arm.go_on(action)
                else:
                    environment._pre_action(action, policy_step=True)
                mujoco.mj_step2(model, data)
        finally:
            del simulation.forward
        environment._post_process()

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
        return {name: renderer.render() for name, renderer in self._views()}

    @cached_property
    def segments(self) -> tuple[str, ...]:
        """Return the names that `segment` counts by: objects, fixtures, 'gripper', 'arm'."""
        return (*self.objects, *self._env.env.fixtures_dict, *_ROBOT_SEGMENTS)

    def segment(self) -> dict[str, np.ndarray]:
        """Return for each pixel of both images an index into `segments`, or -1.

        [height, width] int16, of what is seen from the camera (privileged).
        """
        masks = {}
        for name, renderer in self._views():
            renderer.enable_segmentation_rendering()
            geoms = renderer.render()[:, :, 0]
            renderer.disable_segmentation_rendering()
            masks[name] = self._segment_of_geom[geoms]
        return masks

    @cached_property
    def _segment_of_geom(self) -> np.ndarray:
        """[geoms + 1] int16, the index into `segments` of each; the last is for no geom."""
        roots = {
            self._env.env.obj_body_id[name]: index
            for index, name in enumerate(self.segments[: -len(_ROBOT_SEGMENTS)])
        }
        table = np.full(self.model.ngeom + 1, -1, np.int16)
        for geom, body in enumerate(self.model.geom_bodyid):
            name = self.model.body(int(body)).name
            if name.startswith('gripper0'):
                table[geom] = len(self.segments) - 2
            elif name.startswith(('robot0', 'mount0')):
                table[geom] = len(self.segments) - 1
            else:
                table[geom] = roots.get(int(self.model.body_rootid[body]), -1)
        return table

    def _views(self) -> Iterator[tuple[str, mujoco.Renderer]]:
        """Point the renderer at one camera after the other."""
        import mujoco

        if self._renderer is None:
            self._renderer = self._make_renderer()
        options = mujoco.MjvOption()
        options.geomgroup[0] = 0  # what collides
        options.sitegroup[:] = 0  # `segment` would count them as geoms
        for name, camera in CAMERAS.items():
            self._renderer.update_scene(self.data, camera, options)
            yield name, self._renderer

    def _make_renderer(self) -> mujoco.Renderer:
        import mujoco

        visual = self.model.vis
        visual.global_.offwidth = max(self._width, visual.global_.offwidth)
        visual.global_.offheight = max(self._height, visual.global_.offheight)
        # Coarser boxes and cylinders take a third off the time of software rendering.
        visual.quality.numquads = 1
        visual.quality.numslices = 20
        visual.quality.numstacks = 8
        if problem := gl_problem(os.environ):
            raise ValueError(problem)
        try:
            renderer = mujoco.Renderer(self.model, self._height, self._width)
        except Exception as error:  # whatever a driver, a library or its wrapper raises
            raise ValueError(
                f"The simulated cameras cannot be drawn with {os.environ['MUJOCO_GL']} "
                f'({str(error).rstrip(".") or type(error).__name__}); set MUJOCO_GL to egl or '
                'osmesa, and see what vla doctor says.') from error
        # No light of the scenes casts a shadow, but the pass for it takes a tenth of the time.
        renderer.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = False
        return renderer

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


def _nothing() -> None:
    """Stand in for a computation that is not needed."""


@contextlib.contextmanager
def _numpy_seed(seed: int) -> Iterator[None]:
    """Seed numpy's global generator, and give it back as it was."""
    before = np.random.get_state()  # noqa: NPY002 - LIBERO uses this generator
    np.random.seed(seed)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(before)  # noqa: NPY002
