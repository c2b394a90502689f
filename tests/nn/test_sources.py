import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from distqtrl.config.run import Config
from distqtrl.errors import UserError
from distqtrl.nn import generate, generators

MAPPING = {"kind": "mlp", "hidden": [6]}
X = torch.linspace(-1, 1, 20).view(5, 4)


def net():
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))  # 58 weights


class Softmax(nn.Module):
    def __init__(self, num=16, trained=True):
        super().__init__()
        self.logits = nn.Parameter(torch.linspace(0, 1, num), requires_grad=trained)

    def forward(self):
        return torch.softmax(self.logits, 0)


def test_a_module_is_trained_as_it_is():
    source = Softmax()
    made = generate(net(), source, MAPPING)
    (weights,) = generators(made)
    assert weights.mapping.config.chunk == 4  # 58 weights of 16 probabilities
    assert {id(source.logits)} < {id(p) for p in made.parameters()}
    optimizer = torch.optim.Adam(made.parameters(), lr=0.1)
    for step in range(3):
        out = made(X)
        out.sum().backward()
        assert source.logits.grad.abs().max() > 0
        optimizer.step()
        assert weights.runs == step + 1
    assert not torch.equal(made(X), out)


def test_a_function_of_angles():
    def product(a, b):
        p_Q = torch.sin(torch.cat([a, b])) ** 2
        p_S = torch.ones(1, dtype=a.dtype)
        for p in p_Q:
            p_S = torch.outer(p_S, torch.stack([1 - p, p])).flatten()
        return p_S

    made = generate(net(), product, MAPPING, weight_shapes={"a": (3,), "b": (2,)})
    made(X).sum().backward()
    (weights,) = generators(made)
    assert {name: tuple(p.shape) for name, p in weights.source.angles.items()} == {"a": (3,), "b": (2,)}
    assert all(p.grad.abs().max() > 0 for p in weights.source.parameters())
    again = generate(net(), product, MAPPING, weight_shapes={"a": (3,), "b": (2,)})
    assert torch.equal(again(X), made(X))


@pytest.mark.parametrize(
    ("given", "shape"),
    [(16, (16,)), (np.int64(16), (16,)), ([2, 8], (2, 8)), (torch.Size([16]), (16,)), (1, ()), ((), ())],
)
def test_shapes_as_pennylane_takes_them(given, shape):
    made = generate(net(), lambda t: torch.softmax(t.expand(16) if t.dim() == 0 else t.flatten(), 0), MAPPING,
                    weight_shapes={"t": given})  # fmt: skip
    assert generators(made)[0].source.angles["t"].shape == shape


def test_constants_are_a_source():
    made = generate(net(), lambda: torch.full((64,), 1 / 64), {"kind": "mlp", "chunk": 1})
    made(X).sum().backward()
    assert all("mapping" in name for name, _ in made.named_parameters())


def test_qubits_choose_the_chunk():
    with pytest.raises(UserError, match=r"take 35 qubits and about .* GiB.*: set fewer circuit.qubits"):
        generate(net(), qubits=35)
    (weights,) = generators(generate(net(), mapping=MAPPING, qubits=np.int64(3)))
    assert (weights.source.qpu.num_qubits, weights.mapping.config.chunk) == (3, 8)
    (weights,) = generators(generate(net(), mapping={**MAPPING, "chunk": 16}, qubits=3))
    assert (weights.source.qpu.num_qubits, weights.mapping.config.chunk) == (3, 16)


def test_a_source_that_fails_later_says_so():
    source = Softmax()
    made = generate(net(), source, MAPPING)
    source.logits.data[3] = torch.nan
    with pytest.raises(UserError, match="the source Softmax returned an invalid distribution: sum nan"):
        made(X)
    source.logits.data[3] = 0
    made(X).sum().backward()


def outside():
    logits = torch.zeros(16, requires_grad=True)
    return lambda: torch.softmax(logits, 0)


class Detached(Softmax):
    def forward(self):
        return super().forward().detach()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"circuit": lambda: torch.full((12,), 1 / 12)}, "returned 12 probabilities: return one for every basis state"),
        ({"circuit": lambda: torch.full((4, 4), 1 / 16)}, r"returned a torch.float32 of shape \(4, 4\)"),
        ({"circuit": lambda: [0.5, 0.5]}, "returned list"),
        ({"circuit": lambda: torch.full((16,), 0.1)}, "returned an invalid distribution: sum 1.6"),
        ({"circuit": lambda: torch.tensor([1.5, -0.5])}, "invalid distribution: sum 1, smallest -0.5"),
        ({"circuit": lambda: torch.full((16,), torch.nan)}, "returned an invalid distribution: sum nan"),
        ({"circuit": outside()}, "depends on parameters that it does not own"),
        ({"circuit": Detached()}, "without a graph"),
        ({"circuit": lambda theta: theta}, "cannot be called .*give weight_shapes"),
        ({"circuit": Softmax(), "mapping": {"chunk": 3}}, "16 probabilities with mapping.chunk = 3: 58 weights need 4"),
        ({"circuit": Softmax(), "qubits": 4}, "qubits = 4 is for our circuits"),
        ({"circuit": Config()}, "a whole configuration goes to config"),
        ({"circuit": 7}, "circuit = 7 is neither settings nor"),
        ({"circuit": {"layer": 2}}, "unknown key 'circuit.layer': did you mean 'circuit.layers'"),
        ({"circuit": {"ansatz": "ring"}}, "ring"),
        ({"mapping": 3}, "mapping = 3: give a dictionary"),
        ({"mapping": {"chunk": 0}}, "mapping.chunk = 0"),
        ({"qubits": 0}, "qubits = 0: use 1 to"),
        ({"qubits": 3, "mapping": {"chunk": 4}}, "qubits = 3 with mapping.chunk = 4: 58 weights need 8"),
        ({"qubits": True}, "qubits = True: give a whole number"),
        ({"qubits": 3.0}, "qubits = 3.0: give a whole number"),
        *(
            ({"circuit": lambda t: t, "weight_shapes": {"t": given}}, f"weight_shapes: t = {said}: give a shape for")
            for given, said in [
                ("8", "'8'"),
                ((-8,), r"\(-8,\)"),
                ((8.0,), r"\(8.0,\)"),
                (8.0, "8.0"),
                (True, "True"),
                (0, 0),
            ]
        ),
        ({"circuit": lambda t: t, "weight_shapes": [8]}, r"weight_shapes = \[8\]: give a shape for every argument"),
        ({"circuit": lambda values: values, "weight_shapes": {"values": 8}}, "'values' already exists: rename"),
        ({"config": "cartpole"}, "config = 'cartpole': give a distqtrl.Config, made with distqtrl.preset"),
        ({"config": {"train": {}}}, "config = {'train': {}}: give a distqtrl.Config"),
        ({"weight_shapes": {"theta": (3,)}}, "weight_shapes are for a source of your own"),
        ({"config": Config(generator={"source": "direct"})}, "direct generates nothing"),
        (
            {"config": Config(generator={"whiten": "every"})},
            "whiten every needs to be told of optimizer steps: use start",
        ),
    ],
)
def test_bad_sources_are_one_clear_line(settings, says):
    made = net()
    with pytest.raises(UserError, match=says) as caught:
        generate(made, **settings)
    assert "\n" not in str(caught.value)
    assert list(made.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]


def test_what_is_loaded_when():
    code = """
import sys, time
import distqtrl
assert "torch" not in sys.modules
import torch
start = time.perf_counter()
distqtrl.nn
print(f"distqtrl.nn took {time.perf_counter() - start:.2f} s beside torch")
heavy = ("mpi4py", "pennylane", "qiskit", "stable_baselines3", "torchrl", "torch._dynamo")
loaded = {name.partition(".")[0] for name in sys.modules} | set(sys.modules)
assert not loaded & set(heavy), loaded & set(heavy)
distqtrl.nn.generate(torch.nn.Linear(2, 2), mapping={"kind": "mlp"})
assert not set(sys.modules) & {"mpi4py", "pennylane"}
try:
    distqtrl.neural
except AttributeError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    assert "no attribute 'neural'" in done.stdout
