"""GRPO: a learner whose generator makes factors of low rank for a frozen decoder, and a loss over tokens."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from distqtrl import seeding
from distqtrl.algorithm import grpo
from distqtrl.config.run import Config
from distqtrl.environment.vector import Role
from distqtrl.errors import UserError
from distqtrl.language import sampler
from distqtrl.language.adapted import Adapted
from distqtrl.language.model import Noise
from distqtrl.language.sampler import Completions
from distqtrl.quantize import noise
from distqtrl.training.demand import Need
from distqtrl.training.grpo.spec import Decoder
from distqtrl.training.learner import Learner, Setup
from distqtrl.training.step import Loss

STATISTICS = ("policy_loss", "approx_kl", "clip_fraction")


@dataclass
class Samples:
    """N completions, group after group, with what the loss wants: (N, T) is 0 beyond a completion's end."""

    prompts: list[list[int]]
    completions: Completions
    adv_N: Tensor
    old_log_prob_NT: Tensor  # of what the ratio is taken over
    weight_NT: Tensor

    def at(self, rows: Sequence[int]) -> "Samples":
        """Some of them."""
        done = self.completions
        completions = Completions(*(getattr(done, f.name)[rows] for f in fields(done)))
        prompts = [self.prompts[row] for row in rows]
        return Samples(prompts, completions, self.adv_N[rows], self.old_log_prob_NT[rows], self.weight_NT[rows])


class Grpo(Learner):
    """Group relative policy optimization of a frozen decoder's update."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        assert isinstance(setup.spec, Decoder)
        self.spec, self.model, r = setup.spec, setup.spec.model, self.config.rollout
        noise.deviation(r.noise, r.noise_start, r.noise_end, r.noise_stages, 0.0)
        if r.noise != "none":  # refused now, not when the first noise is due
            least = r.noise_start if r.noise == "constant" else r.noise_end
            self.model.noisy(least, seeding.stream(self.config.train.seed, "noise", 0))
        self.start_F = self.generator.ideal().detach().to(self.dtype).clone()  # it may be the parameter itself
        self.trained.register_buffer("start_F", self.start_F)
        self.model.start(self.start_F)
        digest = np.frombuffer(bytes.fromhex(self.spec.sha256), dtype=np.int64).copy()
        self.trained.register_buffer("base", torch.from_numpy(digest))  # so that no run goes on with another one
        self._optimize(self.policy_groups([]))

    @staticmethod
    def check(config: Config, num_environments: int) -> None:
        if (number := config.algorithm.minibatches) > num_environments:
            raise UserError(
                f"algorithm.minibatches = {number} leaves some empty: {num_environments} prompts of all ranks are "
                "dealt out over them: lower it, or raise language.prompts"
            )

    @staticmethod
    def needs(config: Config, spec: Decoder) -> Iterator[Need]:  # type: ignore[override]
        language, network = config.language, spec.model.network.config
        rows = language.prompts * language.group
        head = getattr(network, "head_dim", None) or network.hidden_size // network.num_attention_heads
        cache = 2 * network.num_hidden_layers * network.num_key_value_heads * head * language.max_tokens
        what = f"{rows:,} completions of {language.max_tokens:,} tokens"
        yield 4.0 * rows * cache, what, "language.prompts, language.group or language.max_tokens"
        part = rows if config.algorithm.cap is not None else -(-rows // config.algorithm.minibatches)
        what = f"what {part:,} completions of {language.max_tokens:,} tokens say of {network.vocab_size:,} tokens each"
        remedy = "language.prompts, language.group or language.max_tokens, or raise algorithm.minibatches"
        yield 8.0 * part * language.max_tokens * network.vocab_size, what, remedy  # and their logarithms

    @staticmethod
    def num_training_only(config: Config, spec: Decoder) -> int:  # type: ignore[override]
        return 0

    @staticmethod
    def steps_per_update(config: Config, num_environments: int) -> tuple[int, int]:
        return config.algorithm.epochs * config.algorithm.minibatches, 0

    def acting_noise(self, update: int) -> Noise | None:
        """What the acting policy's norms have in this update; the same on all ranks."""
        r = self.config.rollout
        if r.noise == "none":
            return None
        deviation = noise.deviation(r.noise, r.noise_start, r.noise_end, r.noise_stages, self.done)
        rng = seeding.stream(self.config.train.seed, "noise", update)
        found = self._alike(lambda: self.model.noisy(deviation, rng))
        self.noise = (deviation, found.reached)
        return found

    def log_prob(self, factors_F: Tensor, samples: Samples) -> Tensor:
        """log pi (N, T) of every token at the temperature of the rollout, differentiable in the factors."""
        done, temperature = samples.completions, self.config.language.temperature
        return sampler.log_probs(self.model, factors_F, samples.prompts, done.tokens_NT, done.length_N, temperature)

    def loss(self, samples: Samples, count: float) -> Loss:
        """The loss of this rank's part of a step; count: tokens of all ranks in it."""
        leaf_F, a = self.weights().detach().requires_grad_(), self.config.algorithm
        divisor = max(count, 1.0)
        if not len(samples.prompts):
            return Loss(leaf_F.sum() * 0, leaf_F, [], self.moves, np.zeros(len(STATISTICS)), share=0.0)
        with self.profile("loss"):
            log_ratio_NT = self.log_prob(leaf_F, samples) - samples.old_log_prob_NT
            low, high = a.clip, a.clip if a.clip_high is None else a.clip_high
            value = grpo.loss(log_ratio_NT, samples.adv_N, samples.weight_NT, low=low, high=high) / divisor
            with torch.no_grad():
                token_NT = samples.weight_NT > 0
                ratio_NT = log_ratio_NT.exp()
                kl = ((ratio_NT - 1 - log_ratio_NT) * token_NT).sum() / divisor
                clipped = ((ratio_NT > 1 + high) | (ratio_NT < 1 - low)) & token_NT
            sums = np.array([float(value.detach()), float(kl), float(clipped.sum()) / divisor])
        share = float(token_NT.sum()) / divisor
        return Loss(value=value, leaf_M=leaf_F, direct=[], moves=self.moves, sums=sums, share=share)

    @property
    def moves(self) -> range:
        """All parameters."""
        return range(len(self.parameters))

    def deployed(self, env_steps: int, w_M: Tensor, agents: Role = ()) -> Adapted:
        config = self.config
        return Adapted(
            factors_F=w_M,
            start_F=self.start_F.clone(),
            sha256=self.spec.sha256,
            language=config.language,
            adapter=config.adapter,
            precision=config.train.precision,
            origin={"source": config.generator.source, "env_steps": env_steps, "seed": config.train.seed},
        ).with_model(self.model, self.spec.task)

    def load(self, state: Mapping[str, Tensor]) -> None:
        if "base" in state and not torch.equal(state["base"], self.trained.get_buffer("base")):
            raise UserError(
                f"language.base = {self.config.language.base} is another decoder than this run was started with: bring "
                "that one back"
            )
        super().load(state)  # which writes to start_F
        self.model.start(self.start_F)
