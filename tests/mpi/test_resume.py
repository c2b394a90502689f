"""A run that was stopped or killed and then resumed leaves, bit for bit, what an uninterrupted one leaves."""

import json
import signal
from pathlib import Path

import pytest
from runs import TIMES

from distqtrl.files import tensors as tensorfile
from distqtrl.policy import policy_file
from distqtrl.record.checkpoint import FORMAT

PROGRAM = Path(__file__).parent / "programs" / "several.py"
STEPS = 16
UPDATES = 8
COMMON = f"""
    --mapping.kind mlp --mapping.chunk 4 --policy.hidden 4 --algorithm.value_hidden 8
    --algorithm.rollout_steps {STEPS} --environment.local_num 2 --algorithm.anneal true
    --train.checkpoint_every 3 --evaluate.every 4 --evaluate.validation_episodes 2 --evaluate.target none
    --evaluate.keep best --evaluate.episodes 3"""
RUNS = {
    "gaussian": """--environment.id Pendulum-v1 --environment.max_episode_steps 30 --policy.normalize_observations true
        --algorithm.epochs 2 --algorithm.minibatches 2 --qpu.shots 50 --qpu.shift distributed
        --rollout.noise exponential""",
    "sac": """--environment.id Pendulum-v1 --environment.max_episode_steps 30 --policy.normalize_observations true
        --algorithm.name sac --algorithm.learning_starts 40 --algorithm.batch_size 8 --quantize.aware true
        --quantize.warmup 20 --algorithm.critic_norm batch_renorm --algorithm.renorm_warmup 30
        --allreduce.check_every 1""",
    "sac-discrete": """--environment.id minigrid:MiniGrid-Empty-5x5-v0 --environment.observation image
        --environment.frames 2 --policy.convolutions 2x3/2 --policy.normalize_observations true
        --algorithm.name sac --algorithm.learning_starts 40 --algorithm.batch_size 8""",
    "averaging": """--environment.id FrozenLake-v1 --algorithm.name reinforce --algorithm.entropy 0.01
        --allreduce.aggregation average --allreduce.average_every 2""",
    "whitened": """--mapping.kind gnn_expansion --circuit.layers 2 --generator.whiten every --generator.whiten_steps 3
        --allreduce.check_every 1""",
    "agents": """--environment.id mpe2/simple_speaker_listener_v4 --environment.max_episode_steps 9
        --agents.critic centralised --agents.sharing independent --agents.placement spread
        --policy.normalize_observations true""",
}


def new(folder, name, ranks):
    flags = f"{COMMON} {RUNS[name]} --train.steps {UPDATES * STEPS * 2 * ranks} --train.directory {folder / name}"
    return ["train", "cartpole", *flags.split()]


def resume(folder, name):
    (run,) = (folder / name).iterdir()
    return ["train", "--resume", str(run)]


def without_times(record):
    return {key: value for key, value in record.items() if key not in TIMES}


def content(tensors):
    return {name: (str(t.dtype), t.shape, t.tobytes()) for name, t in tensors.items()}


def left(folder, name):
    """What a run left behind, without its times: checkpoint, policy file, result, metrics."""
    (run,) = (folder / name).iterdir()
    (checkpoint,) = (run / "checkpoints").glob(f"update-{UPDATES:06d}.safetensors")
    _, tensors = tensorfile.read(checkpoint, FORMAT, "")
    policies = [tensorfile.read(path, policy_file.FORMAT, "") for path in policy_file.files(run)]
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {
        "checkpoint": content(tensors),
        "policy": [(about, content(policy)) for about, policy in policies],
        "result": without_times(json.loads((run / "result.json").read_text())),
        "metrics": [without_times(line) for line in metrics],
    }


@pytest.mark.parametrize("ranks", [1, 2])
def test_interrupted_runs_end_as_uninterrupted_ones(forked_ranks, tmp_path, ranks):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    code, _, err = forked_ranks(ranks, [PROGRAM, json.dumps([{"argv": new(whole, name, ranks)} for name in RUNS])])
    assert code == 0, err

    events, killed_at = {name: tmp_path / f"pause-{name}" for name in RUNS}, tmp_path / "killed"
    stopped = [{"argv": new(parts, name, ranks), "pause": 4, "event": str(event)} for name, event in events.items()]
    usr1 = [(event, signal.SIGUSR1) for event in events.values()]
    code, out, err = forked_ranks(ranks, [PROGRAM, json.dumps(stopped)], when=usr1)
    assert code == 75, err
    assert out.count("stopped by SIGUSR1 after 5 updates") == len(RUNS)
    for name in RUNS:
        (run,) = (parts / name).iterdir()
        assert [f.name for f in sorted((run / "checkpoints").iterdir())] == [
            "update-000003.safetensors",
            "update-000005.safetensors",
        ]
        assert not (run / "result.json").exists()

    killed = [
        *({"argv": resume(parts, name)} for name in RUNS if name != "averaging"),
        {"argv": resume(parts, "averaging"), "pause": 7, "event": str(killed_at)},
    ]
    code, _, err = forked_ranks(ranks, [PROGRAM, json.dumps(killed)], when=[(killed_at, signal.SIGKILL)])
    assert code == -signal.SIGKILL
    code, _, err = forked_ranks(ranks, [PROGRAM, json.dumps([{"argv": resume(parts, "averaging")}])])
    assert code == 0, err

    for name in RUNS:
        expected, found = left(whole, name), left(parts, name)
        assert found["checkpoint"].keys() == expected["checkpoint"].keys()
        different = [t for t, saved in expected["checkpoint"].items() if found["checkpoint"][t] != saved]
        assert different == [], name
        assert found["policy"] == expected["policy"], name
        assert found["result"] == expected["result"], name
        assert len(found["metrics"]) == UPDATES
        assert found["metrics"] == expected["metrics"], name
