"""Starts and stops the robot for clients, through an action and equivalent services."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from rclpy.action import ActionServer, CancelResponse, GoalResponse
from rclpy.action.server import ServerGoalHandle
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.task import Future
from std_srvs.srv import Trigger

from vla_msgs.action import ExecuteInstruction
from vla_msgs.srv import StartInstruction
from vla_policy_node.control.commander import Commander
from vla_policy_node.control.session import (
    OUTCOME_TEXTS,
    Goal,
    GoalRefusedError,
    Outcome,
    Session,
)
from vla_policy_node.nodes.estop_record import EstopRecord
from vla_policy_node.nodes.messages import to_ns
from vla_policy_node.nodes.spinning import Spinner
from vla_policy_node.policy.interface import MAX_INSTRUCTION_BYTES

FEEDBACK_PERIOD_S = 0.1
# A goal survives this long without a listener to its feedback: the graph is slow to report a
# client that replaces another.
LEASE_S = 1.0
# How long the graph may take to report the client that sent it.
DISCOVERY_S = 5.0
# How long the end of the node waits for clients to ask how their goals ended, and then for the
# last answer to leave the process.
FAREWELL_S = 0.5
SENDING_S = 0.1


@dataclass(frozen=True)
class Work:
    """What goals are for, from configure to cleanup.

    check: raises ValueError for an instruction that the policy cannot take (on its own thread).
    refuse: raises ValueError if no goal can begin now (goals thread).
    stopped: called after each stop and before it is acknowledged; sends the hold (goals thread).
    """

    commander: Commander
    check: Callable[[str], None]
    refuse: Callable[[], None]
    stopped: Callable[[], None]
    default_duration_ns: Callable[[], int]
    fill_feedback: Callable[[ExecuteInstruction.Feedback], None]
    count_inferences: Callable[[], int]


@dataclass
class _Run:
    """A goal of the action from its acceptance to its result.

    listened_s: when somebody last listened to its feedback, on the steady clock.
    """

    goal: Goal
    work: Work
    inferences_before: int
    result: Future
    listened_s: float
    handle: ServerGoalHandle | None = None


class _TellingServer(ActionServer):
    """An action server that says when it has sent a result."""

    told: Callable[[ExecuteInstruction.Result], None]

    def _send_result_response(self, request_header, future) -> None:
        super()._send_result_response(request_header, future)
        self.told(future.result().result)


class GoalServer:
    """Action `execute_instruction` and services `~/start`, `~/cancel`, `~/estop`, `~/reset_estop`.

    They live on a node of their own, `<name>_goals`, served by a thread that nothing else uses,
    so that a stop is obeyed whatever keeps the policy node's executor busy. Nothing on that thread
    waits: a goal executes as a coroutine, so that its cancellation is served, and its instruction
    is tokenised on another thread. A goal is claimed on acceptance: two that arrive together must
    not both pass.

    It lives from the first configure to the end of the node, also where there is no work for it:
    clients ask for the result of a goal when they like, and must learn that it was shut down.
    """

    def __init__(self, node: Node, session: Session):
        self._session = session
        self._work: Work | None = None
        self._record: EstopRecord | None = None
        self._logger = node.get_logger()
        # By identity of the request: the only thing that `_accept` and the goal handle share.
        self._runs: dict[int, _Run] = {}
        self._settling = threading.Lock()
        self._working = threading.Lock()  # while there is work, or a goal begins
        self._untold: list[ExecuteInstruction.Result] = []
        self._told = threading.Condition()
        self._told_s = -SENDING_S
        # Names are resolved on the policy node, where remappings by node name apply.
        self._node = Node(
            f'{node.get_name()}_goals', context=node.context, namespace=node.get_namespace(),
            use_global_arguments=False, start_parameter_services=False)
        # A stop must not wait for the coroutine that awaits the tokeniser.
        group = ReentrantCallbackGroup()
        self._feedback_topic = f"{node.resolve_topic_name('execute_instruction')}/_action/feedback"
        self._action = _TellingServer(
            self._node, ExecuteInstruction, node.resolve_topic_name('execute_instruction'),
            self._execute, goal_callback=self._accept, cancel_callback=self._cancel_goal,
            callback_group=group,
        )
        self._action.told = self._note_told
        for service_type, name, callback in (
            (StartInstruction, '~/start', self._start), (Trigger, '~/cancel', self._cancel),
            (Trigger, '~/estop', self._estop), (Trigger, '~/reset_estop', self._reset),
        ):
            self._node.create_service(service_type, node.resolve_service_name(name), callback,
                                      callback_group=group)
        # Steady: a client must learn of the end of its goal even while simulated time stands
        # still.
        self._node.create_timer(
            FEEDBACK_PERIOD_S, self._look_after_runs,
            callback_group=group, clock=Clock(clock_type=ClockType.STEADY_TIME),
        )
        self._checker = ThreadPoolExecutor(1, 'policy_check')
        self._recorder = ThreadPoolExecutor(1, 'policy_estop')  # in order, and disks may hang
        self._spinner = Spinner(self._node, 'policy_goals')

    def take_up(self, work: Work, record: EstopRecord) -> None:
        """Serve goals for a policy (executor thread of the policy node).

        record: where emergency stops are recorded from now on.
        """
        with self._working:
            self._work, self._record = work, record

    def lay_down(self) -> None:
        """Let go of the policy; results are still delivered (executor thread)."""
        with self._working:
            self._work = None

    def destroy(self) -> None:
        """Remove everything from the graph, once clients know how their goals ended.

        Whoever asks later than FAREWELL_S never gets an answer (executor thread).
        """
        self.settle()
        with self._told:
            if self._node.context.ok():
                self._told.wait_for(lambda: not self._untold, FAREWELL_S)
                self._told.wait(max(0.0, self._told_s + SENDING_S - time.monotonic()))
        self._spinner.stop()
        self._checker.shutdown(wait=False, cancel_futures=True)
        self._recorder.shutdown(wait=False)
        self._action.destroy()
        self._node.destroy_node()

    def settle(self) -> None:
        """Deliver the results of goals that have ended, before the next goal starts counting.

        Any thread.
        """
        with self._settling:
            for run in list(self._runs.values()):
                outcome = self._session.outcome(run.goal.epoch)
                if outcome is not None and not run.result.done():
                    result = ExecuteInstruction.Result(
                        code=int(outcome), text=OUTCOME_TEXTS[outcome],
                        steps=run.work.commander.steps,
                        inferences=run.work.count_inferences() - run.inferences_before,
                    )
                    with self._told:
                        self._untold.append(result)
                    run.result.set_result(result)

    # --- the rest: goals thread ---

    def _note_told(self, told: ExecuteInstruction.Result) -> None:
        with self._told:
            self._untold = [result for result in self._untold if result is not told]
            self._told_s = time.monotonic()
            self._told.notify_all()

    async def _begin(self, instruction: str, duration_ns: int) -> tuple[Goal, Work]:
        size = len(instruction.encode(errors='replace'))
        if size > MAX_INSTRUCTION_BYTES:
            raise GoalRefusedError(
                f'The instruction is too long ({size} bytes); {MAX_INSTRUCTION_BYTES} are read.')
        work = self._work
        if work is None:
            raise GoalRefusedError('The node is not configured; configure and activate it first.')
        work.refuse()
        self.settle()
        self._session.reserve()
        try:
            error = await self._elsewhere(self._checker, work.check, instruction)
            if isinstance(error, ValueError):
                raise error
            if error is not None:  # a tokeniser that panics raises a BaseException
                self._logger.error(f'Checking the instruction failed: {error!r}')
                raise GoalRefusedError('The instruction cannot be tokenised; see the log.')
            with self._working:
                if work is not self._work:
                    raise GoalRefusedError('The node was cleaned up in the meantime; try again.')
                return work.commander.begin(
                    instruction, duration_ns or work.default_duration_ns()), work
        finally:
            self._session.release()

    async def _elsewhere(
        self, pool: ThreadPoolExecutor, job: Callable[..., None], *arguments: str
    ) -> BaseException | None:
        """Return what a job on another thread raised."""
        done = Future(executor=self._spinner.executor)

        def tell(job) -> None:
            done.set_result(job.exception())
            self._spinner.executor.wake()

        pool.submit(job, *arguments).add_done_callback(tell)
        return await done

    async def _accept(self, request: ExecuteInstruction.Goal) -> GoalResponse:
        try:
            goal, work = await self._begin(request.instruction, to_ns(request.max_duration))
        except ValueError as error:
            self._logger.warning(f'Goal rejected: {error}')
            return GoalResponse.REJECT
        self._runs[id(request)] = _Run(
            goal, work, work.count_inferences(), Future(executor=self._spinner.executor),
            time.monotonic() + DISCOVERY_S)
        return GoalResponse.ACCEPT

    def _cancel_goal(self, handle: ServerGoalHandle) -> CancelResponse:
        # Stops the robot at once; the result follows.
        run = self._runs.get(id(handle.request))
        if run is None or not run.work.commander.end(Outcome.CANCELLED, run.goal.epoch):
            return CancelResponse.REJECT
        run.work.stopped()
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

    def _look_after_runs(self) -> None:
        self._end_orphans()
        self.settle()
        for run in list(self._runs.values()):
            if run.handle is not None and not run.result.done():
                feedback = ExecuteInstruction.Feedback()
                run.work.fill_feedback(feedback)
                run.handle.publish_feedback(feedback)

    def _end_orphans(self) -> None:
        """End goals whose client has left the graph: nobody is there to stop the robot.

        A client listens to feedback as long as it lives. No message tells which listener sent the
        goal, so it continues while anybody listens.
        """
        runs = [run for run in self._runs.values() if not run.result.done()]
        listened = runs and self._node.count_subscribers(self._feedback_topic) > 0
        for run in runs:
            if listened:
                run.listened_s = time.monotonic()
            elif (time.monotonic() - run.listened_s > LEASE_S
                  and run.work.commander.end(Outcome.CLIENT_LOST, run.goal.epoch)):
                run.work.stopped()
                self._logger.warning('The client of the goal has left; the robot holds.')

    async def _start(self, request, response):
        try:
            goal, _ = await self._begin(request.instruction, to_ns(request.max_duration))
        except ValueError as error:
            response.success, response.message = False, str(error)
            return response
        response.success, response.epoch = True, goal.epoch
        response.message = f"Following '{goal.instruction}'."
        return response

    def _cancel(self, request, response):
        work = self._work
        response.success = work is not None and work.commander.end(Outcome.CANCELLED)
        if work is not None:
            work.stopped()
        response.message = 'Cancelled.' if response.success else 'No instruction is running.'
        return response

    async def _estop(self, request, response):
        if work := self._work:
            work.commander.estop()
            work.stopped()
        else:
            self._session.estop()
        self._logger.warning('Emergency stop latched.')
        response.success, response.message = True, 'Latched; call reset_estop to release it.'
        if self._record and (error := await self._elsewhere(self._recorder, self._record.latch)):
            response.message += f' It will not survive a restart of this node: {error}.'
            self._logger.error(response.message)
        return response

    async def _reset(self, request, response):
        # At once, so that a stop that comes while the disk is awaited stays latched.
        self._session.reset_estop()
        response.success, response.message = True, 'Released; start an instruction to move.'
        if self._record and (error := await self._elsewhere(self._recorder, self._record.release)):
            response.message += f' After a restart of this node it will be latched again: {error}.'
            self._logger.error(response.message)
        return response
