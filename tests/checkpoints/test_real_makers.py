"""Files really written by other people's savers: timm's, Lightning's, and the names torch's wrappers give."""

import argparse
import copy
import warnings

import pytest
import torch
import torch.distributed as dist
from timm.models.vision_transformer import VisionTransformer
from timm.utils.checkpoint_saver import CheckpointSaver
from timm.utils.model_ema import ModelEmaV3

from dse_monitor.checkpoints import load_encoder
from dse_monitor.errors import UnknownLayout


def network(seed):
    torch.manual_seed(seed)
    vit = VisionTransformer(
        img_size=32, patch_size=8, embed_dim=192, depth=2, num_heads=3, num_classes=0
    ).eval()
    for parameter in vit.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape)
    return vit


IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def tokens(vit):
    with torch.no_grad():
        return vit.forward_features(IMAGES)[:, 1:]


def agrees(encoder, vit):
    return torch.allclose(encoder.dense_tokens(IMAGES), tokens(vit), atol=1e-4)


def test_timms_saver_with_averaged_weights(tmp_path):
    vit = network(0)
    averaged = ModelEmaV3(vit, decay=0.5)
    averaged.update(network(1))
    optimiser = torch.optim.AdamW(vit.parameters())
    saver = CheckpointSaver(
        model=vit,
        optimizer=optimiser,
        args=argparse.Namespace(
            model="vit_tiny_patch16_224", model_kwargs={"img_size": 32, "patch_size": 8, "depth": 2}
        ),
        model_ema=averaged,
        checkpoint_dir=str(tmp_path),
        recovery_dir=str(tmp_path),
    )
    saver.save_checkpoint(4, metric=0.5)
    saver.save_recovery(5, 100)
    for name in ("checkpoint-4.pth.tar", "last.pth.tar", "model_best.pth.tar", "recovery-5-100.pth.tar"):
        encoder = load_encoder(tmp_path / name, num_heads=3)
        assert (encoder.source.layout, encoder.source.encoder, encoder.source.epoch) == ("timm", "ema", 5)
        assert not encoder.notes
        assert agrees(encoder, averaged.module)
        assert agrees(load_encoder(tmp_path / name, encoder="model", num_heads=3), vit)


def test_lightnings_trainer_at_and_within_epochs(tmp_path):
    lightning = pytest.importorskip("lightning")
    from lightning.pytorch.callbacks import ModelCheckpoint

    class Distillation(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.student_backbone, self.teacher_backbone = network(0), network(1)
            self.student_head = torch.nn.Linear(192, 4)

        def training_step(self, batch, index):
            return self.student_head(self.student_backbone(batch[0])).sum()

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), lr=1e-3)

    data = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(torch.randn(6, 3, 32, 32)), batch_size=2
    )
    callbacks = [
        ModelCheckpoint(tmp_path, save_top_k=-1, save_last=True),
        ModelCheckpoint(tmp_path / "steps", save_top_k=-1, every_n_train_steps=2),
    ]
    module = Distillation()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lightning.Trainer(
            max_epochs=2,
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=callbacks,
        ).fit(module, data)
    expected = {
        "epoch=0-step=3.ckpt": (1, 3),
        "epoch=1-step=6.ckpt": (2, 6),
        "last.ckpt": (2, 6),
        "steps/epoch=0-step=2.ckpt": (0, 2),  # within its first epoch
        "steps/epoch=1-step=4.ckpt": (1, 4),
    }
    for name, counts in expected.items():
        encoder = load_encoder(tmp_path / name, num_heads=3)
        assert (encoder.source.layout, encoder.source.encoder) == ("lightning", "teacher")
        assert (encoder.source.epoch, encoder.source.step) == counts
        assert not any("The name says" in note for note in encoder.notes)
        assert agrees(encoder, network(1))


@pytest.fixture
def one_process(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def ddp(vit):
    return torch.nn.parallel.DistributedDataParallel(vit)


def recomputed(vit):
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    for index, block in enumerate(vit.blocks):
        vit.blocks[index] = checkpoint_wrapper(block)
    return vit


WRAPPED = {
    "DDP": ddp,
    "compiled": torch.compile,
    "DDP of compiled": lambda vit: ddp(torch.compile(vit)),
    "compiled DDP": lambda vit: torch.compile(ddp(vit)),
    "averaged": torch.optim.swa_utils.AveragedModel,
    "blocks recomputed": recomputed,
}


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("wrapper", WRAPPED)
def test_names_that_torchs_wrappers_give(saved, wrapper):
    vit = network(0)
    wrapped = WRAPPED[wrapper](copy.deepcopy(vit))
    state = dict(wrapped.named_parameters())  # as it is spelled inside: state_dict() tidies some of it
    assert state.keys() != dict(vit.named_parameters()).keys()
    assert agrees(load_encoder(saved({"model": state}), num_heads=3), vit)
    assert agrees(load_encoder(saved({"model": wrapped.state_dict()}), num_heads=3), vit)


@pytest.mark.usefixtures("one_process")
def test_sharded_tensors_are_refused_for_what_they_are_and_whole_ones_read(saved):
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    vit = network(0)
    sharded = copy.deepcopy(vit)
    fully_shard(sharded, mesh=init_device_mesh("cpu", (1,)))
    with pytest.raises(
        UnknownLayout, match=r"no tensors; \d+ values not built: .*tensor\.DTensor.*full_state_dict=True"
    ):
        load_encoder(saved({"model": sharded.state_dict()}))
    whole = get_model_state_dict(sharded, options=StateDictOptions(full_state_dict=True))
    assert agrees(load_encoder(saved({"model": whole}), num_heads=3), vit)
