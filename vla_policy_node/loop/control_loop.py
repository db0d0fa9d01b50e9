"""The control loop: a policy, and the commander that executes its chunks, wired together once.

The node, the evaluation and the replay drive the same loop, which also tells each inference what
is known about execution.
"""

from vla_policy_node.control.commander import Commander, CommanderParts
from vla_policy_node.control.session import Goal, Session
from vla_policy_node.policy.interface import ActionChunk, InferenceRequest, Observation, Policy


class ControlLoop:
    """Asks the policy and hands its chunks to the executor.

    `commander` belongs to any thread, everything else to the one that infers.

    session: None for one that is active already.
    """

    def __init__(
        self, policy: Policy, parts: CommanderParts, period_ns: int,
        session: Session | None = None,
    ):
        if session is None:
            session = Session()
            session.activate()
        self.policy = policy
        self.commander = Commander(session, parts)
        self.period_ns = period_ns
        self._epoch: int | None = None

    def needs_inference(self, stamp_ns: int) -> bool:
        """Return whether a chunk should be computed from an observation of this time."""
        return self.commander.parts.executor.needs_inference(stamp_ns + self.period_ns)

    def infer(
        self, observation: Observation, stamp_ns: int, goal: Goal, execute: int = 0
    ) -> ActionChunk:
        """Return the policy's chunk, handed to the executor first: the robot waits for no report.

        execute: actions of the chunk to use, 0 for all. Raises what policy and executor raise.
        """
        executor = self.commander.parts.executor
        if goal.epoch != self._epoch:
            self.policy.reset()
            self._epoch = goal.epoch
        chunk = self.policy.infer(InferenceRequest(observation, executor.execution(stamp_ns)))
        used = slice(execute or None)
        executor.push(chunk.actions[used], stamp_ns, goal.epoch, chunk.normalised[used])
        return chunk
