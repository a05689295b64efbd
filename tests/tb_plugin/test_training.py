"""Which scalar is taken for the training loss."""

import pytest

from dse_monitor.tb_plugin.training import loss_score, scalar_sources, trained_run

pytestmark = pytest.mark.fast


@pytest.mark.parametrize(
    ("run", "expected"),
    [("dse", "."), ("exp/dse", "exp"), ("exp", "exp"), ("a/dse/b/dse", "a/dse/b"), ("xdse", "xdse")],
)
def test_trained_run_is_the_folder_above(run, expected):
    assert trained_run(run) == expected


def test_scalars_are_looked_for_near_the_run_first():
    every = [".", "a", "a/b", "a/b/dse", "a/b/tb", "a/b/tb/dse", "a/c", "z"]
    assert scalar_sources("a/b/dse", every) == [["a/b"], ["a/b/tb"], ["a"], ["."], ["a/b/dse"]]
    assert scalar_sources("dse", [".", "dse", "tb"]) == [["."], ["tb"], ["dse"]]


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        ("train/loss", "train_loss"),
        ("Loss", "my/loss_total"),
        ("my/loss_total", "loss_weights/x"),
        ("dino_loss", "val/loss"),
        ("val_loss", "accuracy"),
        ("loss/train", "loss/test"),
    ],
)
def test_likelier_tags_score_higher(better, worse):
    assert loss_score(better) > loss_score(worse)


@pytest.mark.parametrize(
    "tag", ["val_loss", "eval/loss", "loss/valid", "test.loss", "lr", "accuracy", "evaluation"]
)
def test_held_out_losses_are_not_taken_for_the_training_loss(tag):
    assert loss_score(tag) < 50
