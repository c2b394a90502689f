"""Policies that are exported, and exported folders, for all tests of exports."""

import shutil

import numpy as np
import pytest
import torch

from distqtrl.cli.main import main
from distqtrl.config.stages import Quantize
from distqtrl.export import tools
from distqtrl.policy import lower
from distqtrl.policy.distribution import Categorical, Gaussian, SquashedGaussian
from distqtrl.policy.network import Architecture
from distqtrl.policy.normalizer import Normalizer
from distqtrl.policy.policy_file import Policy

FAST = ["--vectors", "2000", "--episodes", "3"]


@pytest.fixture(scope="session")
def policies(tmp_path_factory):
    """Policy files: a categorical head, and Gaussian and squashed ones with normalised observations; trained ones were
    trained with quantization."""
    folder, torch_rng = tmp_path_factory.mktemp("policies"), torch.Generator().manual_seed(0)
    made = {}
    cases = {
        "categorical": (Architecture(4, (16,), 2, "relu"), Categorical(2), "CartPole-v1"),
        "small": (Architecture(3, (4,), 1, "relu"), Gaussian((-2.0,), (2.0,)), "Pendulum-v1"),
        "gaussian": (Architecture(3, (16,), 1, "tanh"), Gaussian((-2.0,), (2.0,)), "Pendulum-v1"),
        "squashed": (Architecture(3, (4,), 1, "relu"), SquashedGaussian((-2.0,), (2.0,)), "Pendulum-v1"),
        "trained": (Architecture(3, (4,), 1, "relu"), SquashedGaussian((-2.0,), (2.0,)), "Pendulum-v1"),
        "trained tanh": (Architecture(4, (6, 5), 2, "tanh"), Categorical(2), "CartPole-v1"),
    }
    for name, (architecture, head, environment) in cases.items():
        w_M = torch.randn(architecture.num_weights, generator=torch_rng) / 2
        normalizer = Normalizer.fresh(architecture.num_inputs)
        if environment == "Pendulum-v1":
            normalizer.merge(100.0, np.array([10.0] * 3 + [60.0] * 3))
        made[name] = folder / f"{name}.safetensors"
        settings = Quantize(core_bits=(2,) * (len(architecture.hidden) + 1), input_bits=4, output_bits=5)
        trained = lower.quantizer(settings, architecture, head).trained() if name.startswith("trained") else None
        Policy(architecture, head, w_M, normalizer, {"id": environment}, {}, trained).save(made[name])
    return made


@pytest.fixture(scope="session")
def exported(policies, tmp_path_factory):
    """Folders of both policies, C and ONNX."""
    out = {}
    for name in ("categorical", "gaussian"):
        path = policies[name]
        out[name] = tmp_path_factory.mktemp("exported") / name
        assert main(["export", str(path), "-o", str(out[name]), "--target", "c,onnx", *FAST]) == 0
    return out


@pytest.fixture(scope="session")
def cores(policies, tmp_path_factory):
    """A folder with both cores."""
    for tool in (tools.verilator, tools.yosys, tools.icarus):
        try:
            tool()
        except tools.Missing as error:
            pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("cores") / "out"
    words = ["--target", "c,verilog", "--bits", "core=3,input=4,output=4", *FAST]
    assert main(["export", str(policies["small"]), "-o", str(folder), *words]) == 0
    return folder


@pytest.fixture
def folder(exported, tmp_path):
    """A copy of a folder with C and ONNX."""
    return shutil.copytree(exported["gaussian"], tmp_path / "copy")
