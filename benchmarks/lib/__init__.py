"""What the scripts share: their options, where and how numbers were made, kept runs, and a peer."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # as the command sets it; before torch is loaded, which reads it then
