"""What killed ranks left in shared memory is removed, what is in use is not."""

import mmap
import os
import time

from distqtrl.allreduce import leftovers


def test_only_old_files_that_nobody_maps_go(tmp_path):
    old = time.time() - 60
    for name in ("mpich_shm_left_0", "mpich_shm_used_0", "mpich_shm_new_0", "other"):
        (tmp_path / name).write_bytes(bytes(4096))
        if name != "mpich_shm_new_0":
            os.utime(tmp_path / name, (old, old))
    with (tmp_path / "mpich_shm_used_0").open("r+b") as file, mmap.mmap(file.fileno(), 4096):
        leftovers.remove(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mpich_shm_new_0", "mpich_shm_used_0", "other"]
