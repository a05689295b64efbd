"""Trees and the files beside them for the fuzzer: described as JSON, or made by edits of a few real ones.

In the description, ``{"!t": [dtype, shape]}`` is a tensor and ``{"!o": [name, state]}`` an object that was
pickled by its class. Networks of timm and transformers are built only where they are small.
"""

import copy
import json
from pathlib import Path
from typing import Any

from dse_monitor.checkpoints.archive import Archive, Opaque, TensorRef, attributes
from dse_monitor.checkpoints.named import timm_networks, transformers_networks
from dse_monitor.checkpoints.options import ReadingOptions
from dse_monitor.checkpoints.reading.contents import ITEM_SIZES
from dse_monitor.checkpoints.recognition.recognise import recognise

SMALL_NETWORKS = ("test_vit", "test_vit3", "test_resnet", "test_convnext", "test_efficientnet")
LARGEST = 128  # of a number among a small network's arguments, sides of images apart


def vit(width: int = 192, depth: int = 2, patch: int = 16, tokens: int = 5) -> dict[str, Any]:
    """Tensors of a vision transformer as timm names them."""
    shapes = {
        "cls_token": [1, 1, width], "pos_embed": [1, tokens, width],
        "patch_embed.proj.weight": [width, 3, patch, patch], "patch_embed.proj.bias": [width],
        "norm.weight": [width], "norm.bias": [width],
    }  # fmt: skip
    for block in range(depth):
        for name, shape in {
            "norm1": [width], "attn.qkv": [3 * width, width], "attn.proj": [width, width], "norm2": [width],
            "mlp.fc1": [4 * width, width], "mlp.fc2": [width, 4 * width],
        }.items():  # fmt: skip
            shapes[f"blocks.{block}.{name}.weight"] = shape
            shapes[f"blocks.{block}.{name}.bias"] = shape[:1]
    return {name: tensor(shape) for name, shape in shapes.items()}


def resnet(width: int = 64) -> dict[str, Any]:
    """Tensors of a residual network of one basic block a stage, as torchvision names them."""
    made: dict[str, Any] = {"conv1.weight": tensor([width, 3, 7, 7]), **_norm("bn1", width)}
    before = width
    for stage in range(1, 5):
        after = width << (stage - 1)
        for number, inner in ((1, before), (2, after)):
            made[f"layer{stage}.0.conv{number}.weight"] = tensor([after, inner, 3, 3])
            made |= _norm(f"layer{stage}.0.bn{number}", after)
        if after != before:
            made[f"layer{stage}.0.downsample.0.weight"] = tensor([after, before, 1, 1])
            made |= _norm(f"layer{stage}.0.downsample.1", after)
        before = after
    return made


def _norm(name: str, width: int) -> dict[str, Any]:
    fields = ("weight", "bias", "running_mean", "running_var")
    return {f"{name}.{field}": tensor([width]) for field in fields}


def tensor(shape: list[int], dtype: str = "float32") -> TensorRef:
    """A tensor without bytes."""
    count = 1
    for side in shape:
        count *= side
    return TensorRef(dtype, tuple(shape), count * ITEM_SIZES[dtype])


def under(prefix: str, state: dict[str, Any]) -> dict[str, Any]:
    """The same tensors below a prefix."""
    return {prefix + name: value for name, value in state.items()}


def lora(state: dict[str, Any]) -> dict[str, Any]:
    """With adapters of peft at every qkv."""
    made: dict[str, Any] = {}
    for name, ref in state.items():
        layer, _, kind = name.rpartition(".")
        made[
            f"base_model.model.{layer}.base_layer.{kind}" if "qkv" in name else f"base_model.model.{name}"
        ] = ref
        if name.endswith("qkv.weight"):
            made[f"base_model.model.{layer}.lora_A.default.weight"] = tensor([4, ref.shape[1]])
            made[f"base_model.model.{layer}.lora_B.default.weight"] = tensor([ref.shape[0], 4])
    return made


def normed(state: dict[str, Any]) -> dict[str, Any]:
    """With weight norm, old and new, spectral norm and pruning in turn."""
    made: dict[str, Any] = {}
    for number, (name, ref) in enumerate(state.items()):
        layer, _, kind = name.rpartition(".")
        new = f"{layer}.parametrizations.{kind}"
        length = tensor([ref.shape[0]] + [1] * (len(ref.shape) - 1))
        made |= {
            0: {f"{new}.original0": length, f"{new}.original1": ref},
            1: {f"{name}_g": length, f"{name}_v": ref},
            2: {f"{name}_orig": ref, f"{name}_mask": ref},
            3: {f"{new}.original": ref, f"{new}.0._u": tensor([ref.shape[0]]), f"{new}.0._v": tensor([1])},
        }.get(number % 5 if kind == "weight" else 4, {name: ref})
    return made


MMLAB = (
    "model = dict(type='MAE', backbone=dict(type='MAEViT', arch='b', img_size=(32, 32), patch_size=16,\n"
    "    norm_cfg=dict(type='LN', eps=1e-6), act_cfg=dict(type='GELU'), strides=[1, 2, 2, 2],\n"
    "    in_channels=3),\n"
    "    data_preprocessor=dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True))\n"
)
VIT, RESNET = vit(), resnet()
_IMAGES = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "interpolation": "bicubic", "crop_pct": 0.9}
_ARGS: dict[str, Any] = {
    "model": "test_vit", "img_size": None, "input_size": [3, 160, 160], "in_chans": 3, "gp": None, **_IMAGES,
    "model_kwargs": {"depth": 2, "num_heads": 2, "act_layer": "gelu"},
}  # fmt: skip
_SOLO = {
    "method": "mocov3",
    "backbone": {"name": "vit_tiny"},
    "data": {"dataset": "cifar10"},
    "max_epochs": 9,
}
_CONFIG: dict[str, Any] = {
    "model_type": "vit", "image_size": 32, "patch_size": 16, "hidden_size": 24, "num_hidden_layers": 1,
    "num_attention_heads": 3, "intermediate_size": 48, "layer_norm_eps": 1e-6, "hidden_act": "gelu",
    "num_channels": 3, "rope_parameters": {"rope_theta": 100.0}, "vision_config": {"hidden_size": 24},
}  # fmt: skip
_PROCESSOR = {
    "do_resize": True, "size": {"height": 32, "width": 32, "shortest_edge": 40}, "resample": 3,
    "do_center_crop": True, "crop_size": {"height": 32, "width": 32}, "crop_pct": 0.875, "do_rescale": True,
    "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
}  # fmt: skip
_CLIP = {
    "model_cfg": {"quick_gelu": True, "vision_cfg": {
        "timm_model_name": "test_vit", "width": 192, "head_width": 64, "image_size": 32, "patch_size": 16}},
    "preprocess_cfg": {**_IMAGES, "size": [32, 32], "resize_mode": "squash"},
}  # fmt: skip
_HUB = {
    "architecture": "test_vit", "num_classes": 0, "global_pool": "token", "model_args": {"depth": 2},
    "pretrained_cfg": {"input_size": [3, 160, 160], "crop_mode": "center", **_IMAGES},
}  # fmt: skip
_PEFT = {
    "peft_type": "LORA", "r": 4, "lora_alpha": 8, "use_rslora": False, "use_dora": False, "bias": "none",
    "rank_pattern": {"blocks.0.attn.qkv": 4}, "alpha_pattern": {"qkv": 8}, "init_lora_weights": True,
    "target_modules": ["qkv"], "fan_in_fan_out": False, "base_model_name_or_path": "nowhere",
}  # fmt: skip


def namespace(**values: Any) -> Opaque:
    """Arguments as argparse pickles them."""
    return Opaque("argparse.Namespace", (), values)


# (tree, files beside it)
BASES: list[tuple[Any, dict[str, Any]]] = [
    ({"model": VIT, "args": {"num_heads": 3, **_IMAGES}}, {}),
    ({"epoch": 3, "arch": "test_vit", "state_dict": VIT, "version": 2, "args": namespace(**_ARGS)}, {}),
    ({"epoch": 3, "arch": "resnet18", "state_dict": RESNET, "version": 2, "args": namespace(**_ARGS)}, {}),
    (VIT, {"config.json": _HUB}),
    (under("vit.", VIT), {"config.json": _CONFIG, "preprocessor_config.json": _PROCESSOR,
                          "trainer_state.json": {"epoch": 1.5, "global_step": 30}}),
    (under("visual.trunk.", VIT), {"open_clip_config.json": _CLIP}),
    ({"model": lora(VIT), "cfg": {"num_heads": 3}}, {"adapter_config.json": _PEFT}),
    ({"model": normed(VIT), "epoch": 3}, {}),
    ({"state_dict": under("backbone.", VIT), "hyper_parameters": _SOLO, "pytorch-lightning_version": "2.1",
      "global_step": 30, "epoch": 3}, {"args.json": _SOLO}),
    ({"student": under("module.backbone.", VIT), "teacher": under("backbone.", VIT), "dino_loss": {},
      "optimizer": {}, "epoch": 3, "args": namespace(arch="vit_tiny", **_IMAGES)}, {}),
    ({"model": VIT, "args": namespace(model="mae_vit_small_patch16", input_size=32), "scaler": {}, "epoch": 1,
      "optimizer": {}}, {}),
    ({"meta": {"cfg": MMLAB, "epoch": 3}, "state_dict": under("backbone.", RESNET)}, {}),
    ({"hyper_parameters": {"model_name": "test_vit3", "model_kwargs": {"img_size": 64}, "num_heads": 3,
                           "deep": {"deeper": {"image_size": [32, 48], "norm_eps": 1e-5}}},
      "state_dict": under("model.", VIT)}, {"params.txt": {"model": "quickgelu", "force_quick_gelu": "x"}}),
    (under("module.", RESNET), {"config.json": {"model_type": "resnet", "hidden_act": "relu",
                                                "downsample_in_first_stage": False}}),
]  # fmt: skip


def add_built() -> None:
    """More bases, with all tensors of networks that timm and transformers build."""
    kwargs = {"depth": 2, "num_heads": 2, "act_layer": "gelu"}
    named = timm_networks.Named(arch="test_vit", source="", arguments=kwargs)
    state = {name: tensor(list(shape)) for name, shape in timm_networks.plain(named).tensors.items()}
    run = {"epoch": 3, "arch": "test_vit", "state_dict": state, "version": 2, "args": namespace(**_ARGS)}
    BASES.append((run, {}))
    BASES.append((under("module.", state), {"config.json": {**_HUB, "model_args": kwargs}}))
    config = {**_CONFIG, "model_type": "yolos", "image_size": [32, 32], "num_detection_tokens": 2}
    network = transformers_networks.described(config)
    if network is not None:
        made = network.made
        state = {network.in_file[name]: tensor(list(shape)) for name, shape in made.tensors.items()}
        BASES.append((under("vit.", state), {"config.json": config, "preprocessor_config.json": _PROCESSOR}))


_NAN = float("nan")
HOSTILE: list[Any] = [
    None,
    True,
    0,
    -1,
    1,
    3,
    7,
    64,
    10**400,
    -(10**400),
    1 << 62,
    10**5000,
    1e308,
    1e-320,
    0.0,
    -0.5,
    _NAN,
    float("inf"),
    "",
    "a",
    "None",
    "0x10",
    "1e999",
    "\0",
    "\n",
    "\ud800",
    "é" * 50,
    "." * 200,
    "a" * 2000,
    "(a+)+$",
    "{}{0}%s",
    "../x",
    "gelu",
    "avg",
    [],
    [[]],
    [1],
    [0, 0],
    [3, 0, 0],
    [-1, 5, 5],
    [10**400] * 3,
    [_NAN] * 3,
    [0.5] * 3,
    [0.0] * 3,
    ["a"],
    [None],
    list(range(70)),
    [[[[[1]]]]],
    {},
    {"a": {}},
    {"": 1},
    b"bytes",
    (1, 2),
    {1: 2},
    1j,
    frozenset({1}),
    Opaque("os.system", ("x",)),
    Opaque("a.B", (), {"a": 1}),
    Opaque("omegaconf.dictconfig.DictConfig", (), {"_content": [1]}),
    Opaque("collections.OrderedDict", (), None, {1: 2, "num_heads": 3}),
    *(
        tensor(shape)
        for shape in ([], [0], [1], [192, 192], [0, 0, 0, 0], [1] * 64, [1 << 61], [1, 1 << 40, 192])
    ),
    tensor([2, 3], "int64"),
    tensor([192], "float8_e8m0fnu"),
    tensor([2], "complex32"),
    tensor([3, 3], "bool"),
]
WORDS = sorted(
    {part for tree, beside in BASES for top in (tree, *beside.values()) for part in attributes(top)}
    | {part for name in (*VIT, *RESNET, *lora(VIT), *normed(VIT)) for part in name.split(".")}
    | {
        "",
        "module",
        "_orig_mod",
        "head",
        "decoder",
        "lora_A",
        "weight_g",
        "original2",
        "modules_to_save",
        "original_module",
        "num_batches_tracked",
        "relative_position_bias_table",
        "gamma_1",
        "ls1",
        "reg_token",
        "dist_token",
        "mask_token",
        "rope_embed",
        "periods",
        "fc_norm",
        "SCB",
        "qweight",
        "99999999999",
        "embeddings",
        "encoder",
        "layer",
        "attention",
        "query",
        "stages",
        "depth",
        "layers",
        "patch_size",
        "num_heads",
        "img_size",
        "backbone",
        "name",
        "state_dict",
        "ema",
        "shadow_params",
        "type",
        "_content",
        "magnitude",
    }
)


def parsed(raw: bytes) -> tuple[Any, dict[str, Any]]:
    """Tree and files beside it of a JSON text; empty ones of any other."""
    try:
        value = _made(json.loads(raw))
    except (ValueError, RecursionError):
        return {}, {}
    whole = isinstance(value, dict) and isinstance(value.get("beside"), dict)
    return (value.get("tree"), value["beside"]) if whole else (value, {})


def _made(value: Any) -> Any:
    if isinstance(value, list):
        return [_made(item) for item in value]
    if not isinstance(value, dict):
        return value
    match value:
        case {"!t": [str(dtype), [*shape]]} if dtype in ITEM_SIZES:
            return tensor([side % (1 << 62) if isinstance(side, int) else 1 for side in shape][:64], dtype)
        case {"!o": [str(name), state]}:
            return Opaque(name, (), _made(state))
    return {key: _made(item) for key, item in value.items()}


def written(number: int) -> bytes:
    """The description of a base."""
    tree, beside = BASES[number]
    return json.dumps({"tree": _said(tree), "beside": _said(beside)}).encode()


def _said(value: Any) -> Any:
    if isinstance(value, TensorRef):
        return {"!t": [value.dtype, list(value.shape)]}
    if isinstance(value, Opaque):
        return {"!o": [value.name, _said(value.state)]}
    return {key: _said(item) for key, item in value.items()} if isinstance(value, dict) else value


def edited(raw: bytes) -> tuple[Any, dict[str, Any]]:
    """A base after the edits these bytes ask for; each takes five of them."""
    if not raw:
        return {}, {}
    tree, beside = copy.deepcopy(BASES[raw[0] % len(BASES)])
    whole: dict[str, Any] = {"tree": tree, "beside": beside}
    for start in range(1, min(len(raw) - 4, 200), 5):
        depth, place, what, *which = raw[start : start + 5]
        number = which[0] * 256 + which[1]
        node: Any = whole
        parent: dict[Any, Any] = {}
        key: Any = None
        for level in range(depth % 5 + 1):
            inside = node.state if isinstance(node, Opaque) else node
            if not isinstance(inside, dict) or not inside:
                break
            parent = inside
            key = list(inside)[(place * (level + 1) + depth // 5) % len(inside)]
            node = inside[key]
        if parent:
            _edit(parent, key, what % 10, number)
    found = whole.get("beside")
    return whole.get("tree"), found if isinstance(found, dict) else {}


def _edit(parent: dict[Any, Any], key: Any, what: int, number: int) -> None:
    """One change to one entry."""
    value, other = parent.get(key), HOSTILE[number % len(HOSTILE)]
    word = WORDS[number % len(WORDS)]
    if what in (0, 1):
        parent[key] = other
    elif what == 2:
        del parent[key]
    elif what == 3:
        parent[word] = parent.pop(key)
    elif what == 4:
        parent[word] = other
    elif what == 5 and isinstance(key, str):
        parts = key.split(".")
        parts[number // 256 % len(parts)] = word
        parent[".".join(parts)] = value
    elif what == 6 and isinstance(value, TensorRef) and value.shape:
        sides = list(value.shape)
        sides[number // 256 % len(sides)] = (0, 1, 2, 3, 12, 64, 191, 384, 1 << 20, 1 << 61)[number % 10]
        parent[key] = tensor(sides, value.dtype)
    elif what == 7 and isinstance(value, dict):
        parent[key] = under(f"{word}.", value) if all(isinstance(name, str) for name in value) else value
    elif what == 8 and isinstance(value, (list, tuple)) and value:
        parent[key] = [*value[:-1], other]
    elif what == 9:
        parent[key] = {word: value}


def recognised(described: tuple[Any, dict[str, Any]]) -> None:
    """Everything a caller does with a tree, up to reading."""
    tree, beside = described
    archive = Archive(Path("run/checkpoint_3.pth"), "fuzz", tree, sidecars=beside)
    recognise(archive, ReadingOptions(), scalars=lambda refs: [1.0 for _ in refs])


def _small(value: Any, depth: int = 5) -> bool:
    if isinstance(value, dict):
        return all("size" in str(key) or _small(item, depth - 1) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return depth > 0 and len(value) <= 4 and all(_small(item, depth - 1) for item in value)
    return not isinstance(value, (int, float)) or abs(value) <= LARGEST


_timm, _transformers = timm_networks._make, transformers_networks._make


def _make_timm(arch: str, arguments: Any) -> Any:
    if arch not in SMALL_NETWORKS or not _small(arguments):
        raise ValueError("not built by the fuzzer")
    return _timm(arch, arguments)


def _make_transformers(tower: Any, settings: Any) -> Any:
    if not _small(settings) or settings.get("num_hidden_layers") not in (1, 2):
        raise ValueError("not built by the fuzzer")
    return _transformers(tower, settings)


timm_networks._make, transformers_networks._make = _make_timm, _make_transformers
