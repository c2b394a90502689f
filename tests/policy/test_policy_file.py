"""The policy file: bitwise there and back, and refused in one line when it is anything else than what was written."""

import errno
import os
from dataclasses import replace

import numpy as np
import pytest
import safetensors.numpy
import torch

from distqtrl.allreduce.communicator import Serial
from distqtrl.config.run import Config
from distqtrl.config.stages import Quantize
from distqtrl.errors import UserError
from distqtrl.files import tensors as tensorfile
from distqtrl.policy import lower, network, policy_file
from distqtrl.policy.distribution import Categorical, Factored, Gaussian, SquashedGaussian
from distqtrl.policy.network import Architecture
from distqtrl.policy.normalizer import Normalizer
from distqtrl.policy.policy_file import Policy
from distqtrl.quantize.aware import Trained
from distqtrl.record import checkpoint

HEADS = [
    Categorical(2, start=1),
    Gaussian((-2.0, 0.0), (2.0, 0.1)),
    SquashedGaussian((-2.0, 0.0), (2.0, 0.1)),
    Factored((3, 2), (0, -4)),
]


def policy(head=HEADS[0], seed=0):
    architecture = Architecture(3, (4,), head.num_outputs, "tanh")
    w_M = torch.randn(architecture.num_weights, generator=torch.Generator().manual_seed(seed))
    normalizer = Normalizer(7.0, np.array([0.1, -2.0, 3.0]), np.array([1.0, 2 / 3, 7.0]))
    return Policy(architecture, head, w_M, normalizer, {"id": "Toy-v0", "kwargs": {"é": [1]}}, {"source": "circuit"})


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "policy.safetensors"
    policy().save(path)
    return path


def refused(path):
    """The one line with which the file is refused."""
    with pytest.raises(UserError) as error:
        policy_file.load(path)
    message = str(error.value)
    assert str(path) in message
    assert "\n" not in message
    return message


@pytest.mark.parametrize("head", HEADS)
def test_round_trip_is_bitwise(head, tmp_path):
    before = policy(head)
    before.save(tmp_path / "p")
    after = policy_file.load(tmp_path / "p")
    assert after.w_M.numpy().tobytes() == before.w_M.numpy().tobytes()
    assert (after.head, after.architecture) == (before.head, before.architecture)
    assert (after.environment, after.origin) == (before.environment, before.origin)
    assert after.normalizer.count == before.normalizer.count
    assert after.normalizer.mean_O.tobytes() == before.normalizer.mean_O.tobytes()
    assert after.normalizer.m2_O.tobytes() == before.normalizer.m2_O.tobytes()
    obs_BO = np.random.default_rng(0).normal(size=(200, 3)).astype(np.float32)
    actions = before.act(obs_BO)
    assert actions.tobytes() == after.act(obs_BO).tobytes()
    assert len(np.unique(actions)) > 1


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize(
    "settings", [Quantize(), Quantize(core_bits=(2, 3), input_bits=1, per="channel", narrow=False)]
)
def test_a_policy_trained_on_integers(head, settings, tmp_path):
    """It is kept bitwise, acts as the program that is exported, and as the training graph says."""
    plain, torch_rng = policy(head), torch.Generator().manual_seed(1)
    quantizer = lower.quantizer(settings, plain.architecture, head)
    quantizer.scales_S.data.mul_(0.5 + torch.rand(quantizer.scales_S.shape, generator=torch_rng))
    before = Policy(plain.architecture, head, plain.w_M, plain.normalizer, {"id": "Toy-v0"}, {}, quantizer.trained())
    before.save(tmp_path / "p")
    after = policy_file.load(tmp_path / "p")
    assert after.trained.settings == settings
    assert after.trained.scales_S.tobytes() == before.trained.scales_S.tobytes()
    obs_BO = np.random.default_rng(0).normal(size=(200, 3)) * [0.5, 1, 2] + [0.1, -2, 3]
    actions = after.act(obs_BO)
    assert actions.tobytes() == before.act(obs_BO).tobytes()
    assert actions.tobytes() == lower.program(after.quantized(), head).act(obs_BO).tobytes()
    layers = network.unpack(plain.architecture, plain.w_M)
    out_BA = quantizer.outputs(layers, torch.from_numpy(obs_BO), *plain.normalizer.affine).detach().numpy()
    np.testing.assert_allclose(actions, head.to_environment(head.greedy(out_BA)), atol=3e-4)
    assert len(np.unique(actions)) > 1


@pytest.mark.parametrize("plain", [Categorical(3, 5), Factored((2, 3, 1), (1, 0, 7))])
@pytest.mark.parametrize("integers", [False, True])
def test_a_masked_policy_does_what_is_left(plain, integers, tmp_path):
    """Of all actions the most probable one that is allowed; kept in the file; in floating point and on integers."""
    head, whole = replace(plain, masked=True), policy(plain)
    trained = lower.quantizer(Quantize(), whole.architecture, head).trained() if integers else None
    made = Policy(whole.architecture, head, whole.w_M, whole.normalizer, {}, {}, trained)
    made.save(tmp_path / "p")
    after, rng, num = policy_file.load(tmp_path / "p"), np.random.default_rng(0), head.num_outputs
    assert after.head == head
    obs_BO = (rng.normal(size=(100, 3)) * [0.5, 1, 2] + [0.1, -2, 3]).astype(np.float32)
    free = Policy(whole.architecture, plain, whole.w_M, whole.normalizer, {}, {}, trained)
    np.testing.assert_array_equal(after.act(np.hstack([obs_BO, np.ones((100, num))])), free.act(obs_BO))
    cuts = np.cumsum(plain.sizes)[:-1] if isinstance(plain, Factored) else []
    for part in np.split(np.arange(num), cuts):  # but for one choice everything is masked
        for kept in part:
            mask_A = np.ones(num)
            mask_A[part] = 0
            mask_A[kept] = 1
            actions = after.act(np.hstack([obs_BO, np.tile(mask_A, (100, 1))])) - head.to_environment(
                0 * free.act(obs_BO)
            )
            factor = [p.tolist() for p in np.split(np.arange(num), cuts)].index(part.tolist())
            assert (actions.reshape(100, -1)[:, factor] == kept - part[0]).all()


def test_unmasked_heads_are_written_as_they_always_were(path):
    about, _ = tensorfile.read(path, policy_file.FORMAT, "")
    assert about["head"] == {"kind": "categorical", "num_actions": 2, "start": 1}


@pytest.mark.parametrize(
    "head",
    [
        {"kind": "factored", "sizes": [2, 0], "starts": [0, 0]},
        {"kind": "factored", "sizes": [2, 3], "starts": [0]},
        {"kind": "factored", "sizes": [], "starts": []},
        {"kind": "factored", "sizes": [2, 3]},
        {"kind": "fractured", "sizes": [2, 3], "starts": [0, 0]},
    ],
)
def test_heads_that_are_none_are_refused(head, tmp_path):
    policy(HEADS[-1]).save(tmp_path / "p")
    about, tensors = tensorfile.read(tmp_path / "p", policy_file.FORMAT, "")
    tensorfile.write(tmp_path / "p", {**about, "head": head}, tensors)
    assert "head" in refused(tmp_path / "p")


def test_scales_of_another_network_are_refused():
    p = policy()
    with pytest.raises(ValueError, match="scales"):
        Policy(p.architecture, p.head, p.w_M, p.normalizer, {}, {}, Trained(Quantize(), np.ones(7)))


def test_weights_of_another_precision_become_float32():
    p, w_M = policy(), torch.linspace(-1, 1, 26, dtype=torch.float64, requires_grad=True)
    single = Policy(p.architecture, p.head, w_M, p.normalizer, p.environment).w_M
    assert (single.dtype, single.requires_grad) == (torch.float32, False)
    assert single.tolist() == w_M.float().tolist()


def test_a_truncated_file_is_refused(path):
    data = path.read_bytes()
    for length in [*range(0, len(data), 37), 7, 8, 9, len(data) - 1]:
        path.write_bytes(data[:length])
        refused(path)


def test_a_file_with_one_changed_bit_is_refused(path):
    data = path.read_bytes()
    for position in range(len(data)):
        changed = bytearray(data)
        changed[position] ^= 1 << position % 8
        path.write_bytes(changed)
        refused(path)


def test_other_files_are_refused(tmp_path):
    (tmp_path / "text").write_text("[policy]\nhidden = [64]\n")
    safetensors.numpy.save_file({"w_M": np.zeros(3, dtype=np.float32)}, tmp_path / "foreign")
    tensorfile.write(tmp_path / "future", {"format": "distqtrl policy 2"}, {"w_M": np.zeros(3)})
    for name in ("text", "missing", "."):
        assert "cannot read" in refused(tmp_path / name)
    assert "was not written by distqtrl" in refused(tmp_path / "foreign")
    assert "is a 'distqtrl policy 2' file, not 'distqtrl policy 1'" in refused(tmp_path / "future")


def test_a_checkpoint_is_refused(tmp_path):
    state = checkpoint.State({"update": 1}, {"w_M": np.zeros(3)}, {"actions": np.zeros(0)}, np.zeros(3))
    checkpoint.save(tmp_path, Config(), Serial(), state)
    assert "distqtrl checkpoint 5" in refused(tmp_path / "checkpoints" / "update-000001.safetensors")


def test_a_full_disk_leaves_the_old_file(path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    data = path.read_bytes()
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as error:
        policy(seed=1).save(path)
    assert (error.value.errno, error.value.filename) == (errno.ENOSPC, str(path))
    assert path.read_bytes() == data
    assert list(path.parent.iterdir()) == [path]


def test_every_agent_has_a_file_of_its_own(tmp_path):
    odd = ["red/0", "red_0", "RED_0", "..", ".", "a" * 300, "a" * 301, "é", "é\n", "", "x-0123456789ab", "-", "\0"]
    names = policy_file.names(odd)
    assert len({name.lower() for name in names}) == len(odd)
    for name in names:
        (tmp_path / name).touch()
    assert sorted(path.name for path in policy_file.files(tmp_path)) == sorted(names)
    (tmp_path / "policy.safetensors").touch()  # a run of one policy, where somebody keeps others
    assert policy_file.files(tmp_path) == [tmp_path / "policy.safetensors"]
    taken = names[0].removeprefix("policy-").removesuffix(".safetensors")  # an agent that is called like a file
    assert len(set(policy_file.names(["red/0", taken]))) == 2
    assert policy_file.names(["a-b_0", "c.d"]) == ["policy-a-b_0.safetensors", "policy-c.d.safetensors"]


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("integers", [False, True])
def test_actions_have_the_leading_axes_of_the_observations(head, integers):
    plain = policy(head)
    if integers:
        plain = replace(plain, trained=lower.quantizer(Quantize(), plain.architecture, head).trained())
    obs_TBO = np.random.default_rng(0).normal(size=(2, 3, plain.architecture.num_inputs)).astype(np.float32)
    flat = plain.act(obs_TBO.reshape(6, -1))
    whole = plain.act(obs_TBO)
    assert whole.shape == (2, 3, *flat.shape[1:])
    np.testing.assert_array_equal(whole.reshape(flat.shape), flat)
    np.testing.assert_array_equal(plain.act(obs_TBO[0, 0]), flat[0])
