"""Episodes in which a policy, or what it was exported as, acts; other agents are played by their own policies."""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from distqtrl.config.stages import Environment
from distqtrl.environment.rollout import evaluation
from distqtrl.environment.vector import Environments
from distqtrl.errors import UserError
from distqtrl.policy.distribution import Bounded, Categorical, Factored
from distqtrl.policy.policy_file import Policy

Act = Callable[[np.ndarray], np.ndarray]


def check(policies: Sequence[Policy]) -> None:
    """Raise UserError for policies that are not for one environment, see other observations or make other actions."""
    environment = Environment(**policies[0].environment)
    for policy in policies:
        if policy.environment != policies[0].environment:
            raise UserError("the policies are not for one environment: give the policies of one run")
    made = Environments(environment, range(1), 0, "evaluation", 0, [policy.agents for policy in policies])
    made.close()
    for policy, role, width in zip(policies, made.roles, made.widths, strict=True):
        spaces, head, problem = made.spaces[role[0]], policy.head, ""
        if policy.architecture.num_inputs != width - spaces.num_masks:
            problem = f"{width - spaces.num_masks} observations, the policy reads {policy.architecture.num_inputs}"
        elif head.masked != spaces.masked:
            problem = f"{spaces.words}, the policy was trained {'with' if head.masked else 'without'} masks"
        elif isinstance(head, Categorical) and (head.num_actions, head.start) != (
            spaces.num_actions,
            spaces.action_start,
        ):
            problem = f"{spaces.words}, the policy has {head.num_actions} from {head.start} on"
        elif isinstance(head, Factored) and (head.sizes, head.starts) != (spaces.factors, spaces.starts):
            problem = f"{spaces.words}, the policy chooses among {head.sizes} from {head.starts} on"
        elif isinstance(head, Bounded) and (head.low, head.high) != (spaces.low, spaces.high):
            problem = f"{spaces.words}, the policy acts from {head.low} to {head.high}"
        if problem:
            raise UserError(f"{environment.id} has {problem}: give a policy that was trained there, or train it again")


def returns(
    environment: Environment, *, agents: tuple[str, ...], partners: Sequence[Policy], act: Act, num: int, purpose: str
) -> npt.NDArray[np.float64]:
    """The returns of num episodes, means over agents; act plays ``agents``, or the only agent where that is empty.

    Without a time limit of the environment an episode is cut after rollout.AT_LEAST steps.
    """
    roles, acts = [agents, *(p.agents for p in partners)], [act, *(p.act for p in partners)]
    out: npt.NDArray[np.float64] = evaluation(environment, range(num), 0, purpose, acts, roles).returns_EG.mean(1)
    return out


def observations(policy: Policy, partners: Sequence[Policy], num: int) -> np.ndarray:
    """What the policy sees in num episodes of calibration, (N, O)."""
    seen = []

    def act(obs_BO: np.ndarray) -> np.ndarray:
        seen.append(np.array(obs_BO))
        return policy.act(obs_BO)

    environment = Environment(**policy.environment)
    returns(environment, agents=policy.agents, partners=partners, act=act, num=num, purpose="calibration")
    return np.concatenate(seen)
