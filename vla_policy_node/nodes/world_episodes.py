"""Starts one episode after another, on whatever task is requested."""

from dataclasses import dataclass

from vla_policy_node.world.libero_world import LiberoWorld, Task, tasks

# Values that a request may use instead of an index (vla_msgs/srv/ResetWorld).
KEEP_TASK, NEXT_TASK = -1, -2
NEXT_STATE = -1
STANDARD = 'standard'


@dataclass(frozen=True)
class Episode:
    """The current task and its start."""

    task: Task
    layout: str
    initial_state: int
    number: int

    def __str__(self) -> str:
        """Return it as a sentence."""
        return (
            f'Episode {self.number}: {self.task.suite} task {self.task.task_id}, {self.layout} '
            f"layout {self.initial_state}, '{self.task.instruction}'."
        )


class Episodes:
    """The present world and the way to the next one. For the thread that renders.

    image_size: (width, height) in pixels.
    """

    def __init__(self, image_size: tuple[int, int]):
        self._image_size = image_size
        self.world: LiberoWorld | None = None
        self.present: Episode | None = None

    def begin(self, suite: str, task_id: int, layout: str, initial_state: int) -> Episode:
        """Start an episode; negative numbers and empty strings as in ResetWorld.

        Raises ValueError for something that does not exist; the current episode then continues.
        """
        task = self._choose_task(suite, task_id)
        layout = layout or self.present.layout
        if initial_state == NEXT_STATE:
            initial_state = self.present.initial_state + 1
            if layout == STANDARD:
                initial_state %= self.world.initial_states
        if self.world is None or task != self.world.task:
            self._replace_world(task, layout, initial_state)
        else:
            _reset(self.world, layout, initial_state)
        number = self.present.number + 1 if self.present else 1
        self.present = Episode(task, layout, initial_state, number)
        return self.present

    def close(self) -> None:
        """Free the simulation."""
        if self.world is not None:
            self.world.close()
            self.world = None

    def _choose_task(self, suite: str, task_id: int) -> Task:
        choices = tasks(suite or self.present.task.suite)
        if task_id == KEEP_TASK:
            task_id = self.present.task.task_id
        elif task_id == NEXT_TASK:
            task_id = (self.present.task.task_id + 1) % len(choices)
        if not 0 <= task_id < len(choices):
            raise ValueError(
                f'There is no task {task_id} in {choices[0].suite}: choose 0 to '
                f'{len(choices) - 1}, -1 for the present or -2 for the next one.'
            )
        return choices[task_id]

    def _replace_world(self, task: Task, layout: str, initial_state: int) -> None:
        world = LiberoWorld(task, self._image_size)
        try:
            _reset(world, layout, initial_state)
        except ValueError:
            world.close()
            raise
        self.close()
        self.world = world


def _reset(world: LiberoWorld, layout: str, initial_state: int) -> None:
    if layout == STANDARD:
        world.reset(initial_state)
    else:
        world.reset_layout(layout, initial_state)
