"""Under which conditions an episode was run, as data: what may be averaged, what may be compared, and what may not."""

import json
from dataclasses import dataclass
from typing import Any

from core.config import differences
from core.policy import Policy
from core.run import fingerprint_of
from core.spaces import ActionSpace
from eval.benchmark import NEEDED_FACTS, Benchmark
from eval.execution import Execution

UNKNOWN = "unknown"


class ProtocolError(ValueError):
    """Results that were not got under the same conditions, or a benchmark that does not say its own."""


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """The conditions of an episode; all episodes of an arm on a task have the same ones.

    Arms that are compared on a task must share the benchmark's part and may differ in the policy's.
    """

    benchmark: dict[str, Any]
    """`step_limit`, `control_hz`, `action_space`, `stop_beyond`, and the facts that the benchmark says of itself."""
    policy: dict[str, Any]
    """`chunk_horizon` (None: it neither says nor ever answered), `execute_steps`, `ensemble_decay`, `action_scale`,
    `sticky_gripper_steps`, `temperature` (0: greedy; None: it does not say), `cameras` ([]: it sees none), `image_size`
    and `shuffled_instruction`."""

    @property
    def fingerprint(self) -> str:
        """Identifies what arms must share: the benchmark's part."""
        return fingerprint_of(self.benchmark)

    def difference(self, other: "Protocol", only_benchmark: bool = False) -> list[str]:
        """Lines `key: ours -> theirs`, in all or in what arms must share."""
        found = differences({"benchmark": self.benchmark}, {"benchmark": other.benchmark})
        return found if only_benchmark else found + differences({"policy": self.policy}, {"policy": other.policy})

    def with_horizon(self, chunk_horizon: int) -> "Protocol":
        """The same, once a policy that does not say its `horizon` has shown how many actions it answers at a time."""
        said = self.policy["chunk_horizon"]
        return Protocol(benchmark=self.benchmark, policy=self.policy | {"chunk_horizon": said or chunk_horizon})


def protocol_of(benchmark: Benchmark, policy: Policy, execution: Execution, shuffled_instruction: bool) -> Protocol:
    """The conditions of an episode that is about to run.

    Raises:
        ProtocolError: the benchmark leaves out facts that a score depends on.
    """
    facts = dict(benchmark.facts)
    missing = [name for name in NEEDED_FACTS if name not in facts]
    if missing:
        raise ProtocolError(
            f"the benchmark of {benchmark.task} does not say its {', '.join(missing)}; its `facts` must, see "
            "eval/benchmark.py"
        )
    used = execution.model_dump()
    image_size = facts.pop("image_size")
    shared = {
        "step_limit": benchmark.max_steps,
        "control_hz": benchmark.control_hz,
        "action_space": in_words(benchmark.action_space),
        "stop_beyond": used.pop("stop_beyond"),
    }
    own = {
        "chunk_horizon": getattr(policy, "horizon", None),
        "temperature": getattr(policy, "temperature", None),
        "cameras": list(policy.cameras),
        "image_size": image_size,
        "shuffled_instruction": shuffled_instruction,
    }
    # As it will be read back: JSON knows no tuples.
    return Protocol(**json.loads(json.dumps({"benchmark": shared | facts, "policy": used | own})))


def in_words(space: ActionSpace) -> str:
    """All that an action space says, in one line."""
    bounds = [space.low or (None,) * space.dims, space.high or (None,) * space.dims]
    columns = zip(space.names, space.units, *bounds, strict=True)
    numbers = [f"{name} {unit} {_bound(low)}..{_bound(high)}" for name, unit, low, high in columns]
    return f"{space.kind} ({space.frame}, {space.rotation}): {', '.join(numbers)}"


def _bound(value: float | None) -> str:
    return "?" if value is None else f"{value:g}"
