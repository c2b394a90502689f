"""A file is replaced whole or not at all, and what is not a file stays what it is."""

import os
import stat

import pytest

from distqtrl.errors import of_system
from distqtrl.files.replace import replace


def test_a_file_gets_its_content(tmp_path):
    for data in (b"first", b"second"):
        replace(tmp_path / "file", data)
        assert (tmp_path / "file").read_bytes() == data
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (os.mkdir, "Is a directory: {} (give the name of a file in it)"),
        (os.mkfifo, "Not a regular file: {} (give another name)"),
        (lambda path: path.symlink_to("/dev/null"), "Not a regular file: {} (give another name)"),
    ],
    ids=["a folder", "a pipe", "a device"],
)
def test_what_is_no_file_is_not_replaced(tmp_path, made, said):
    """The superuser may rename a file over a device; the machine would be without it."""
    path = tmp_path / "there"
    made(path)
    before = path.lstat()
    with pytest.raises((IsADirectoryError, FileExistsError)) as caught:
        replace(path, b"data")
    assert of_system(caught.value) == said.format(path)
    assert (path.lstat().st_ino, stat.S_IFMT(path.lstat().st_mode)) == (before.st_ino, stat.S_IFMT(before.st_mode))
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_missing_is_named_with_a_remedy(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        replace(tmp_path / "none" / "file", b"data")
    assert of_system(caught.value) == f"No such file or directory: {tmp_path}/none/file (check that its path exists)"
