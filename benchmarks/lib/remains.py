"""What a whole run leaves behind, without what differs from run to run."""

import json
from pathlib import Path
from typing import Any

from distqtrl.doctor import trials
from distqtrl.doctor.trials import without_times
from distqtrl.files import tensors as tensorfile
from distqtrl.record.checkpoint import FORMAT


def left(run: Path) -> dict[str, Any]:
    """What a whole run leaves, without times; checkpoints by name."""
    return {
        **trials.left(run),
        "result": without_times(json.loads((run / "result.json").read_text())),
        "checkpoints": {path.name: content(path) for path in run.glob("checkpoints/update-*.safetensors")},
    }


def content(checkpoint: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    about, tensors = tensorfile.read(checkpoint, FORMAT, "it is kept")
    return without_times(about), {name: (str(t.dtype), t.shape, t.tobytes()) for name, t in tensors.items()}
