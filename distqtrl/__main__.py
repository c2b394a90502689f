"""``python -m distqtrl`` and the ``distqtrl`` script: cap the threads before anything loads, then run."""

import os
import sys


def main() -> int:
    """Run the command line; returns the exit code."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")  # ranks share the cores; train.threads raises torch's own
    from distqtrl.cli import main as run

    return run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
