"""Episodes in which a policy, or what it was exported as, acts; other agents are played by their own policies."""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from distqtrl.config import Environment
from distqtrl.environment.rollout import evaluation
from distqtrl.policy.policy_file import Policy

Act = Callable[[np.ndarray], np.ndarray]


def returns(
    environment: Environment, agents: tuple[str, ...], partners: Sequence[Policy], act: Act, num: int, purpose: str
) -> npt.NDArray[np.float64]:
    """Of num episodes, means over agents; act plays ``agents`` (empty: the only one).

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

    returns(Environment(**policy.environment), policy.agents, partners, act, num, "calibration")
    return np.concatenate(seen)
