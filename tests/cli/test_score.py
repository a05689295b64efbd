"""score: single checkpoints and what is refused."""

import json

import pytest


def test_score_prints_one_object_per_checkpoint(in_process, workplace):
    files = [f"run/checkpoint_000{i}.pth" for i in (1, 4)]
    flags = "--images images --num-images 16 --json --cache c".split()
    done = in_process("score", *files, *flags, cwd=workplace)
    assert done.code == 3
    good, bad = map(json.loads, done.out.splitlines())
    assert good["status"] == "scored"
    assert good["source"]["epoch"] == 1
    parts = good["components"]
    separability = parts["m_inter"] - (parts["m_intra_image"] + parts["m_intra_batch"]) / 2
    assert good["dse_lambda1"] == pytest.approx(separability + parts["m_dim"])
    assert bad["status"] == "failed"
    assert "checkpoint_0004.pth" in bad["reason"]


def test_a_run_is_scored_alone(command, tmp_path):
    (tmp_path / "run").mkdir()
    done = command("score", tmp_path / "run", tmp_path / "a.pth", "--images", tmp_path)
    assert (done.code, "score it alone" in done.err) == (2, True)


def test_images_that_are_not_there_are_one_line_and_code_2(command, workplace):
    done = command("score", workplace / "run" / "checkpoint_0001.pth", "--images", "nowhere")
    assert done.code == 2
    assert done.err.startswith("dse-monitor: ")
    assert "folder of images" in done.err
