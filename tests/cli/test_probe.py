"""probe: what is refused before anything is loaded."""

import shutil

import pytest

pytestmark = pytest.mark.fast


def test_a_watched_run_is_probed_alone(command, old_run, tmp_path):
    other = tmp_path / "other.pth"
    shutil.copy(old_run / "checkpoint_0016.pth", other)
    done = command("probe", old_run, other, "--labelled", tmp_path, "--masks", tmp_path)
    assert done.code == 2
    assert "belongs to a watched run: probe it alone" in done.err
