"""A file is there whole or not at all."""

import os
import resource
import signal
import stat

import pytest

from m3esr.files import write_atomically


def test_a_file_is_written_with_its_folder_and_ordinary_rights(tmp_path):
    path = tmp_path / "new" / "file.png"
    write_atomically(path, b"data")
    umask = os.umask(0)
    os.umask(umask)
    assert path.read_bytes() == b"data"
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file.png"
    path.write_bytes(b"old")
    with pytest.raises(TypeError):
        write_atomically(path, "not bytes")
    assert [entry.name for entry in tmp_path.iterdir()] == ["file.png"]
    assert path.read_bytes() == b"old"


def test_a_write_that_finds_no_room_names_its_file_and_leaves_nothing(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError) as caught:
            write_atomically(tmp_path / "file.png", b"x" * 10_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert caught.value.filename == str(tmp_path / "file.png")
    assert list(tmp_path.iterdir()) == []
