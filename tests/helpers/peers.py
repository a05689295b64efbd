"""Networks of other makers as their files are tested: weights that hide nothing, and what is compared.

A freshly built network hides mistakes: norms that do nothing, biases and layer scales of zero, attention that
is nearly uniform whatever the number of heads. `disturb` takes all of that away before a file is written.
"""

from __future__ import annotations

import argparse
import importlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

# Greatest difference from the maker's own tokens, in their standard deviations: float32 through some dozen
# layers, in which the same sums may be taken in another order.
TOLERANCE = 1e-4

_ATTENTION = re.compile(
    r"(^|[._])(qkv|kv|[qk]|[qk]_proj|query|key|in_proj_weight|query_key_value|to_qkv|to_[qk])([._]|$)"
)
_BEFORE_ACTIVATION = re.compile(
    r"(^|[._])(fc1|fc_1|linear1|lin1|w1|w12|c_fc|mlp\.0|intermediate\.dense|gate_proj)\.weight"
)
_LAYER_SCALE = re.compile(r"gamma|layer_?scale|lambda|(^|\.)ls\d?(\.|$)|res_scale|(^|\.)scale$")
_POSITION = re.compile(r"pos|relative|rel_|bias_table|token|attention_biases|absolute|freqs")


def installed(module: str) -> Any:
    """A maker's package. Where DSE_PEERS is set, as in .ci/run, a missing one is a failure and not a skip."""
    if os.environ.get("DSE_PEERS"):
        return importlib.import_module(module)
    return pytest.importorskip(module, reason="pip install --no-deps -r tests/peers/requirements.txt")


@torch.no_grad()
def disturb(network: Any, seed: int = 0, run: Callable[[Any], object] | None = None) -> Any:
    """Give every parameter of a network a value that shows in its output; in evaluation mode.

    Args:
        network: the maker's, freshly built.
        seed: of the values.
        run: one forward pass. With it batch norms get the statistics of that pass, as a training would have
            left them, and not those of no data, with which signals of deep networks vanish.
    """
    generator = torch.Generator().manual_seed(seed)

    def noise(tensor: torch.Tensor) -> torch.Tensor:
        return torch.randn(tensor.shape, generator=generator)

    for name, parameter in network.named_parameters():
        if not parameter.is_floating_point():
            continue
        if _LAYER_SCALE.search(name) and "grn" not in name:
            parameter.copy_(0.6 + 0.2 * noise(parameter).clamp(-2, 2))
        elif _POSITION.search(name.rpartition(".")[2]) or _POSITION.search(name.split(".")[0]):
            parameter.add_(0.5 * noise(parameter))
        elif parameter.ndim < 2:
            parameter.add_(0.2 * noise(parameter).clamp(-2, 2))
        else:
            usual = parameter[0].numel() ** -0.5  # keeps the variance from layer to layer
            if parameter.std() < 0.1 * usual:  # some makers begin with zeros, or with next to nothing
                parameter.copy_(usual * noise(parameter))
            if _ATTENTION.search(name):
                parameter.mul_(3)
            elif _BEFORE_ACTIVATION.search(name):
                parameter.mul_(3)
    norms = [
        module for module in network.modules() if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)
    ]
    if run is not None and norms:
        usual_momentum = [norm.momentum for norm in norms]
        network.eval()
        for norm in norms:
            norm.train().momentum = 1.0
        run(network)
        for norm, momentum in zip(norms, usual_momentum, strict=True):
            norm.momentum = momentum
    for name, buffer in network.named_buffers():
        if name.endswith("running_mean"):
            buffer.add_(0.1 * noise(buffer))
        elif name.endswith("running_var"):
            buffer.mul_(torch.exp(0.3 * noise(buffer)))
    return network.eval()


def images(size: tuple[int, int], channels: int = 3, count: int = 2) -> torch.Tensor:
    """[count, channels, height, width] of unit variance."""
    return torch.randn(count, channels, *size, generator=torch.Generator().manual_seed(1))


def rows(features: torch.Tensor, *, prefix: int = 0, channels_last: bool = False) -> torch.Tensor:
    """A maker's output as dense tokens [B, N, D]: prefix tokens dropped, maps read row by row."""
    if features.ndim == 3:
        return features[:, prefix:]
    assert features.ndim == 4, f"neither tokens nor a map: {list(features.shape)}"
    return features.flatten(1, 2) if channels_last else features.flatten(2).transpose(1, 2)


def check_telling(expected: torch.Tensor) -> None:
    """The maker's tokens must be able to show a mistake: finite, and different from place to place."""
    assert expected.isfinite().all(), "the maker's own tokens are not finite; disturb less"
    spread = (expected - expected.mean(1, keepdim=True)).std() / expected.std()
    assert spread > 10 * TOLERANCE, f"the maker's own tokens hardly differ from place to place ({spread:.1e})"


def assert_same_tokens(found: torch.Tensor, expected: torch.Tensor, what: str, record: Any = None) -> None:
    """Within TOLERANCE of the maker's standard deviation."""
    check_telling(expected)
    assert found.shape == expected.shape, (
        f"{what}: {list(found.shape)} tokens, the maker has {list(expected.shape)}"
    )
    scale = float(expected.std())
    difference = float((found - expected).abs().max())
    if record is not None:
        record("maker's std", f"{scale:.3g}")
        record("max diff", f"{difference:.2g}")
    assert difference <= TOLERANCE * scale, f"{what}: max diff {difference:.3g}, maker's std {scale:.3g}"


def refusal(path: Path, *fragments: str, **options: Any) -> str:
    """The text with which a file is refused: one line that holds all fragments, as regular expressions."""
    from dse_monitor.checkpoints import load_encoder
    from dse_monitor.errors import DSEError

    try:
        encoder = load_encoder(path, **options)
    except DSEError as error:
        text = str(error)
    else:
        raise AssertionError(f"read as {encoder.arch} and not refused; expected {fragments}")
    assert "\n" not in text, text
    missing = [fragment for fragment in fragments if not re.search(fragment, text, re.IGNORECASE)]
    assert not missing, f"the refusal does not say {missing}: {text}"
    return text


# What timm's train.py records beside the model's name; its values where a run does not set them.
_TRAIN_PY = {
    "data_dir": "/data/imagenet", "dataset": "", "train_split": "train", "val_split": "validation",
    "class_map": "", "model": "resnet50", "pretrained": False, "pretrained_path": None,
    "initial_checkpoint": "", "resume": "", "no_resume_opt": False, "num_classes": None, "gp": None,
    "img_size": None, "in_chans": None, "input_size": None, "crop_pct": None, "mean": None, "std": None,
    "interpolation": "", "batch_size": 128, "channels_last": False, "fuser": "", "grad_accum_steps": 1,
    "grad_checkpointing": False, "model_kwargs": {}, "head_init_scale": None, "head_init_bias": None,
    "torchscript": False, "torchcompile": None, "opt": "sgd", "opt_eps": None, "opt_betas": None,
    "momentum": 0.9, "weight_decay": 2e-5, "clip_grad": None, "clip_mode": "norm", "layer_decay": None,
    "sched": "cosine", "lr": 0.05, "epochs": 300, "aa": None, "drop": 0.0, "drop_path": None,
    "drop_block": None, "bn_momentum": None, "bn_eps": None, "sync_bn": False, "model_ema": False,
    "seed": 42, "amp": False, "amp_dtype": "float16", "crop_mode": None, "train_crop_mode": None,
    "use_multi_epochs_loader": False, "local_rank": 0, "experiment": "", "output": "",
}  # fmt: skip


def train_py_args(
    model: str, model_kwargs: dict[str, Any] | None = None, **others: Any
) -> argparse.Namespace:
    """The arguments that timm's train.py has, and gives to its saver."""
    return argparse.Namespace(**{**_TRAIN_PY, "model": model, "model_kwargs": model_kwargs or {}, **others})


def timm_network(args: argparse.Namespace, seed: int = 0) -> Any:
    """The network train.py would build of these arguments, disturbed."""
    import timm

    torch.manual_seed(seed)
    channels = args.in_chans or (args.input_size[0] if args.input_size else 3)
    named = {"num_classes": args.num_classes, "global_pool": args.gp, "bn_eps": args.bn_eps}
    stated = {name: value for name, value in named.items() if value is not None}  # as create_model does
    model = timm.create_model(args.model, in_chans=channels, **stated, **args.model_kwargs)
    size = timm.data.resolve_data_config(vars(args), model=model)["input_size"]
    return disturb(model, seed, lambda network: network.forward_features(images(size[1:], channels)))


def write_as_timm(model: Any, args: argparse.Namespace | None, folder: Path) -> Path:
    """The file of timm's own saver after five epochs."""
    from timm.utils.checkpoint_saver import CheckpointSaver

    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    saver = CheckpointSaver(model, optimizer, args=args, checkpoint_dir=str(folder), recovery_dir=str(folder))
    saver.save_checkpoint(4, metric=0.5)
    (folder / "last.pth.tar").unlink()
    return folder / "checkpoint-4.pth.tar"


@torch.no_grad()
def timm_tokens(model: Any, pixels: torch.Tensor, prefix: int | None = None) -> torch.Tensor:
    """What timm's network makes of images, as dense tokens.

    Args:
        model: of timm.
        pixels: [B, C, H, W].
        prefix: tokens before the dense ones, where the model's own `num_prefix_tokens` does not say so.
    """
    features = model.forward_features(pixels)
    before = getattr(model, "num_prefix_tokens", 0) if prefix is None else prefix
    return rows(features, prefix=before, channels_last=getattr(model, "output_fmt", "NCHW") == "NHWC")
