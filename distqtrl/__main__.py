"""``python -m distqtrl`` and the ``distqtrl`` script: cap the threads before anything loads, then run."""

import os
import sys

from distqtrl.cli import output, terminal
from distqtrl.training import stopping


def main() -> int:
    """Run the command line; returns the exit code."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")  # ranks share the cores; train.threads raises torch's own
    terminal.prepare()
    training = sys.argv[1:2] in (["train"], ["search-bits"])
    if training:
        stopping.note_requeue()
    from distqtrl.cli.main import main as run

    code = run(sys.argv[1:])
    if lost := terminal.lost():
        output.say(f"distqtrl: {lost}; {'files are as they should be' if training else 'the output is incomplete'}")
        code = code if training else code or 1
    if training:
        stopping.ignore_requeue()
    return code


if __name__ == "__main__":
    sys.exit(main())
