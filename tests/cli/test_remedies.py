"""What a message tells people to do works: every row is refused, names a remedy, and runs once that was followed."""

import pytest

from distqtrl.allreduce.communicator import Serial
from distqtrl.cli import arguments
from distqtrl.cli.parser import parse
from distqtrl.errors import UserError
from distqtrl.training.build import prepare

AER = "--qpu.backend aer"
PENNYLANE = "--qpu.backend pennylane"
NVFP4 = "--rollout.precision nvfp4"
GATES = "--circuit.ansatz gates"
ROWS = [  # preset, flags that are refused, what the message says, flags as it says, or (without them) those in place
    (
        "cartpole",
        f"{AER} --qpu.device stabilizer",
        "use statevector or density_matrix",
        f"{AER} --qpu.device statevector",
    ),
    ("cartpole", f"{AER} --qpu.device mps", "use statevector or density_matrix", f"{AER} --qpu.device density_matrix"),
    ("cartpole", f"{AER} --qpu.gradient adjoint", "use parameter-shift, spsa", f"{AER} --qpu.gradient spsa"),
    ("cartpole", f"{AER} --qpu.gradient adjoint", "use parameter-shift", f"{AER} --qpu.gradient parameter-shift"),
    ("cartpole", f"{AER} --qpu.precision float32", "remove it", AER),
    (
        "cartpole",
        f'{AER} --qpu.options {{"method":"x"}}',
        "remove it, set qpu.device",
        f"{AER} --qpu.device statevector",
    ),
    ("acrobot", f"{AER} --qpu.noise FakeManilaV2", "use FakeJakartaV2", f"{AER} --qpu.noise FakeJakartaV2"),
    ("acrobot", f"{AER} --qpu.noise FakeCairoV2", "use FakeJakartaV2", f"{AER} --qpu.noise FakeJakartaV2"),
    (
        "acrobot",
        f"{AER} --qpu.device statevector --qpu.noise FakeJakartaV2",
        "use density_matrix, or set qpu.shots",
        f"{AER} --qpu.device density_matrix --qpu.noise FakeJakartaV2",
    ),
    (
        "acrobot",
        f"{AER} --qpu.device statevector --qpu.noise FakeJakartaV2",
        "use density_matrix, or set qpu.shots",
        f"{AER} --qpu.device statevector --qpu.noise FakeJakartaV2 --qpu.shots 8",
    ),
    (
        "acrobot",
        f"{PENNYLANE} --qpu.noise FakeJakartaV2",
        "set qpu.backend to aer",
        f"{AER} --qpu.noise FakeJakartaV2",
    ),
    (
        "cartpole",
        f"{PENNYLANE} --qpu.device default.qubt",
        "'default.qubit'",
        f"{PENNYLANE} --qpu.device default.qubit",
    ),
    (
        "cartpole",
        f"{PENNYLANE} --qpu.device qiskit.aer",
        "reference.qubit",
        f"{PENNYLANE} --qpu.device reference.qubit",
    ),
    (
        "cartpole",
        f"{PENNYLANE} --qpu.device qiskit.aer",
        "lightning.qubit",
        f"{PENNYLANE} --qpu.device lightning.qubit",
    ),
    ("cartpole", f"{PENNYLANE} --qpu.device qiskit.aer", "default.mixed", f"{PENNYLANE} --qpu.device default.mixed"),
    (
        "acrobot",
        f"{PENNYLANE} --qpu.device default.mixed --policy.hidden 4096 --mapping.chunk 1",
        "raise mapping.chunk",
        f"{PENNYLANE} --qpu.device default.mixed --policy.hidden 4096 --mapping.chunk 1024",
    ),
    (
        "cartpole",
        f"{PENNYLANE} --qpu.shots 1000000000000",
        "less than or equal to 10000000",
        f"{PENNYLANE} --qpu.shots 1000",
    ),
    ("cartpole", "--qpu.gradient backprop", "use adjoint, parameter-shift, spsa", "--qpu.gradient adjoint"),
    ("cartpole", "--qpu.backend torch --qpu.device gpu", "use cpu", "--qpu.backend torch --qpu.device cpu"),
    ("cartpole", "--qpu.backend torch --qpu.device cuda:99", "use cpu", "--qpu.backend torch --qpu.device cpu"),
    ("cartpole", GATES, "needs circuit.gates", f'{GATES} --circuit.gates [["ry",0],["x",1,0]]'),
    ("cartpole", '--circuit.gates [["ry",0]]', "with circuit.ansatz = gates", f'{GATES} --circuit.gates [["ry",0]]'),
    ("cartpole", f"{NVFP4}", "rollout.pad or adapter.pad true", f"{NVFP4} --rollout.pad true"),
    ("cartpole", f"{NVFP4}", "such as int4", "--rollout.precision int4"),
    (
        "cartpole",
        "--rollout.precision fp4",
        "did you mean 'nvfp4'?",
        f"{NVFP4} --rollout.pad true",
    ),
    ("cartpole-sac", "--algorithm.target_entropy 2", "choose one from 0 to below 1", "--algorithm.target_entropy 0.5"),
    ("pendulum-sac", "--algorithm.train_every 3", "(500 is not a multiple of 3)", "--algorithm.train_every 5"),
    ("cartpole", "--algorithm.minibatches 1000", "lower it", "--algorithm.minibatches 4"),
    (
        "cartpole",
        "--algorithm.name reinforce --algorithm.baseline false",
        "needs algorithm.rollout episodes",
        "--algorithm.name reinforce --algorithm.baseline false --algorithm.rollout episodes",
    ),
    (
        "cartpole",
        "--quantize.aware true --rollout.precision int8",
        "set rollout.precision and rollout.noise to none",
        "--quantize.aware true --rollout.precision none --rollout.noise none",
    ),
    (
        "cartpole",
        "--quantize.core_bits 2 3 4 --quantize.aware true",
        "or 2",
        "--quantize.core_bits 2 3 --quantize.aware true",
    ),
    (
        "coin-game",
        "--agents.sharing shared --agents.placement spread",
        "needs agents.sharing independent",
        "--agents.sharing independent --agents.placement spread",
    ),
    (
        "cartpole",
        "--rollout.noise linear --rollout.noise_start 1e-5",
        "rollout.noise_end at most",
        "--rollout.noise linear --rollout.noise_start 1e-5 --rollout.noise_end 1e-6",
    ),
    (  # nobody has set generator.numbers
        "cartpole",
        "--generator.source random_subspace --circuit.layers 200",
        "1,600 free numbers are more than the policy's 898 weights: set generator.numbers to 898 or fewer",
        "--generator.source random_subspace --circuit.layers 200 --generator.numbers 898",
    ),
    (
        "cartpole",
        "--generator.source low_rank",
        "needs 264 numbers or more, not 128: set generator.numbers to 264",
        "--generator.source low_rank --generator.numbers 264",
    ),
    (
        "cartpole",
        "--mapping.feature logarithm --qpu.shots 100",
        "use linear or tanh, or set qpu.shots none",
        "--mapping.feature linear --qpu.shots 100",
    ),
    (
        "cartpole",
        "--generator.whiten every --allreduce.aggregation average",
        "or generator.whiten start",
        "--generator.whiten start --allreduce.aggregation average",
    ),
]


def prepared(preset, flags):
    args, given = parse(["train", preset, *flags.split()])
    prepare(arguments.resolve(args, given), Serial()).environments.close()


@pytest.mark.parametrize(("preset", "flags", "said", "followed"), ROWS)
def test_a_remedy_works(preset, flags, said, followed):
    with pytest.raises(UserError) as error:
        prepared(preset, flags)
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    prepared(preset, followed)
