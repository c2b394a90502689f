"""The generator for anyone's network: an nn.Module whose weights come from a circuit (docs/python.md).

net = distqtrl.nn.generate(net, circuit={"layers": 3}, mapping={"chunk": 16})
optimizer = torch.optim.Adam(net.parameters())     # theta and phi
policy = distqtrl.nn.policy(net, "CartPole-v1")    # a trained MLP as our policy, for export
"""

from distqtrl.nn.generated import Weights, generate, generators
from distqtrl.nn.mlp import policy

__all__ = ["Weights", "generate", "generators", "policy"]
