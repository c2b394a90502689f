"""A trivial algorithm, as somebody would add it: REINFORCE with PPO's settings unused, by one learner."""

from distqtrl.training.policy_gradient.learner import PolicyGradient, Recipe


class Vanilla(PolicyGradient):
    """-sum of log pi(a|s) A, one step per update, no value network."""

    @staticmethod
    def objective(log_prob_N, old_log_prob_N, adv_N, clip):
        return -(log_prob_N * adv_N).sum()

    @classmethod
    def recipe_of(cls, a):
        return Recipe(epochs=1, minibatches=1, gae_lambda=1.0, uses_values=False)
