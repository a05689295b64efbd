"""How far training was, as checkpoints store it: under which fields, and what each maker counts."""

import pytest

from dse_monitor.checkpoints.families.network import NotThisNetwork, count_blocks
from dse_monitor.checkpoints.names import NameFacts, from_name
from dse_monitor.checkpoints.reading.contents import TensorRef
from dse_monitor.checkpoints.recognition.progress import read

EPOCHS = {  # what is stored: finished epochs
    "number": ({"epoch": 7}, 7),
    "text": ({"epoch": "7"}, 7),
    "text with a point": ({"epoch": " 7.5 "}, 7.5),
    "PyTorch's DDP tutorial": ({"EPOCHS_RUN": 7}, 8),
    "nnU-Net": ({"current_epoch": 8}, 8),
    "ignite": ({"state": {"epoch": 7}}, 7),
    "progress": ({"progress": {"epoch": 7}}, 7),
    "TorchTNT": ({"train_progress": {"num_epochs_completed": 7}}, 7),
    "first epoch after resuming": ({"start_epoch": 8}, 8),
    "index of the last epoch": ({"last_epoch": 7}, 8),
    "its own field before others": ({"epoch": 7, "last_epoch": 3, "current_epoch": 4}, 7),
}
STEPS = {
    "torchtitan": ({"train_state": {"step": 700}}, 700),
    "TorchTNT": ({"train_progress": {"num_steps_completed": 700}}, 700),
    "text": ({"global_step": "700"}, 700),
    "progress": ({"progress": {"global_step": 700}}, 700),
}


@pytest.mark.parametrize("number", [10**400, 10**17, float("inf"), float("nan"), -1])
def test_counters_that_no_training_reaches_are_passed_over(number):
    fields = {"epoch": number, "global_step": number, "optimizer": {"state": {0: {"step": number}}}}
    found = read(fields, NameFacts())
    assert (found.epoch, found.step) == (None, None)


@pytest.mark.parametrize("case", EPOCHS)
def test_epochs_are_read_from_the_field_of_each_maker(case):
    stored, finished = EPOCHS[case]
    assert read(stored, NameFacts()).epoch == finished


@pytest.mark.parametrize("case", STEPS)
def test_steps_are_read_from_the_field_of_each_maker(case):
    stored, finished = STEPS[case]
    assert read(stored, NameFacts()).step == finished


def test_what_a_layout_says_of_its_epoch_holds_for_that_field_alone():
    assert read({"epoch": 7}, NameFacts(), epochs_from_field=1).epoch == 8
    assert read({"current_epoch": 7}, NameFacts(), epochs_from_field=1).epoch == 7
    assert read({"state": {"epoch": 7}}, NameFacts(), epochs_from_field=1).epoch == 7


@pytest.mark.parametrize(
    "stored", ["seven", "7e3", "-1", "", "9" * 40, "٧", True, -1, float("nan"), [7], {"epoch": 7}]
)
def test_what_is_no_count_is_none(stored):
    assert read({"epoch": stored}, NameFacts()).epoch is None


@pytest.mark.parametrize(("shape", "known"), [((), 7.0), ((1,), 7.0), ((2,), None)])
def test_a_tensor_of_one_number_is_a_count(shape, known):
    size = 1
    for length in shape:
        size *= length
    tensor = TensorRef("int64", shape, 8 * size)
    asked = []
    done = read({"epoch": tensor}, NameFacts(), scalars=lambda refs: asked.extend(refs) or [7])
    assert done.epoch == known
    assert len(asked) == (known is not None)
    assert read({"epoch": tensor}, NameFacts()).epoch is None


def test_a_bare_number_is_noted_and_taken_for_nothing():
    done = read({}, from_name("ckpt_7000.pt"))
    assert (done.epoch, done.step) == (None, None)
    (note,) = done.notes
    assert "number 7000 in the name, unit unknown" in note
    assert not read({"global_step": 7000}, from_name("ckpt_7000.pt")).notes


def test_blocks_numbered_without_measure_or_in_other_scripts_take_no_time():
    with pytest.raises(NotThisNetwork, match=r"blocks\.1 is missing although blocks\.9{30} is there"):
        count_blocks({"blocks.0.weight": (1,), f"blocks.{'9' * 30}.weight": (1,)}, "blocks.")
    assert count_blocks({"blocks.0.weight": (1,), "blocks.\N{SUPERSCRIPT TWO}.weight": (1,)}, "blocks.") == 1
