"""Files are whole or absent, and a write that fails leaves what was there."""

import pytest

from fe_posttrain.whole_files import whole_file, write_whole


def test_a_file_takes_its_place_when_it_is_whole(tmp_path):
    path = tmp_path / "a.txt"
    write_whole(path, "first\n")
    with whole_file(path) as file:
        file.write(b"second, half of it")
        assert path.read_text() == "first\n"
    assert path.read_text() == "second, half of it"
    assert path.stat().st_mode & 0o777 == 0o644
    assert [found.name for found in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_write_that_fails_leaves_what_was_there_and_nothing_else(tmp_path, error):
    path = tmp_path / "a.txt"
    write_whole(path, "mine\n")
    with pytest.raises(error), whole_file(path) as file:
        file.write(b"half")
        raise error
    assert path.read_text() == "mine\n"
    assert [found.name for found in tmp_path.iterdir()] == ["a.txt"]
