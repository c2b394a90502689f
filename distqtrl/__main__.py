"""``python -m distqtrl`` and the ``distqtrl`` script: cap the threads before anything loads, then run."""

import os
import sys

from distqtrl import stopping


def main() -> int:
    """Run the command line; returns the exit code."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")  # ranks share the cores; train.threads raises torch's own
    training = sys.argv[1:2] in (["train"], ["search-bits"])
    if training:
        stopping.note_requeue()
    from distqtrl.cli import main as run

    code = run(sys.argv[1:])
    if training:
        stopping.ignore(code)
    return code


if __name__ == "__main__":
    sys.exit(main())
