"""Weights that a library has wrapped: adapters, parametrizations, averages, quantised and flattened ones."""

import gzip
import shutil

import pytest
import torch
from peers import assert_same_tokens, disturb, images, installed, refusal, timm_tokens

from dse_monitor.checkpoints import load_encoder

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

IMAGES = images((64, 64))


def timm_vit(seed=0):
    from timm.models.vision_transformer import VisionTransformer

    torch.manual_seed(seed)
    vit = VisionTransformer(img_size=64, patch_size=8, embed_dim=96, depth=2, num_heads=3, num_classes=0)
    return disturb(vit, seed)


def read(content, path, expected, record, **options):
    torch.save(content, path)
    encoder = load_encoder(path, num_heads=3, **options)
    assert_same_tokens(encoder.dense_tokens(IMAGES), expected, path.name, record)
    return encoder


@pytest.fixture
def adapted():
    """DINOv2 of transformers with a LoRA adapter of peft that changes what it computes; its base as well."""
    peft = installed("peft")
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=96, num_hidden_layers=2, num_attention_heads=3, mlp_ratio=2, image_size=64, patch_size=8
    )
    base = disturb(Dinov2Model(config))
    lora = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"])
    model = peft.get_peft_model(base, lora)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = 0.2 * torch.randn(parameter.shape)
    return model.eval()


@torch.no_grad()
def adapted_tokens(model):
    return model(IMAGES).last_hidden_state[:, 1:]


def test_an_adapter_alone_is_refused_with_the_way_out(adapted, tmp_path):
    adapted.save_pretrained(tmp_path / "adapter")
    refusal(tmp_path / "adapter", "adapter|LoRA", "merge_and_unload")


def test_an_adapter_beside_its_base_is_merged_or_refused_with_the_way_out(adapted, tmp_path, record_property):
    """`adapter_config.json` names the folder of the base: read only where it lies there."""
    expected = adapted_tokens(adapted)
    adapted.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    adapted.save_pretrained(tmp_path / "adapter")
    adapted.unload().save_pretrained(tmp_path / "base")
    try:
        encoder = load_encoder(tmp_path / "adapter")
    except Exception:
        refusal(tmp_path / "adapter", "adapter|LoRA", "merge_and_unload")
        return
    assert_same_tokens(encoder.dense_tokens(IMAGES), expected, "adapter and base", record_property)


def test_the_whole_state_of_an_adapted_network_is_merged(adapted, tmp_path, record_property):
    """alpha / r is in no tensor: taken from a configuration beside the file, or asked for."""
    expected = adapted_tokens(adapted)
    torch.save(adapted.state_dict(), tmp_path / "checkpoint_3.pth")
    try:
        encoder = load_encoder(tmp_path / "checkpoint_3.pth", num_heads=3)
    except Exception:
        refusal(tmp_path / "checkpoint_3.pth", "LoRA", "merge_and_unload", num_heads=3)
        return
    assert_same_tokens(encoder.dense_tokens(IMAGES), expected, "LoRA", record_property)


def test_a_merged_network_is_an_ordinary_one(adapted, tmp_path, record_property):
    expected = adapted_tokens(adapted)
    adapted.merge_and_unload().save_pretrained(tmp_path / "merged")
    encoder = load_encoder(tmp_path / "merged")
    assert_same_tokens(encoder.dense_tokens(IMAGES), expected, "merged", record_property)


def weight_norm_of_old(layer):
    torch.nn.utils.weight_norm(layer)
    layer.weight_g.data *= 1.0 + torch.rand_like(layer.weight_g)


def weight_norm(layer):
    torch.nn.utils.parametrizations.weight_norm(layer)
    first = layer.parametrizations.weight.original0
    first.data *= 1.0 + torch.rand_like(first)


def spectral_norm_of_old(layer):
    torch.nn.utils.spectral_norm(layer)


def spectral_norm(layer):
    torch.nn.utils.parametrizations.spectral_norm(layer)


def orthogonal(layer):
    torch.nn.utils.parametrizations.orthogonal(layer)


def pruned(layer):
    import torch.nn.utils.prune

    torch.nn.utils.prune.random_unstructured(layer, "weight", amount=0.5)


FOLDED = (weight_norm_of_old, weight_norm, spectral_norm_of_old, spectral_norm, pruned)


@pytest.mark.parametrize("wrap", FOLDED, ids=lambda wrap: wrap.__name__)
def test_a_reparametrised_weight_is_folded(wrap, tmp_path, record_property):
    vit = timm_vit()
    for block in vit.blocks:
        wrap(block.mlp.fc1)
        wrap(block.attn.proj)
    vit.train()
    vit(IMAGES)  # a spectral norm improves its estimate with every pass of a training
    vit.eval()
    read(
        {"model": vit.state_dict()}, tmp_path / "checkpoint_3.pth", timm_tokens(vit, IMAGES), record_property
    )


def test_another_parametrization_is_named(tmp_path):
    vit = timm_vit()
    orthogonal(vit.blocks[0].attn.proj)
    torch.save({"model": vit.state_dict()}, tmp_path / "checkpoint_3.pth")
    refusal(tmp_path / "checkpoint_3.pth", "parametri[sz]", r"blocks\.0\.attn\.proj", num_heads=3)


def test_ema_pytorchs_average_is_taken(tmp_path, record_property):
    ema_pytorch = installed("ema_pytorch")
    averaged = ema_pytorch.EMA(timm_vit(0), beta=0.9, include_online_model=True)
    averaged.ema_model.load_state_dict(timm_vit(1).state_dict())
    expected = timm_tokens(timm_vit(1), IMAGES)
    encoder = read({"ema": averaged.state_dict()}, tmp_path / "checkpoint_3.pth", expected, record_property)
    assert "ema" in encoder.source.encoder
    read(averaged.state_dict(), tmp_path / "checkpoint_4.pth", expected, record_property)


def test_the_average_of_torch_is_taken(tmp_path, record_property):
    from torch.optim.swa_utils import AveragedModel

    averaged = AveragedModel(timm_vit(1))
    content = {"model": timm_vit(0).state_dict(), "ema": averaged.state_dict()}
    read(content, tmp_path / "checkpoint_3.pth", timm_tokens(timm_vit(1), IMAGES), record_property)


def test_int8_of_torchao_is_named(tmp_path):
    installed("torchao")
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    vit = timm_vit()
    quantize_(vit, Int8WeightOnlyConfig())
    torch.save({"model": vit.state_dict()}, tmp_path / "checkpoint_3.pth")
    refusal(tmp_path / "checkpoint_3.pth", "quanti[sz]ed|torchao|int8", num_heads=3)


def test_int8_of_bitsandbytes_is_named(tmp_path):
    """Its Linear8bitLt keeps `weight` as int8, with `SCB` and `weight_format` beside it."""
    state = timm_vit().state_dict()
    for name in [
        name for name in state if name.endswith(("fc1.weight", "fc2.weight", "qkv.weight", "proj.weight"))
    ]:
        if name.startswith("blocks"):
            scale = state[name].abs().amax(1)
            state[name] = (state[name] / scale[:, None] * 127).round().to(torch.int8)
            state[name.replace("weight", "SCB")] = scale
            state[name.replace("weight", "weight_format")] = torch.tensor(0, dtype=torch.uint8)
    torch.save({"model": state}, tmp_path / "checkpoint_3.pth")
    refusal(tmp_path / "checkpoint_3.pth", "quanti[sz]ed|bitsandbytes|int8", num_heads=3)


def test_a_compressed_file_is_named(tmp_path):
    torch.save({"model": timm_vit().state_dict()}, tmp_path / "plain.pth")
    path = tmp_path / "checkpoint_3.pth.gz"
    with open(tmp_path / "plain.pth", "rb") as source, gzip.open(path, "wb", compresslevel=1) as target:
        shutil.copyfileobj(source, target)
    refusal(path, "gzip", "gunzip|unpack|decompress")


@pytest.mark.parametrize("spelled", ["in LOCAL_STATE_DICT", "inside"])
def test_flat_parameters_of_fsdp_are_named(spelled, tmp_path):
    """The first of two processes of FSDP 1: half of a unit's numbers in a row, as in DINOv2's rank files."""
    import torch.distributed as dist
    from torch.distributed.fsdp import FullyShardedDataParallel
    from torch.distributed.fsdp.wrap import ModuleWrapPolicy
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    try:
        vit = timm_vit()
        policy = ModuleWrapPolicy({type(vit.blocks[0])})
        sharded = FullyShardedDataParallel(vit, auto_wrap_policy=policy, device_id=torch.device("cpu"))
        state = {name: value.detach().clone() for name, value in sharded.named_parameters()}
    finally:
        dist.destroy_process_group()
    assert all(name.endswith("_flat_param") for name in state), list(state)[:5]
    if spelled == "in LOCAL_STATE_DICT":
        state = {name.replace("_fsdp_wrapped_module.", ""): value for name, value in state.items()}
    torch.save({"model": state}, tmp_path / "rank_0.pth")
    refusal(tmp_path / "rank_0.pth", "FSDP", "flat", "FULL_STATE_DICT|full_state_dict")
