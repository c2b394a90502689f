"""launch/speedup.sbatch on a real SLURM: a task per task of the study and policy, what has ended is not run again."""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "launch" / "speedup.sbatch"
PPO = "2-3"  # the tasks of the array that are CartPole by PPO


def test_tasks_share_out_the_policies_of_a_study(slurm, tmp_path):
    (tmp_path / ".venv").symlink_to(sys.prefix)
    (tmp_path / "benchmarks").symlink_to(ROOT / "benchmarks")
    for _ in range(2):
        words = (f"--array={PPO}", "--cpus-per-task=1", "--mem-per-cpu=0")
        job_id = slurm.submit(SCRIPT, *words, args=["--quick"], cwd=tmp_path)
        slurm.wait(job_id, timeout=300)
        output = [path.read_text() for path in sorted(tmp_path.glob(f"speedup-{job_id}_*.out"))]
        assert {task["JobState"] for task in slurm.tasks(job_id)} == {"COMPLETED"}, output
        for policy in ("generated", "classical"):
            folder = tmp_path / "runs" / f"speedup-{policy}" / "speedup"
            assert list(json.loads((folder / "cartpole-ppo.json").read_text())["policies"]) == [policy]
            lines = [json.loads(line) for line in (folder / "runs-cartpole-ppo.jsonl").read_text().splitlines()]
            assert len(lines) == 2 * 2 * 1 + 2 * 2  # ranks, rates and tuning seeds, then ranks and seeds
    assert not any("ranks, 1 of" in text for text in output)
