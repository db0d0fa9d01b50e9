"""How a client starts and stops the robot: the action, and the same as plain services."""

from collections.abc import Callable
from dataclasses import dataclass, field

from rclpy.action import ActionServer, CancelResponse, GoalResponse
from rclpy.action.server import ServerGoalHandle
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.task import Future
from std_srvs.srv import Trigger

from vla_msgs.action import ExecuteInstruction
from vla_msgs.srv import StartInstruction
from vla_policy_node.control.commander import Commander
from vla_policy_node.control.session import OUTCOME_TEXTS, Goal, Outcome
from vla_policy_node.nodes.messages import to_ns

FEEDBACK_PERIOD_S = 0.1


@dataclass
class _Run:
    """A goal of the action from its acceptance to its result."""

    goal: Goal
    inferences_before: int
    handle: ServerGoalHandle | None = None
    result: Future = field(default_factory=Future)


class GoalServer:
    """Action `execute_instruction` and services `~/start`, `~/cancel`, `~/estop`, `~/reset_estop`.

    All callbacks run on the executor's one thread and none of them waits: a goal executes as a
    coroutine, so that its cancel is served. A goal is claimed where it is accepted: two that
    arrive together must not both pass. `check` raises ValueError for an instruction that the
    policy cannot take.
    """

    def __init__(
        self,
        node: Node,
        commander: Commander,
        check: Callable[[str], None],
        default_duration_ns: Callable[[], int],
        fill_feedback: Callable[[ExecuteInstruction.Feedback], None],
        count_inferences: Callable[[], int],
    ):
        self._node = node
        self._commander = commander
        self._check = check
        self._default_duration_ns = default_duration_ns
        self._fill_feedback = fill_feedback
        self._count_inferences = count_inferences
        # By identity of the request, the only thing that `_accept` and the goal handle share.
        self._runs: dict[int, _Run] = {}
        self._action = ActionServer(
            node, ExecuteInstruction, 'execute_instruction', self._execute,
            goal_callback=self._accept, cancel_callback=self._cancel_goal,
        )
        self._services = [
            node.create_service(StartInstruction, '~/start', self._start),
            node.create_service(Trigger, '~/cancel', self._cancel),
            node.create_service(Trigger, '~/estop', self._estop),
            node.create_service(Trigger, '~/reset_estop', self._reset),
        ]
        # Steady: a client must hear of the end of its goal also when simulated time stands still.
        self._timer = node.create_timer(
            FEEDBACK_PERIOD_S, self._look_after_runs,
            clock=Clock(clock_type=ClockType.STEADY_TIME),
        )

    def destroy(self) -> None:
        """Remove everything from the graph."""
        self._node.destroy_timer(self._timer)
        self._action.destroy()
        for service in self._services:
            self._node.destroy_service(service)

    def _begin(self, instruction: str, duration_ns: int) -> Goal:
        self._check(instruction)
        self.settle()
        return self._commander.begin(instruction, duration_ns or self._default_duration_ns())

    def _accept(self, request: ExecuteInstruction.Goal) -> GoalResponse:
        try:
            goal = self._begin(request.instruction, to_ns(request.max_duration))
        except ValueError as error:
            self._node.get_logger().warning(f'Goal rejected: {error}')
            return GoalResponse.REJECT
        self._runs[id(request)] = _Run(goal, self._count_inferences())
        return GoalResponse.ACCEPT

    def _cancel_goal(self, handle: ServerGoalHandle) -> CancelResponse:
        # Stops the robot here and now; the result follows.
        run = self._runs.get(id(handle.request))
        if run is None or not self._commander.end(Outcome.CANCELLED, run.goal.epoch):
            return CancelResponse.REJECT
        return CancelResponse.ACCEPT

    async def _execute(self, handle: ServerGoalHandle) -> ExecuteInstruction.Result:
        run = self._runs[id(handle.request)]
        run.handle = handle
        result = await run.result
        del self._runs[id(handle.request)]
        if result.code == Outcome.SUCCEEDED_DURATION:
            handle.succeed()
        elif handle.is_cancel_requested:
            handle.canceled()
        else:
            handle.abort()
        return result

    def settle(self) -> None:
        """Give goals that have ended their result, before anything counts for the next one."""
        for run in list(self._runs.values()):
            outcome = self._commander.session.outcome(run.goal.epoch)
            if outcome is not None and not run.result.done():
                run.result.set_result(ExecuteInstruction.Result(
                    code=int(outcome), text=OUTCOME_TEXTS[outcome], steps=self._commander.steps,
                    inferences=self._count_inferences() - run.inferences_before,
                ))

    def _look_after_runs(self) -> None:
        self.settle()
        for run in list(self._runs.values()):
            if run.handle is not None and not run.result.done():
                feedback = ExecuteInstruction.Feedback()
                self._fill_feedback(feedback)
                run.handle.publish_feedback(feedback)

    def _start(self, request, response):
        try:
            goal = self._begin(request.instruction, to_ns(request.max_duration))
        except ValueError as error:
            response.success, response.message = False, str(error)
            return response
        response.success, response.epoch = True, goal.epoch
        response.message = f"Following '{goal.instruction}'."
        return response

    def _cancel(self, request, response):
        response.success = self._commander.end(Outcome.CANCELLED)
        response.message = 'Cancelled.' if response.success else 'No instruction is running.'
        return response

    def _estop(self, request, response):
        self._commander.estop()
        self._node.get_logger().warning('Emergency stop latched.')
        response.success, response.message = True, 'Latched; call reset_estop to release it.'
        return response

    def _reset(self, request, response):
        self._commander.session.reset_estop()
        response.success, response.message = True, 'Released; start an instruction to move.'
        return response
