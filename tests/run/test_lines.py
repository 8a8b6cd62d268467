"""Files that grow by whole lines, on disks that are full, in folders that others write to."""

import os
import sys

import pytest

from pipeline.run.lines import LineFile


@pytest.fixture
def file(tmp_path):
    return LineFile(tmp_path / "a")


def test_lines_are_appended(file):
    file.add("a")
    file.add("é\udcff")
    again = LineFile(file.path)
    again.add("b")
    assert file.path.read_bytes() == b"a\n\xc3\xa9\\udcff\nb\n" and again.size() == 13
    again.cut(2)
    again.add("c")
    assert file.path.read_text() == "a\nc\n"


@pytest.mark.skipif(sys.platform != "linux", reason="needs limits of files")
def test_a_line_is_written_whole_or_not_at_all(file):
    import resource

    file.add("a")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
    try:
        for line in ("b" * 20, "c"):  # 8 bytes of it would fit
            with pytest.raises(OSError, match="File too large") as caught:
                file.add(line)
            assert caught.value.filename == str(file.path)
            assert file.path.read_bytes() == b"a\n"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    file.add("d")
    assert file.path.read_text() == f"a\n{'b' * 20}\nc\nd\n"


@pytest.mark.parametrize("what", ["removed", "replaced", "its folder"])
def test_a_file_that_is_gone_is_noticed(tmp_path, what):
    path = tmp_path / "folder" / "a"
    path.parent.mkdir()
    file = LineFile(path)
    file.add("a")
    if what == "its folder":
        path.parent.rename(tmp_path / "moved")
    else:
        path.unlink()
    if what == "replaced":
        path.write_text("theirs\n")
    with pytest.raises(OSError, match="it was removed or replaced"):
        file.add("b")
    assert what != "replaced" or path.read_text() == "theirs\n"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs links and pipes")
def test_no_link_is_followed_and_no_pipe_waited_for(tmp_path):
    theirs = tmp_path / "theirs"
    theirs.write_text("theirs\n")
    (tmp_path / "link").symlink_to(theirs)
    (tmp_path / "dangling").symlink_to(tmp_path / "new")
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "dangling", "pipe"):
        with pytest.raises(OSError, match="it is a link|it is no plain file|No such device"):
            LineFile(tmp_path / name)
    assert theirs.read_text() == "theirs\n" and not (tmp_path / "new").exists()
