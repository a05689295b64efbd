"""Networks of timm by name: what its saver writes, or a user names, gives its own tokens or is refused."""

import argparse
import json

import pytest
import timm
import torch
from safetensors.torch import save_file

from dse_monitor.checkpoints import load_encoder
from dse_monitor.checkpoints.inspect import inspect_checkpoint
from dse_monitor.cli import main
from dse_monitor.errors import FeatureError, UnknownLayout

# Small members of classes that no family knows by shapes, or knows as something else.
TINY = ["test_byobnet", "test_efficientnet", "test_mambaout", "test_nfnet", "test_vit_relpos", "test_coatnet"]


def made(name, **arguments):
    """A network whose parameters all show in its tokens."""
    torch.manual_seed(0)
    model = timm.create_model(name, **arguments).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model


def from_timm(model, name, **args):
    """What timm's CheckpointSaver writes for a model trained with these arguments."""
    args = argparse.Namespace(model=name, model_kwargs={}, drop=0.1, drop_path=None, gp=None, **args)
    return {"epoch": 4, "arch": name, "state_dict": model.state_dict(), "version": 2, "args": args}


def tokens(model, images):
    with torch.no_grad():
        features = model.forward_features(images)
    if features.ndim == 3:
        return features[:, getattr(model, "num_prefix_tokens", 0) :]
    channels_last = getattr(model, "output_fmt", "") == "NHWC"
    return features.flatten(1, 2) if channels_last else features.flatten(2).mT


@pytest.mark.parametrize("name", TINY)
def test_the_file_of_timms_saver_is_read_without_options(saved, name):
    model = made(name)
    encoder = load_encoder(saved(from_timm(model, name)))
    images = torch.randn(2, 3, *encoder.image_size)
    torch.testing.assert_close(encoder.dense_tokens(images), tokens(model, images), rtol=1e-4, atol=1e-5)
    assert (encoder.epoch, encoder.source.layout) == (5, "timm")
    assert encoder.grid[0] * encoder.grid[1] == encoder.num_tokens == tokens(model, images).shape[1]


def test_a_bare_state_dict_is_read_by_its_networks_name(saved):
    model = made("test_efficientnet", num_classes=7)
    path = saved({"student": {f"module.net.{name}": value for name, value in model.state_dict().items()}})
    with pytest.raises(UnknownLayout, match=r"no encoder was recognised|Name it with --arch MODEL"):
        load_encoder(path)
    encoder = load_encoder(path, arch="test_efficientnet", encoder="student")
    images = torch.randn(1, 3, *encoder.image_size)
    torch.testing.assert_close(encoder.dense_tokens(images), tokens(model, images), rtol=1e-4, atol=1e-5)


def test_averaged_weights_are_preferred_in_files_of_timm(saved):
    model, averaged = made("test_efficientnet"), made("test_efficientnet", num_classes=3)
    content = {**from_timm(model, "test_efficientnet"), "state_dict_ema": averaged.state_dict()}
    assert load_encoder(saved(content)).source.encoder == "ema"


def test_rotary_positions_that_leave_no_tensor_are_built_as_the_file_names_them(saved):
    name = "vit_small_patch16_rope_ape_224"
    model = made(name, depth=1, img_size=64)
    content = from_timm(model, name)
    content["args"].model_kwargs = {"depth": 1}
    encoder = load_encoder(saved(content))
    assert encoder.image_size == (64, 64)
    images = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(encoder.dense_tokens(images), tokens(model, images), rtol=1e-4, atol=1e-5)


def test_channels_follow_from_the_stem_and_want_statistics(saved):
    model = made("test_efficientnet", in_chans=5)
    path = saved(model.state_dict())
    said = {"arch": "test_efficientnet", "mean": (0.5,), "std": (0.25,)}
    encoder = load_encoder(path, **said)
    images = torch.randn(1, 5, *encoder.image_size)
    torch.testing.assert_close(encoder.dense_tokens(images), tokens(model, images), rtol=1e-4, atol=1e-5)


def test_images_that_are_no_squares_are_those_the_file_records(saved):
    model = made("test_vit", img_size=(32, 96))
    content = from_timm(model, "test_vit", input_size=[3, 32, 96])
    encoder = load_encoder(saved(content))
    assert (encoder.image_size, encoder.grid) == ((32, 96), (2, 6))
    images = torch.randn(1, 3, 32, 96)
    torch.testing.assert_close(encoder.dense_tokens(images), tokens(model, images), rtol=1e-4, atol=1e-5)


def test_a_position_table_of_no_square_is_refused_with_the_option_that_decides(saved):
    model = made("test_vit", img_size=(32, 96))
    path = saved(model.state_dict())
    with pytest.raises(UnknownLayout, match=r"pos_embed.*--arch-option 'img_size=\(HEIGHT, WIDTH\)'"):
        load_encoder(path, arch="test_vit")
    encoder = load_encoder(path, arch="test_vit", arch_option=("img_size=(32, 96)",))
    assert encoder.grid == (2, 6)


@pytest.mark.parametrize("options", [(), ("img_size=224",)])
def test_an_image_size_it_cannot_take_is_refused_and_not_replaced_by_its_own(saved, options):
    path = saved(made("vit_tiny_patch16_224", depth=1).state_dict())
    how = {"arch": "vit_tiny_patch16_224", "arch_option": ("depth=1", *options)}
    with pytest.raises(FeatureError, match=r"--image-size: vit_tiny.*32 x 128.*the network's own 224 x 224"):
        load_encoder(path, image_size=(32, 128), **how)
    assert load_encoder(path, image_size=224, **how).image_size == (224, 224)


def test_another_patch_size_is_not_taken_for_another_image_size(saved):
    path = saved(made("test_vit", patch_size=8, img_size=64).state_dict())
    with pytest.raises(UnknownLayout, match=r"such as patch_embed.proj.weight: \[") as caught:
        load_encoder(path, arch="test_vit")
    assert "img_size" not in str(caught.value)


def test_a_name_whose_tensors_are_others_is_refused(saved):
    content = from_timm(made("test_vit"), "test_efficientnet")
    with pytest.raises(
        UnknownLayout, match=r"arch in the file says test_efficientnet of timm.*--layout timm"
    ):
        load_encoder(saved(content))
    assert load_encoder(saved(content), layout="timm", num_heads=2).width == 64


def test_a_name_elsewhere_counts_only_if_every_tensor_fits(saved):
    state = {f"model.{name}": value for name, value in made("test_vit").state_dict().items()}
    fields = {"state_dict": state, "pytorch-lightning_version": "2", "epoch": 0}
    other = {**fields, "hyper_parameters": {"backbone": "vit_tiny_patch16_224"}}
    inspection = inspect_checkpoint(saved(other), num_heads=2)
    assert any(
        "vit_tiny_patch16_224 of timm" in note and "not that network's" in note for note in inspection.notes
    )
    assert inspection.network.startswith("vit 64x")
    convolutional = {f"model.{name}": value for name, value in made("test_efficientnet").state_dict().items()}
    right = {**fields, "state_dict": convolutional, "hyper_parameters": {"encoder_name": "test_resnet2"}}
    with pytest.raises(UnknownLayout, match=r"no encoder was recognised|Name it with --arch MODEL"):
        load_encoder(saved(right))


@pytest.mark.parametrize(
    "name", ["hf-hub:a/b", "local-dir:/tmp", "../x", "no_such_9", "", "test_vit.nonsense"]
)
def test_only_names_of_timms_registry_are_built(saved, name, monkeypatch):
    monkeypatch.setattr("timm.models._hub.load_model_config_from_hf", pytest.fail)
    with pytest.raises(UnknownLayout, match="timm"):
        load_encoder(saved(made("test_vit").state_dict()), arch=name)


def test_a_misspelled_argument_is_named_with_the_one_that_was_meant(saved):
    path = saved(made("test_vit").state_dict())
    with pytest.raises(UnknownLayout, match=r"takes no argument 'dept'; did you mean depth"):
        load_encoder(path, arch="test_vit", arch_option=("dept=2",))
    with pytest.raises(UnknownLayout, match="nothing is fetched"):
        load_encoder(path, arch="test_vit", arch_option=("checkpoint_path=/tmp/x",))
    with pytest.raises(UnknownLayout, match="--arch-option says how a network is built"):
        load_encoder(path, arch_option=("depth=2",))


@pytest.mark.parametrize(
    "arguments",
    [
        {"depth": 10**9}, {"img_size": 10**6}, {"embed_dim": [2**40]}, {"depth": "x" * 200},
        {"depth": 10**400}, {"embed_dim": [-(10**400)]}, {"mlp_ratio": float("nan")}, {"depths": [200] * 3},
        {"stages": [{"width": 10**6}]}, {"a": {"width": 10**400}},
    ],
)  # fmt: skip
def test_a_files_arguments_are_bounded(saved, arguments):
    content = from_timm(made("test_vit"), "test_vit")
    content["args"].model_kwargs = arguments
    with pytest.raises(UnknownLayout, match=r"args\.model_kwargs\.|--layout"):
        load_encoder(saved(content))


def test_a_size_beyond_any_float_is_refused(saved):
    content = from_timm(made("test_vit"), "test_vit", input_size=[3, 10**400, 160])
    with pytest.raises(UnknownLayout, match="is of many digits, beyond the 4096"):
        load_encoder(saved(content))


def test_a_model_that_is_no_text_leaves_the_name_of_the_field_arch(saved):
    content = from_timm(made("test_vit"), "test_vit")
    content["args"].model = 10**5000
    found = inspect_checkpoint(saved(content), num_heads=2)
    assert "test_vit" in str(found.facts)


@pytest.mark.parametrize(
    "numbers", [[10**400] * 3, [float("nan")] * 3, [float("inf")] * 3, [0.0] * 3, [3.0, -1.0, -1.0]]
)
def test_statistics_without_a_meaning_are_passed_over(saved, tmp_path, numbers):
    model = made("test_vit")
    found = inspect_checkpoint(saved(from_timm(model, "test_vit", std=numbers)))
    assert found.preprocessing.std == (0.5, 0.5, 0.5)
    folder = tmp_path / "hub"
    folder.mkdir()
    save_file(model.state_dict(), folder / "model.safetensors")
    own = {"input_size": [3, 160, 160], "std": numbers}
    (folder / "config.json").write_text(json.dumps({"architecture": "test_vit", "pretrained_cfg": own}))
    assert inspect_checkpoint(folder).preprocessing.std == (0.5, 0.5, 0.5)


def test_a_file_cannot_have_weights_fetched(saved, monkeypatch):
    monkeypatch.setattr("timm.models._builder.load_pretrained", pytest.fail)
    content = from_timm(made("test_vit"), "test_vit")
    content["args"].model_kwargs = {"pretrained": True, "checkpoint_path": "/etc/passwd", "cache_dir": "/tmp"}
    assert load_encoder(saved(content)).width == 64


def test_the_last_layer_by_number_is_the_last_layer(saved):
    path = saved(from_timm(made("test_vit"), "test_vit"))
    last, first = load_encoder(path), load_encoder(path, layer=1)
    images = torch.randn(1, 3, *last.image_size)
    assert last.layers == 6
    numbered = load_encoder(path, layer=6).tokens(images)
    for mine, theirs in zip(numbered, last.tokens(images), strict=True):
        torch.testing.assert_close(mine, theirs)
    assert not torch.allclose(first.dense_tokens(images), last.dense_tokens(images))


def test_images_are_prepared_as_timms_configuration_of_the_name_says(saved):
    model = made("test_vit")
    trained = inspect_checkpoint(saved(from_timm(model, "test_vit", mean=[0.1, 0.2, 0.3])))
    assert trained.preprocessing.mean == (0.1, 0.2, 0.3)
    assert trained.preprocessing.std == model.pretrained_cfg["std"] == (0.5, 0.5, 0.5)
    facts = {fact.name: fact for fact in trained.facts}
    assert (facts["mean"].source, facts["std"].assumed) == ("args.mean in the file", False)
    bare = inspect_checkpoint(saved(model.state_dict()), arch="test_vit")
    facts = {fact.name: fact for fact in bare.facts}
    assert bare.preprocessing.mean == (0.5, 0.5, 0.5)
    assert facts["mean"].assumed
    assert facts["mean"].source == "timm's configuration of test_vit"


@pytest.mark.parametrize("command", ["score", "watch"])
def test_a_network_timm_does_not_have_is_refused_before_anything_is_measured(tmp_path, capsys, command):
    arguments = [command, str(tmp_path), "--images", str(tmp_path), "--arch", "vit_smal_patch16_224"]
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert "vit_small_patch16_224" in capsys.readouterr().err


def test_classes_whose_buffers_are_computed_from_others_are_built(saved):
    name = "swinv2_tiny_window8_256"
    arguments = {"depths": (1, 1), "num_heads": (2, 2), "embed_dim": 16, "img_size": 64, "window_size": 4}
    model = made(name, **arguments)
    options = tuple(f"{key}={value!r}" for key, value in arguments.items())
    encoder = load_encoder(saved(model.state_dict()), arch=name, arch_option=options)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = model.forward_features(images).flatten(1, 2)
    torch.testing.assert_close(encoder.dense_tokens(images), expected, rtol=1e-4, atol=1e-5)


def test_weights_that_are_kept_in_another_form_are_found_by_name_too(saved):
    model = made("test_efficientnet")
    images = torch.randn(1, 3, 160, 160)
    expected = tokens(model, images)
    torch.nn.utils.parametrizations.weight_norm(model.conv_stem)
    encoder = load_encoder(saved(model.state_dict()), arch="test_efficientnet")
    torch.testing.assert_close(encoder.dense_tokens(images), expected, rtol=1e-4, atol=1e-5)


def test_a_network_that_gives_out_no_tokens_wants_a_layer_by_number(saved):
    name = "pit_ti_224"
    path = saved(from_timm(made(name), name))
    with pytest.raises(
        UnknownLayout, match=r"neither|not rows and columns.*--layer N takes the map of one of its 3"
    ):
        load_encoder(path)
    encoder = load_encoder(path, layer=3)
    assert encoder.grid[0] * encoder.grid[1] == encoder.dense_tokens(torch.randn(1, 3, 224, 224)).shape[1]
