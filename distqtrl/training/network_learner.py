"""What is trained of a policy that is a network of a few layers: its normaliser and quantizer beside its generator."""

from collections.abc import Callable, Collection, Mapping

import numpy as np
import torch
from torch import Tensor

from distqtrl import seeding
from distqtrl.config.run import Config
from distqtrl.environment.spaces import Spaces
from distqtrl.environment.vector import Role
from distqtrl.errors import UserError
from distqtrl.policy import adapter, behaviour, distribution, lower, network
from distqtrl.policy.distribution import Head
from distqtrl.policy.normalizer import Normalizer
from distqtrl.policy.policy_file import Policy
from distqtrl.quantize import integers
from distqtrl.quantize.aware import Quantizer
from distqtrl.training.gradient import Array
from distqtrl.training.learner import Learner, Setup


class NetworkLearner(Learner):
    """Base of the learners whose policy reads observations with a network and says actions by a head."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.architecture, self.head = setup.spec.architecture, setup.spec.head
        self.normalizer = Normalizer.fresh(self.architecture.num_inputs)
        if self.config.adapter.base is not None:
            self._adapt()
        behaviour.checked(self.config.rollout, self.architecture)
        self.quantizer: Quantizer | None = None
        if self.config.quantize.aware:
            self.quantizer = lower.quantizer(self.config.quantize, self.architecture, self.head).to(self.dtype)
            self.trained.add_module("quantizer", self.quantizer)
        self.scales: list[Tensor] = [] if self.quantizer is None else list(self.quantizer.parameters())

    def _adapt(self) -> None:
        """Let what is generated change a frozen policy."""
        config = self.config
        base, rank = adapter.base(config.adapter, self.architecture, self.head), config.adapter.rank
        assert base is not None
        if base.normalizer.count == 0 and config.policy.normalize_observations:
            raise UserError(
                f"adapter.base = {config.adapter.base} reads observations as they are, policy.normalize_observations "
                "would change them under it: set it to false"
            )
        self.normalizer = base.normalizer
        start_F, base_M = self.generator.ideal(), base.w_M.to(self.dtype)
        self.generated.adapter = adapter.Adapter(self.architecture, rank, base_M, start_F)
        self.trained.add_module("adapter", self.generated.adapter)

    @staticmethod
    def head_for(config: Config, spaces: Spaces) -> Head:
        """The head that fits these actions; raises UserError where the algorithm has none."""
        raise NotImplementedError

    @property
    def std_A(self) -> np.ndarray:
        """Deviations of a rollout's actions, where they do not depend on observations."""
        return np.zeros(0)

    def acting_weights(self, update: int) -> Tensor:
        """w_M of the policy that acts in this update's rollout, detached."""
        w_M, r = self.weights().detach(), self.config.rollout
        if not behaviour.differs(r):
            return w_M
        rng = seeding.stream(self.config.train.seed, "noise", update, *self.key)
        w_M, deviation, reached = self._alike(lambda: behaviour.weights(r, self.architecture, w_M, self.done, rng))
        self.noise = (deviation, reached)
        return w_M

    def observed(self, obs: np.ndarray) -> Tensor:
        """Observations as this learner's networks see them."""
        return torch.from_numpy(self.normalizer.apply(distribution.read(self.head, obs))).to(self.dtype)

    def acting(self, w_M: Tensor) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
        """raw and normalised observations (B, O), without masks -> outputs (B, A), in NumPy, under these weights."""
        if self.quantizer is not None:
            quantizer, layers = self.quantizer, network.unpack(self.architecture, w_M)
            on_integers = self._alike(lambda: integers.acting(quantizer.network(layers, *self.normalizer.affine)))
            dtype = w_M.numpy().dtype
            return lambda raw_BO, obs_BO: on_integers(raw_BO).astype(dtype)
        outputs = network.acting(self.architecture, w_M)
        return lambda raw_BO, obs_BO: outputs(obs_BO)

    def outputs(self, w_M: Tensor, raw_NO: Tensor, obs_NO: Tensor, collect: bool = False) -> Tensor:
        """The policy's outputs (N, A) with these weights, masked; obs_NO are the normalised raw_NO without the masks.

        collect: keep what a quantizer that warms up wants to know of this batch.
        """
        layers = network.unpack(self.architecture, w_M)
        if self.quantizer is not None:
            quantizer, affine, read_NO = self.quantizer, self.normalizer.affine, distribution.read(self.head, raw_NO)
            outputs = self._alike(lambda: quantizer.outputs(layers, read_NO, *affine, collect=collect))
        else:
            outputs = network.outputs(self.architecture, layers, obs_NO)
        return distribution.allowed_of(outputs, distribution.masks(self.head, raw_NO)) if self.head.masked else outputs

    @property
    def still(self) -> Collection[int]:
        """Scales that warm up."""
        if not self._warming:
            return ()
        scales = {id(p) for p in self.scales}
        return [i for i, p in enumerate(self.parameters) if id(p) in scales]

    @property
    def _warming(self) -> bool:
        return self.quantizer is not None and self.quantizer.warming

    def scales_seen(self, share: float) -> Array:
        """What a quantizer that warms up saw of this rank's share of the samples."""
        if self.quantizer is None or not self._warming:
            return np.zeros(0)
        if self.config.policy.normalize_observations and not self.normalizer.count:
            return np.zeros(0)  # it will look different
        return self.quantizer.statistics() * share

    def take_scales(self, scales_S: Array) -> None:
        if self.quantizer is not None:
            self.quantizer.update_scales(scales_S)

    def deployed(self, env_steps: int, w_M: Tensor, agents: Role = ()) -> Policy:
        """The policy with these weights; agents: those that it plays, where there are several."""
        config = self.config
        return Policy(
            architecture=self.architecture,
            head=self.head,
            w_M=w_M,
            normalizer=self.normalizer,
            environment=config.environment.model_dump(mode="json"),
            origin={"source": config.generator.source, "env_steps": env_steps, "seed": config.train.seed},
            trained=None if self.quantizer is None else self.quantizer.trained(),
            agents=agents,
        )

    def tensors(self) -> dict[str, Tensor]:
        own = {f"normalizer.{name}": torch.from_numpy(t) for name, t in self.normalizer.tensors().items()}
        return super().tensors() | own

    def load(self, state: Mapping[str, Tensor]) -> None:
        super().load(state)
        self.normalizer = Normalizer.of({name: t.numpy() for name, t in state.items()}, prefix="normalizer.")
