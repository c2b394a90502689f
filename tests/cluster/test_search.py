"""launch/search.sbatch on a real SLURM: tasks of an array share a search, and one that is stopped goes on."""

import json
import sys
from pathlib import Path

from needs import soon

SCRIPT = Path(__file__).parents[2] / "launch" / "search.sbatch"
TINY = """--environment.id CartPole-v1 --policy.hidden 4 --algorithm.value_hidden 8 --train.steps 20480
    --algorithm.rollout_steps 16 --algorithm.minibatches 1 --evaluate.episodes 2 --train.checkpoint_every 5
    --widths 4 --core-bits 3 --input-bits 8 --seeds 0-1 --target c --vectors 100 --episodes 2"""


def test_tasks_share_a_search_and_a_stopped_one_goes_on(slurm, tmp_path):
    (tmp_path / ".venv").symlink_to(sys.prefix)
    job_id = slurm.submit(SCRIPT, "--array=0-1", args=TINY.split(), cwd=tmp_path)
    folder = tmp_path / "runs" / "search-hopper"

    def output():
        return "\n".join(path.read_text() for path in sorted(tmp_path.glob("*.out")))

    assert soon(lambda: list(folder.glob("runs/*/checkpoints/*")), 120), output()
    slurm.cancel(f"{job_id}_0", "--signal=USR1")
    slurm.wait(job_id, timeout=300)
    tasks = slurm.tasks(job_id)
    assert {task["JobState"] for task in tasks} == {"COMPLETED"}, output()
    assert sorted(task["Restarts"] for task in tasks) == ["0", "1"], output()
    assert output().count("stopped by SIGUSR1") == 1
    about = json.loads((folder / "search.json").read_text())
    assert about["status"] == "complete"
    assert all(len(row["returns"]) == 2 for row in about["candidates"])
    assert (folder / "chosen" / "policy.c").exists()
    assert output().count(": resumes") == 1
