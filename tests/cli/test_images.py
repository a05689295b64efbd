"""scenes."""

import pytest

pytestmark = pytest.mark.fast


def test_scenes_are_drawn_with_their_masks(command, tmp_path):
    done = command("scenes", tmp_path / "s", "--count", 2, "--size", 32, "--masks")
    assert (done.code, done.out) == (0, f"2 scenes of 32 px in {tmp_path / 's'}\n")
    drawn = [sorted(p.name for p in (tmp_path / "s" / kind).iterdir()) for kind in ("images", "masks")]
    assert [len(names) for names in drawn] == [2, 2]
