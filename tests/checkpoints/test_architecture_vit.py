"""Vision transformers of any shape come back exactly: same names, same tokens as timm's own forward pass."""

from functools import partial

import pytest
import timm
import torch
from timm.layers import SwiGLU, SwiGLUPacked
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torchvision.models.vision_transformer import VisionTransformer as TorchvisionViT

from dse_monitor.errors import AmbiguousArchitecture, UnknownLayout

SIZE = 32
BASE = dict(img_size=SIZE, patch_size=8, embed_dim=24, depth=2, num_heads=4, num_classes=0)

VARIANTS = {
    "plain": {},
    "deep and narrow": dict(embed_dim=12, depth=5, num_heads=3),
    "with a head": dict(num_classes=7),
    "no class token": dict(class_token=False, global_pool="avg", fc_norm=False),
    "registers without positions": dict(reg_tokens=4, no_embed_class=True),
    "registers with positions": dict(reg_tokens=2),
    "registers, no class token": dict(reg_tokens=1, class_token=False, global_pool="avg", fc_norm=False),
    "class token without position": dict(no_embed_class=True),
    "layer scale": dict(init_values=0.3),
    "no query bias": dict(qkv_bias=False),
    "query-key norm": dict(qk_norm=True),
    "odd feed-forward": dict(mlp_ratio=2.67),
    "packed SwiGLU": dict(mlp_layer=SwiGLUPacked, act_layer=nn.SiLU, mlp_ratio=5.34),
    "separate SwiGLU": dict(mlp_layer=SwiGLU, act_layer=nn.SiLU, mlp_ratio=2.67),
    "other patches": dict(patch_size=4),
}


def randomised(model, seed=0):
    """The model with every tensor drawn anew, so that zeros and ones of an initialisation hide nothing."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            drawn = torch.randn(tensor.shape, generator=generator)
            tensor.copy_(drawn.abs() + 0.5 if name.endswith("running_var") else drawn * 0.2)
    return model.eval()


def images(size=SIZE, count=2):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def timm_tokens(model, batch):
    return model.forward_features(batch)[:, model.num_prefix_tokens :]


@pytest.mark.parametrize("variant", VARIANTS, ids=list(VARIANTS))
def test_tokens_equal_timms(reloaded, variant):
    options = {**BASE, **VARIANTS[variant]}
    model = randomised(VisionTransformer(**options))
    encoder = reloaded(model.state_dict(), num_heads=options["num_heads"])
    assert torch.equal(encoder.dense_tokens(images()), timm_tokens(model, images()))
    assert encoder.image_size == (SIZE, SIZE)
    assert (encoder.num_tokens, encoder.width) == (model.patch_embed.num_patches, options["embed_dim"])


@pytest.mark.parametrize(
    ("width", "first"), [(64, 1), (128, 2), (192, 3), (384, 6), (768, 12), (1280, 16), (1536, 24)]
)
def test_no_width_tells_its_heads_and_the_likeliest_is_offered_first(reloaded, width, first):
    model = VisionTransformer(**{**BASE, "embed_dim": width, "depth": 1, "num_heads": 4})
    words = rf"width {width}.*likeliest first: {first}, .*Pass --num-heads {first} if.*--layout NAME"
    with pytest.raises(AmbiguousArchitecture, match=words):
        reloaded(model.state_dict())


def test_heads_that_do_not_divide_the_width_are_refused(reloaded):
    with pytest.raises(AmbiguousArchitecture, match=r"--num-heads 5 does not divide the width 24"):
        reloaded(VisionTransformer(**BASE).state_dict(), num_heads=5)


def test_wrong_heads_change_the_tokens(reloaded):
    state = randomised(VisionTransformer(**BASE)).state_dict()
    right, wrong = (reloaded(state, num_heads=heads).dense_tokens(images()) for heads in (4, 2))
    assert (right - wrong).abs().max() > 1e-3


def test_query_norm_tells_the_heads(reloaded):
    model = randomised(VisionTransformer(**{**BASE, "qk_norm": True}))
    encoder = reloaded(model.state_dict())
    assert torch.equal(encoder.dense_tokens(images()), timm_tokens(model, images()))


def test_norm_after_pooling_is_left_out_and_said(reloaded):
    model = randomised(VisionTransformer(**BASE, global_pool="avg"))
    encoder = reloaded(model.state_dict(), num_heads=4)
    assert torch.equal(encoder.dense_tokens(images()), timm_tokens(model, images()))
    assert any("no norm after the last block" in note for note in encoder.notes)


def test_distilled_transformer_drops_both_prefix_tokens(reloaded):
    model = timm.create_model("deit_tiny_distilled_patch16_224", img_size=SIZE, depth=2, num_classes=5)
    model = randomised(model)
    encoder = reloaded(model.state_dict(), num_heads=3)
    assert torch.allclose(encoder.dense_tokens(images()), timm_tokens(model, images()), atol=1e-6)


def test_class_position_of_dinov2_registers_is_folded(reloaded):
    model = randomised(VisionTransformer(**BASE, reg_tokens=4, no_embed_class=True, init_values=1.0))
    state = model.state_dict()
    own = torch.randn(1, 1, 24)
    native = {
        **{
            name: value
            for name, value in state.items()
            if name not in ("reg_token", "cls_token", "pos_embed")
        },
        "register_tokens": state["reg_token"],
        "cls_token": state["cls_token"] - own,
        "pos_embed": torch.cat([own, state["pos_embed"]], dim=1),
        "mask_token": torch.zeros(1, 24),
    }
    encoder = reloaded(native, num_heads=4)
    assert torch.allclose(encoder.dense_tokens(images()), timm_tokens(model, images()), atol=1e-5)


def test_chunks_of_blocks_are_joined(reloaded):
    model = randomised(VisionTransformer(**BASE))
    state = {name.replace("blocks.", "blocks.0.", 1): value for name, value in model.state_dict().items()}
    state = {name.replace("blocks.0.1.", "blocks.1.1."): value for name, value in state.items()}
    encoder = reloaded(state, num_heads=4)
    assert torch.equal(encoder.dense_tokens(images()), timm_tokens(model, images()))


def test_separate_query_and_value_biases_are_joined(reloaded):
    model = randomised(VisionTransformer(**BASE))
    state = model.state_dict()
    for block in ("blocks.0.attn.", "blocks.1.attn."):
        bias = state.pop(f"{block}qkv.bias")
        bias[24:48] = 0
        state[f"{block}q_bias"], state[f"{block}v_bias"] = bias[:24].clone(), bias[48:].clone()
    encoder = reloaded(state, num_heads=4)
    assert torch.equal(encoder.dense_tokens(images()), timm_tokens(model, images()))


def test_torchvision_transformer_gives_its_own_tokens(reloaded):
    model = TorchvisionViT(
        image_size=SIZE, patch_size=8, num_layers=2, num_heads=4, hidden_dim=24, mlp_dim=50, num_classes=3
    )
    model = randomised(model)
    encoder = reloaded(model.state_dict(), num_heads=4)
    with torch.no_grad():
        tokens = model._process_input(images())
        expected = model.encoder(torch.cat([model.class_token.expand(2, -1, -1), tokens], dim=1))[:, 1:]
    assert torch.allclose(encoder.dense_tokens(images()), expected, atol=1e-5)


def dinov3(**options):
    return Eva(
        **{
            **dict(img_size=SIZE, patch_size=8, embed_dim=32, depth=2, num_heads=4, num_classes=0),
            **dict(init_values=1.0),
            **options,
        },
        global_pool="token",
        use_abs_pos_emb=False,
        use_rot_pos_emb=True,
        rope_type="dinov3",
        rope_temperature=100,
        rope_rotate_half=True,
        num_reg_tokens=4,
        use_fc_norm=False,
        dynamic_img_size=True,
        norm_layer=partial(nn.LayerNorm, eps=1e-5),
    )


GATES = {
    "mlp": {},
    "swiglu": dict(swiglu_mlp=True, swiglu_align_to=8),
    "packed swiglu": dict(swiglu_mlp=True),
}


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "query and value bias"])
def test_rotary_transformer_in_timms_names(reloaded, gate, bias):
    model = randomised(dinov3(qkv_bias=bias, **GATES[gate]))
    encoder = reloaded(model.state_dict(), num_heads=4)
    assert torch.equal(encoder.dense_tokens(images()), timm_tokens(model, images()))
    assert torch.equal(encoder.dense_tokens(images(48)), timm_tokens(model, images(48)))


def native_dinov3(model):
    """DINOv3's own names for the tensors of timm's model, rounded periods and masked key biases included."""
    periods = model.rope.periods.bfloat16()
    model.rope.periods.copy_(periods.float())
    state = {"rope_embed.periods": periods, "mask_token": torch.zeros(1, 32)}
    for name, value in model.state_dict().items():
        if name.endswith("q_bias"):
            keys = torch.full((32,), 9.0)  # masked in DINOv3, so it must not matter
            block = name.removesuffix("q_bias")
            state[f"{block}qkv.bias"] = torch.cat(
                [value, keys, model.get_parameter(f"{block}v_bias").detach()]
            )
            state[f"{block}qkv.bias_mask"] = torch.cat([torch.ones(32), torch.zeros(32), torch.ones(32)])
        elif not name.endswith("v_bias"):
            name = name.replace("reg_token", "storage_tokens")
            name = name.replace("gamma_1", "ls1.gamma").replace("gamma_2", "ls2.gamma")
            name = name.replace("fc1_g", "w1").replace("fc1_x", "w2")
            name = (
                name.replace("mlp.fc2", "mlp.w3")
                if model.blocks[0].mlp.__class__.__name__ == "SwiGLU"
                else name
            )
            state[name] = value
    return state


@pytest.mark.parametrize("gate", ["mlp", "swiglu"])
def test_dinov3_tells_its_heads_by_the_rotary_periods(reloaded, gate):
    model = randomised(dinov3(qkv_bias=True, **GATES[gate]))
    state = {f"backbone.{name}": value for name, value in native_dinov3(model).items()}
    encoder = reloaded({"teacher": state})
    assert encoder.source.layout == "dinov3"
    assert "4 heads" in encoder.arch
    assert torch.allclose(encoder.dense_tokens(images()), timm_tokens(model, images()), atol=1e-6)


def test_dinov3_with_biases_on_its_keys_keeps_them(reloaded):
    model = randomised(dinov3(qkv_bias=True))
    state = native_dinov3(model)
    state = {name: value for name, value in state.items() if not name.endswith("bias_mask")}
    for block in model.blocks:
        block.attn.k_bias.fill_(9.0)
    assert torch.allclose(reloaded(state).dense_tokens(images()), timm_tokens(model, images()), atol=1e-6)


def test_dinov3_without_layer_scale_is_built_so(reloaded):
    model = randomised(dinov3(qkv_bias=True, init_values=None))
    state = native_dinov3(model)
    assert not any("ls1" in name for name in state)
    assert torch.allclose(reloaded(state).dense_tokens(images()), timm_tokens(model, images()), atol=1e-6)


def test_dinov3_with_norms_without_bias_is_refused(reloaded):
    state = native_dinov3(randomised(dinov3(qkv_bias=True)))
    state = {name: value for name, value in state.items() if "norm" not in name or "weight" in name}
    with pytest.raises(UnknownLayout, match=r"norms have no bias \(RMSNorm\)"):
        reloaded(state)


def test_gram_teacher_is_not_taken_for_the_teacher(reloaded):
    model, other = (randomised(dinov3(qkv_bias=True)) for _ in range(2))
    for parameter in other.parameters():
        parameter.data += 0.1
    copies = {"student": other, "gram_teacher": other, "teacher": model, "model_ema": model}
    state = {
        f"{name}.backbone.{key}": value.clone()
        for name, network in copies.items()
        for key, value in native_dinov3(network).items()
    }
    encoder = reloaded({"iteration": 199, "model": state})
    assert (encoder.source.encoder, encoder.source.step) == ("teacher", 200)
    assert torch.allclose(encoder.dense_tokens(images()), timm_tokens(model, images()), atol=1e-6)


def test_missing_block_is_named(reloaded):
    state = VisionTransformer(**{**BASE, "depth": 3}).state_dict()
    state = {name: value for name, value in state.items() if not name.startswith("blocks.1.")}
    with pytest.raises(UnknownLayout, match=r"blocks\.1 is missing although blocks\.2 is there"):
        reloaded(state, num_heads=4)


def test_missing_tensors_are_counted_and_named(reloaded):
    state = VisionTransformer(**BASE).state_dict()
    del state["blocks.1.attn.proj.weight"], state["blocks.1.norm2.bias"]
    with pytest.raises(UnknownLayout, match=r"2 of \d+ backbone tensors missing .*blocks\.1\.norm2\.bias"):
        reloaded(state, num_heads=4)


def test_tensors_without_a_place_are_named(reloaded):
    state = {**VisionTransformer(**BASE).state_dict(), "neck.weight": torch.zeros(4)}
    with pytest.raises(UnknownLayout, match=r"1 of its tensors have no place .*neck\.weight"):
        reloaded(state, num_heads=4)
    state = {**VisionTransformer(**BASE).state_dict(), "blocks.0.attn.gate.weight": torch.zeros(4)}
    with pytest.raises(UnknownLayout, match=r"its blocks hold blocks\.0\.attn\.gate\.weight, which"):
        reloaded(state, num_heads=4)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("patch_embed.proj.weight", (24, 3, 8), r"not \[D, C, p, p\]"),
        ("patch_embed.proj.weight", (24, 3, 8, 4), "not square"),
        ("pos_embed", (1, 14, 24), "no square grid"),
    ],
)
def test_what_cannot_be_an_image_transformer_is_explained(reloaded, name, shape, message):
    state = {**VisionTransformer(**BASE).state_dict(), name: torch.zeros(shape)}
    with pytest.raises(UnknownLayout, match=message):
        reloaded(state, num_heads=4)
