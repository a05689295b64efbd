"""What a path says: candidate or not, rewritten or not, how many epochs and steps are done."""

import pytest

from dse_monitor.checkpoints.names import (
    PATTERNS,
    NameFacts,
    from_name,
    is_candidate,
    is_checkpoint_folder,
    is_rolling,
)

pytestmark = pytest.mark.fast

DONE = {  # path: (finished epochs, finished steps)
    "checkpoint0000.pth": (1, None),
    "checkpoint0010.pth": (11, None),
    "checkpoint_0010.pth.tar": (11, None),
    "checkpoint-10.pth": (11, None),
    "checkpoint-799.pth": (800, None),
    "jepa-ep10.pth.tar": (9, None),
    "ijepa-ep300.pth.tar": (299, None),
    "checkpoints/ckp-10.pth": (11, None),
    "resnet50_10.pth.tar": (10, None),
    "ckpt/2021_01_02/resnet50_300.pth.tar": (300, None),
    "epoch_10.pth": (10, None),
    "iter_1000.pth": (None, 1000),
    "best_mIoU_epoch_10.pth": (10, None),
    "best_accuracy_top1_iter_500.pth": (None, 500),
    "ckpt/199": (None, 200),
    "run/ckpt/199_keep": (None, 200),
    "ckpt/199/.metadata": (None, 200),
    "eval/training_1249/teacher_checkpoint.pth": (None, 1250),
    "eval/training_1249/sharded_teacher_checkpoint": (None, 1250),
    "model_0012499.rank_0.pth": (None, 12500),
    "model_0004999.pth": (None, 5000),
    "model_phase10.torch": (11, None),
    "model_final_checkpoint_phase99.torch": (100, None),
    "model_final_checkpoint_phase99_shard0.torch": (100, None),
    "model_iteration1000.torch": (None, 1000),
    "epoch=9-step=1250.ckpt": (10, 1250),
    "version_3/checkpoints/epoch=9-step=1250-v1.ckpt": (10, 1250),
    "vit-epoch=09-val_loss=0.32.ckpt": (10, None),
    "step=5000.ckpt": (None, 5000),
    "byol-imagenet100-3k2dhs8r-ep=99.ckpt": (100, None),
    "checkpoint-12.pth.tar": (13, None),
    "recovery-3-200.pth.tar": (3, None),
    "checkpoint-500": (None, 500),
    "checkpoint-500/model.safetensors": (None, 500),
    "global_step1000": (None, 1000),
    "global_step1000/mp_rank_00_model_states.pt": (None, 1000),
    "iter_0001000": (None, 1000),
    "iter_0001000/mp_rank_00/model_optim_rng.pt": (None, 1000),
    "step-1000": (None, 1000),
    "ep1-ba100-rank0.pt": (1, 100),
    "checkpoint_10_50000.pt": (9, 50000),
    "checkpoint10.pt": (10, None),
    "ckpt_epoch_100.pth": (101, None),
    "epoch_10.pt": (10, None),
    "model.ckpt-1000.index": (None, 1000),
    "model.ckpt-1000.data-00000-of-00001": (None, 1000),
    "weights.10-0.53.hdf5": (10, None),
    "epoch10.pt": (11, None),
    "checkpoint_0010.pth": (10, None),
    "checkpoint_10.pth": (10, None),
    "model_10.pth": (10, None),
    "vit_small_epoch_30.pt": (30, None),
    "mymodel-ep12.pth": (12, None),
    "net_step_5000.pt": (None, 5000),
    "vit_epoch_3_step_4000.pt": (3, 4000),
    "swav_800ep_pretrain.pth.tar": (800, None),
    "densecl_r50_imagenet_200ep.pth": (200, None),
    "pretrain_7ep.pth": (7, None),
    "checkpoint_step_700_epoch_7.pt": (7, 700),
    "ckpt_e7_s700.pt": (7, 700),
    "e007.pth": (7, None),
    "model_e7.pt": (7, None),
    "epoch_0/model.safetensors": (1, None),  # both makers count from zero and save at the end of the epoch
    "epoch_7/model.pt": (8, None),
    "epoch_2/pytorch_model_fsdp_0": (3, None),
    "step_700/model.pt": (None, 700),
    "iter_100": (None, 100),
    "step_100/unwrapped/model.safetensors": (None, 100),
    "checkpoint-500/pytorch_model_fsdp_0": (None, 500),
}

NUMBERS = {  # path: the number whose unit it does not say
    "ckpt_12.pt": 12,
    "ckpt_7000.pt": 7000,
    "0007.pth": 7,
    "ssl_0007.pt": 7,
    "model-7.pt": 7,
    "model.7.pt": 7,
    "ckpt_1": 1,
    "checkpoint_00007.pyth": 7,
    "checkpoint_1000": 1000,
    "checkpoint_000007/model.pt": 7,
    "1000": 1000,
    "0001/model.pt": 1,
    "checkpoints/7/model.pt": 7,
}

NOTHING = [
    "resnet50.pth",
    "resnet50.pth.tar",
    "wide_resnet50_2.pth",
    "vit_small_20230101_123",
    "vit_small_20230101_123.pth",
    "vit_small_patch16_224.pth",
    "dino_deitsmall16_pretrain.pth",
    "mae_pretrain_vit_base.pth",
    "vit_small_7.pth",
    "densenet-121.pth",
    "resnet50_alpha0.9.pth",
    "ViT-B-16.pt",
    "checkpoint.pth",
    "checkpoint.pth.tar",
    "jepa-latest.pth.tar",
    "last.ckpt",
    "model_final.pth",
    "checkpoint_NaN.pth",
    "ckpt/199a8f3tmp",
    "convnext_base_22k_1k_384.pth",
]

ROLLING = [
    "checkpoint.pth",
    "checkpoint.pth.tar",
    "checkpoint.torch",
    "model.pth",
    "jepa-latest.pth.tar",
    "latest.pth",
    "last.ckpt",
    "last-v1.ckpt",
    "last.pth.tar",
    "model_best.pth.tar",
    "best.pt",
    "checkpoint_last.pt",
    "checkpoint_best.pt",
    "epoch_latest.pt",
    "latest-rank0.pt",
    "ckpt.pt",
    "checkpoint.npz",
    "exported_last.pt",
    "last_checkpoint",
    "checkpoint_NaN.pth",
]

NEVER = [
    "optimizer.pt",
    "scheduler.pt",
    "scaler.pt",
    "rng_state.pth",
    "rng_state_0.pth",
    "training_args.bin",
    "random_states_0.pkl",
    "global_step10/zero_pp_rank_0_mp_rank_00_optim_states.pt",
    "queue.pth",
    "queue0.pth",
    "mb0.pth",
    "trainfeat.pth",
    "testfeat.pth",
    "trainlabels.pth",
    "testlabels.pth",
    "checkpoint_0010_linear.pth",
    "checkpoint_teacher_linear.pth",
    "linear.pth",
    ".hidden.pth",
    ".nfs0000001.pth",
    "checkpoint.pth.tmp",
    "checkpoint.pth.part",
    "tmp.pth.tar",
    "tmp-checkpoint-500/model.safetensors",
    "1000.orbax-checkpoint-tmp-17/model.pth",
    "model.lock",
    "model-00001-of-00004.safetensors",
    "pytorch_model-00002-of-00002.bin",
    "model_0012499.rank_3.pth",
    "model_phase10_shard2.torch",
    "step-1000/__0_0.distcp",
    "log.txt",
    "config.json",
    "events.out.tfevents.1",
    "params.pkl",
    "image.png",
    "src/model.py",
]

CANDIDATES = [
    "checkpoint0010.pth",
    "model.pth",
    "a/b/epoch=9-step=1250.ckpt",
    "checkpoint_0010.pth.tar",
    "checkpoint-500/model.safetensors",
    "checkpoint-500/model.safetensors.index.json",
    "pytorch_model.bin",
    "model_phase10.torch",
    "model_0012499.rank_0.pth",
    "epoch_10.pt",
    "linear_warmup_epoch_3.pth",
    "resnet50.pth",
    "ckpt/199",
    "step-1000",
    "eval/training_1249/sharded_teacher_checkpoint",
]


@pytest.mark.parametrize("path", DONE)
def test_numbers_become_counts_of_what_is_finished(path):
    facts = from_name(path)
    assert (facts.epoch_done, facts.step_done) == DONE[path]
    assert facts.pattern
    assert "in the name" in facts.how


@pytest.mark.parametrize("path", NUMBERS)
def test_a_bare_number_has_no_unit(path):
    facts = from_name(path)
    assert (facts.epoch_done, facts.step_done, facts.saves) == (None, None, False)
    assert facts.number == NUMBERS[path]
    assert facts.how == f"number {NUMBERS[path]} in the name, unit unknown"


def test_accelerate_counts_what_it_saved():
    facts = from_name("checkpoints/checkpoint_7/model.safetensors")
    assert (facts.number, facts.saves, facts.epoch_done, facts.step_done) == (7, True, None, None)


@pytest.mark.parametrize("path", NOTHING)
def test_other_numbers_are_no_epochs(path):
    assert from_name(path) == NameFacts()


@pytest.mark.parametrize("entry", PATTERNS, ids=[entry.name for entry in PATTERNS])
def test_each_pattern_decides_its_own_example(entry):
    assert from_name(entry.example).pattern == entry.name


def test_there_are_at_least_thirty_five_patterns():
    assert len({entry.name for entry in PATTERNS}) == len(PATTERNS) >= 35


@pytest.mark.parametrize("name", ROLLING)
def test_rewritten_names_are_known(name):
    assert is_rolling(name)


@pytest.mark.parametrize(
    "name", [name for name in DONE if not name.endswith(".metadata")] + ["model_final.pth"]
)
def test_numbered_names_are_not_rewritten(name):
    assert not is_rolling(name)


@pytest.mark.parametrize("path", NEVER)
def test_what_lies_beside_checkpoints_is_no_candidate(path):
    assert not is_candidate(path)


@pytest.mark.parametrize("path", CANDIDATES)
def test_checkpoints_are_candidates(path):
    assert is_candidate(path)


def test_folders_that_are_one_checkpoint():
    assert is_checkpoint_folder("run/ckpt/199_keep")
    assert is_checkpoint_folder("step-1000")
    assert not is_checkpoint_folder("ckpt")
    assert not is_checkpoint_folder("checkpoint-500")  # its weights file is the candidate
