"""What a whole run leaves behind, without what differs from run to run."""

import json
from pathlib import Path
from typing import Any

from distqtrl.files import tensors as tensorfile
from distqtrl.record.checkpoint import FORMAT

TIMES = ("wall_s", "steps_per_s", "profile_s", "setup_s", "train_s", "cpu_s", "wait_s", "received_bytes")


def left(run: Path) -> dict[str, Any]:
    """What a whole run leaves, without times; checkpoints by name."""
    return {
        "policy": (run / "policy.safetensors").read_bytes(),
        "metrics": [without_times(json.loads(line)) for line in (run / "metrics.jsonl").read_text().splitlines()],
        "result": without_times(json.loads((run / "result.json").read_text())),
        "checkpoints": {path.name: content(path) for path in run.glob("checkpoints/update-*.safetensors")},
    }


def content(checkpoint: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    about, tensors = tensorfile.read(checkpoint, FORMAT, "it is kept")
    return without_times(about), {name: (str(t.dtype), t.shape, t.tobytes()) for name, t in tensors.items()}


def without_times(record: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key not in TIMES}
