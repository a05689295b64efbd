"""Mugs against vectors made with sail-sg/mugs, at the tolerances of its fact sheet."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from dse_monitor.trainers import backbones
from dse_monitor.trainers.blocks import optim
from dse_monitor.trainers.blocks.centre import updated_centre
from dse_monitor.trainers.blocks.heads import ContrastHead, DINOHead
from dse_monitor.trainers.blocks.objectives import centred_softmax, pair_cross_entropies
from dse_monitor.trainers.blocks.queues import KeyQueue
from dse_monitor.trainers.blocks.relations import Memory
from dse_monitor.trainers.engine.data import seeded
from dse_monitor.trainers.method import Plan, Progress, Views
from dse_monitor.trainers.methods.mugs import (
    Mugs,
    MugsRecipe,
    Network,
    Seen,
    clip_norm,
    contrast_pairs,
    granular_mean,
    weighted_mean,
)

LOSS = {"rtol": 1e-5, "atol": 0.0}
GRADIENT = {"rtol": 1e-4, "atol": 1e-6}
STATE = {"rtol": 0.0, "atol": 1e-6}
OUTPUT = {"rtol": 0.0, "atol": 1e-5}


@pytest.fixture(scope="module")
def g(golden):
    return golden("mugs")


@pytest.mark.parametrize("kind", ["instance", "local_group"])
def test_contrast_and_its_queue_equal_official_over_three_steps(g, kind):
    queue = KeyQueue(*g[f"{kind}/queue_before"].shape)
    queue.columns = g[f"{kind}/queue_before"].clone()
    queue.pointer.fill_(g[f"{kind}/ptr_before"])
    for t in (1, 2, 3):
        step = {k.rsplit("/", 1)[1]: v for k, v in g.items() if k.startswith(f"{kind}/step{t}/")}
        student = step["student"].clone().requires_grad_()
        keys = step["teacher"].unflatten(0, (2, -1))
        queries = student.unflatten(0, (g["ncrops"], -1))
        loss = granular_mean(contrast_pairs(queries, keys, queue.columns, g[f"{kind}_temp"]))
        loss.backward()
        queue.observe(keys[0])
        queue.observe(keys[1])
        queue.update()
        torch.testing.assert_close(loss.detach(), step["loss"], **LOSS)
        torch.testing.assert_close(student.grad, step["grad_student"], **GRADIENT)
        torch.testing.assert_close(queue.columns, step["queue_after"], **STATE)
        assert queue.pointer.item() == step["ptr_after"]


def test_group_loss_and_centre_equal_official_over_three_steps(g):
    names = ("warmup_teacher_temp", "teacher_temp", "warmup_teacher_temp_epochs", "nepochs")
    table = optim.epoch_table(*(g[name] for name in names), 1)
    np.testing.assert_allclose(table, g["group/teacher_temp_schedule"].numpy(), atol=1e-12, rtol=0)
    centre, tau = g["group/center_before"], float(table[g["epoch"]])
    for t in (1, 2, 3):
        step = {k.rsplit("/", 1)[1]: v for k, v in g.items() if k.startswith(f"group/step{t}/")}
        student = step["student"].clone().requires_grad_()
        targets = centred_softmax(step["teacher"], centre, tau).unflatten(0, (2, -1))
        pairs = pair_cross_entropies(student.unflatten(0, (g["ncrops"], -1)), targets, g["student_temp"])
        loss = granular_mean(pairs)
        loss.backward()
        centre = updated_centre(centre, step["teacher"].mean(0, keepdim=True), g["center_momentum"])
        torch.testing.assert_close(loss.detach(), step["loss"], **LOSS)
        torch.testing.assert_close(student.grad, step["grad_student"], **GRADIENT)
        torch.testing.assert_close(centre, step["center_after"], **STATE)


@pytest.mark.parametrize("case", [0, 1, 2])
def test_combination_of_the_losses_equals_official(g, case):
    losses = [g[f"{kind}/step1/loss"] for kind in ("instance", "local_group", "group")]
    total = weighted_mean(losses, g[f"total/{case}/weights"].tolist())
    torch.testing.assert_close(total, g[f"total/{case}/value"], **LOSS)


@pytest.fixture
def memory(g):
    memory = Memory(g["mem/dim"], g["mem/size"], g["mem/top_n"])
    memory.searched = g["mem/queue_q_before"].clone()
    memory.returned = g["mem/queue_k_before"].clone()
    memory.pointer.fill_(g["mem/ptr_before"])
    return memory


def test_neighbours_equal_official(g, memory):
    index = memory.nearest(g["mem/query"])
    assert torch.equal(index, g["mem/index"])
    torch.testing.assert_close(memory.returned[index], g["mem/k"], **STATE)


def test_six_pushes_equal_official_with_its_skipping_pointer(g, memory):
    for i in range(6):
        push = {k.rsplit("/", 1)[1]: v for k, v in g.items() if k.startswith(f"mem/push{i}/")}
        memory.push(push["x"], push["weak_flags"].bool() if push["flags_given"] else None)
        torch.testing.assert_close(memory.searched, push["queue_q_after"], **STATE)
        torch.testing.assert_close(memory.returned, push["queue_k_after"], **STATE)
        assert memory.pointer.item() == push["ptr_after"]


def test_forward_with_memory_equals_official(g):
    width, heads = g["vit/param/norm.weight"].numel(), g["vit/num_heads"]
    depth = sum(key.endswith(".norm1.weight") and "/blocks." in key for key in g if key.startswith("vit/"))
    spec = backbones.describe(
        "vit_mini_patch8",
        g["vit/images"].shape[-1],
        patch_size=g["vit/patch_size"],
        embed_dim=width,
        depth=depth,
        num_heads=heads,
        mlp_ratio=g["vit/mlp_ratio"],
    )
    network = Network(backbones.build(spec), heads, MugsRecipe.tiny(), predicts=False).eval()
    prefix, state = "vit/param/", {}
    for key, value in g.items():
        if key.startswith(prefix):
            name = key[len(prefix) :]
            state[name if name.startswith("relation") else f"backbone.{name}"] = value
    missing, unexpected = network.load_state_dict(state, strict=False)
    assert not unexpected
    assert all("head" in name for name in missing)
    memory = Memory(width, len(g["vit/mem_queue_q"]), g["mem/top_n"])
    memory.searched, memory.returned = g["vit/mem_queue_q"], g["vit/mem_queue_k"]
    with torch.no_grad():
        tokens, related = network.encode(g["vit/images"], memory)
    assert torch.equal(memory.nearest(g["vit/memory_query"]), g["vit/memory_index"])
    torch.testing.assert_close(tokens, g["vit/tokens"], **OUTPUT)
    torch.testing.assert_close(related, g["vit/relation_out"], **OUTPUT)
    torch.testing.assert_close(tokens[:, 1:].mean(1), g["vit/memory_token"], **OUTPUT)


def parameters(g, prefix):
    return {k[len(prefix) :]: v for k, v in g.items() if k.startswith(prefix)}


def test_contrast_head_equals_official_on_both_sides(g):
    state = parameters(g, "head_instance/param/")
    hidden, width = state["projector.0.weight"].shape
    projection, inner = len(state["projector.4.weight"]), len(state["predictor.0.weight"])
    student = ContrastHead(width, hidden, projection, inner)
    student.load_state_dict(state)
    teacher = ContrastHead(width, hidden, projection, None)
    teacher.load_state_dict({k: v for k, v in state.items() if k.startswith("projector")})
    x = g["head_instance/in"]
    torch.testing.assert_close(student(x).detach(), g["head_instance/out_prediction"], **OUTPUT)
    torch.testing.assert_close(teacher(x).detach(), g["head_instance/out_target"], **OUTPUT)


def test_group_head_equals_official(g):
    state = {k.replace("projector", "mlp"): v for k, v in parameters(g, "head_group/param/").items()}
    hidden, width = state["mlp.0.weight"].shape
    head = DINOHead(
        width,
        len(state["last_layer.weight_v"]),
        hidden=hidden,
        bottleneck=len(state["mlp.4.weight"]),
        norm_last_layer=False,
    )
    head.load_state_dict(state)
    torch.testing.assert_close(head(g["head_group/in"]).detach(), g["head_group/out"], **OUTPUT)


def test_schedules_equal_official(g, distillation_schedules):
    distillation_schedules(g, Mugs)


def test_parameter_groups_equal_official(g):
    scale = g["sched/patch_embed_lr_mult"]
    groups = Mugs(dataclasses.replace(MugsRecipe.tiny(), patch_lr_scale=scale)).parameter_groups()

    def first_block(names):  # the vectors list a backbone of some depth with its relation block
        return {name for name in names if not name.startswith("blocks.") or name.startswith("blocks.0.")}

    ours = [
        first_block(name.removeprefix("backbone.") for name, _ in group.parameters if "head" not in name)
        for group in groups
    ]
    order = ("normal_params", "patch_embed", "no_wd", "patch_embed_no_wd")
    assert ours == [first_block(g[f"groups/{k}"].split("\n")) for k in order]
    assert [group.lr_scale for group in groups] == [1.0, scale, 1.0, scale]
    assert [group.weight_decay for group in groups] == ["weight_decay"] * 2 + [""] * 2


def test_only_weakly_augmented_images_enter_the_students_memory():
    method = Mugs(dataclasses.replace(MugsRecipe.tiny(), local_crops=1))
    before = method.student_memory.searched.clone()
    features, keys = torch.ones(4, 96), torch.ones(4, 2, method.recipe.projection)
    method._seen.append(Seen(keys, keys, features, features, torch.tensor([True, False, False, True])))
    method.after_step(Progress(Plan(1, 1, 4, 4), 0, {"teacher_momentum": 1.0}))
    changed = (method.student_memory.searched != before).any(1)
    assert changed.sum() == 2
    assert (method.teacher_memory.searched == 1).all(1).sum() == 4


# What is easily got wrong, one claim each ------------------------------------------------------------------

BATCH = 4


def small(**options):
    """A method of a few parameters."""
    sizes = {"prototypes": 32, "queue_length": 24, "memory_length": 16, "local_crops": 2}
    sizes |= {"head_hidden": 16, "predictor_hidden": 16, "projection": 8, "head_bottleneck": 8}
    torch.manual_seed(0)
    return Mugs(dataclasses.replace(MugsRecipe.tiny(), **{**sizes, **options}))


def crops(method, batch=BATCH):
    """Random teacher and student crops; every other image is weak."""
    r = method.recipe
    sizes = [r.image_size] * 4 + [r.local_size] * r.local_crops
    weak = torch.arange(batch) % 2 == 0
    return Views([torch.randn(batch, 3, size, size) for size in sizes], {"weak": weak})


def step(method, epoch=0):
    values = {"teacher_temperature": 0.04, "teacher_momentum": 0.9}
    return Progress(Plan(300, 1, BATCH, BATCH), epoch, values)


def test_pair_of_equal_index_is_skipped_though_its_crops_are_different_draws():
    pairs = torch.tensor([[100.0, 1.0, 5.0, 7.0], [3.0, 100.0, 9.0, 11.0]])
    assert granular_mean(pairs) == (2.0 + 8.0) / 2


def test_large_and_small_crops_count_the_same_however_many_there_are():
    few, many = torch.full((2, 3), 1.0), torch.full((2, 12), 1.0)
    few[:, 2:], many[:, 2:] = 5.0, 5.0
    assert granular_mean(few) == granular_mean(many) == 3.0


def test_without_small_crops_the_large_ones_count_in_full():
    assert granular_mean(torch.tensor([[9.0, 1.0], [3.0, 9.0]])) == 2.0


def test_weights_switch_losses_but_do_not_scale_them():
    losses = [torch.tensor(value) for value in (1.0, 2.0, 4.0)]
    assert weighted_mean(losses, (0.5, 2.0, 0.0)) == 3.0 / 2.5


def test_query_pools_all_tokens_before_the_norm():
    method = small()
    network, memory = method.teacher, method.teacher_memory
    seen = []
    memory.nearest = lambda query: seen.append(query) or torch.zeros(len(query), 3, dtype=torch.long)
    with torch.no_grad():
        images = torch.randn(2, 3, 64, 64)
        network.encode(images, memory)
        raw = backbones.vit_encode(
            network.backbone, backbones.vit_embed(network.backbone, images), norm=False
        )
    assert raw.shape[1] == 1 + 64  # with the cls token
    torch.testing.assert_close(seen[0], raw.mean(1))


def test_memory_takes_the_first_large_crops_patches_after_the_norm():
    method = small()
    views = crops(method)
    with torch.no_grad():
        tokens, _ = method.teacher.encode(views.images[0], method.teacher_memory)
    method(views, step(method))
    torch.testing.assert_close(method._seen[0].target, tokens[:, 1:].mean(1), rtol=1e-4, atol=1e-5)


def test_neighbours_and_negatives_are_those_of_the_steps_before():
    method = small()
    kept = ("student_memory", "teacher_memory", "instance_queue", "local_group_queue", "centre")
    before = {k: v.clone() for k, v in method.state_dict().items() if k.split(".")[0] in kept}
    progress = step(method)
    out = method(crops(method), progress)
    now = method.state_dict()
    assert all(torch.equal(now[name], value) for name, value in before.items())
    out.loss.backward()
    method.after_step(progress)
    now = method.state_dict()
    assert all(not torch.equal(now[name], value) for name, value in before.items())


def test_each_queue_takes_both_teacher_views_of_every_image():
    method = small()
    method(crops(method), step(method))
    method.after_step(step(method))
    assert method.instance_queue.pointer.item() == 2 * BATCH
    assert method.local_group_queue.pointer.item() == 2 * BATCH


def test_views_enter_the_queue_one_after_the_other_whatever_the_micro_batches():
    keys = torch.arange(24.0).view(4, 2, 3)  # images, views, width
    columns = []
    for parts in (1, 2):
        method = small(projection=3)
        for part in keys.chunk(parts):
            rest = torch.zeros(len(part), 96)
            method._seen.append(Seen(part, part, rest, rest, torch.ones(len(part), dtype=torch.bool)))
        method.after_step(step(method))
        columns.append(method.instance_queue.columns[:, :8].T)
        assert method.teacher_memory.pointer.item() == 2 * 4  # skipped once, not once for each part
    assert torch.equal(columns[0], torch.cat([keys[:, 0], keys[:, 1]]))
    assert torch.equal(*columns)


def test_queue_shorter_than_both_views_keeps_the_later_ones():
    queue = KeyQueue(2, 5)
    first, second = torch.arange(12.0).view(2, 3, 2)
    queue.observe(first)
    queue.observe(second)
    queue.update()
    assert queue.pointer.item() == 1
    assert torch.equal(queue.columns.T, torch.stack([second[2], *first[1:], *second[:2]]))


def test_pointer_of_the_memory_skips_a_chunk_unless_it_wraps():
    memory = Memory(2, 6, neighbours=1)
    start = memory.searched.clone()
    memory.push(torch.ones(2, 2))
    assert memory.pointer.item() == 4
    memory.push(torch.full((3, 2), 2.0))
    assert memory.pointer.item() == 1
    expected = torch.stack([*torch.tensor([[2.0, 2.0], [1.0, 1.0]]), *start[2:4], *torch.full((2, 2), 2.0)])
    assert torch.equal(memory.returned[[0, 1, 4, 5]], expected[[0, 1, 4, 5]])
    assert torch.equal(memory.searched, expected)


def test_no_weak_image_leaves_the_memory_alone():
    memory = Memory(2, 6, neighbours=1)
    before = memory.searched.clone()
    memory.push(torch.ones(3, 2), torch.zeros(3, dtype=torch.bool))
    assert memory.pointer.item() == 0
    assert torch.equal(memory.searched, before)


def test_projector_starts_as_the_authors_and_predictor_as_torch():
    torch.manual_seed(0)
    head = ContrastHead(64, 256, 64, 256)
    for layer, deviation in ((head.projector[0], 0.02), (head.predictor[0], (3 * 64) ** -0.5)):
        assert layer.weight.std().item() == pytest.approx(deviation, rel=0.05)


def test_vit_large_is_clipped_ten_times_tighter_after_epoch_100():
    large = MugsRecipe.vit_large()
    assert [clip_norm(large, epoch) for epoch in (0, 100)] == [3.0, 3.0]
    assert clip_norm(large, 101) == pytest.approx(0.3)
    assert clip_norm(MugsRecipe(), 101) == clip_norm(MugsRecipe.vit_base(), 101) == 3.0


def test_clipping_is_that_of_the_epoch():
    method = small(late_clip_epoch=3)
    method.recipe = dataclasses.replace(method.recipe, backbone="vit_large_patch16_224")
    weight = method.student.backbone.norm.weight
    for epoch, norm in ((3, 3.0), (4, 0.3)):
        weight.grad = torch.full_like(weight, 100.0)
        method.after_backward(step(method, epoch))
        assert weight.grad.norm().item() == pytest.approx(norm, rel=1e-4)


def test_prototypes_rest_in_the_first_epoch_alone():
    method = small()
    head = method.student.group_head
    for epoch, resting in ((0, True), (1, False)):
        for parameter in head.parameters():
            parameter.grad = torch.ones_like(parameter)
        method.after_backward(step(method, epoch))
        assert all((p.grad is None) is resting for p in head.last_layer.parameters())
        assert all(p.grad is not None for p in head.mlp.parameters())


def test_patch_projection_learns_five_times_more_slowly():
    groups = small().parameter_groups()
    slow = {name for group in groups if group.lr_scale == 0.2 for name, _ in group.parameters}
    assert slow == {"backbone.patch_embed.proj.weight", "backbone.patch_embed.proj.bias"}


def test_loss_that_is_off_trains_nothing():
    method = small(local_group_weight=0.0)
    out = method(crops(method), step(method))
    out.loss.backward()
    idle = [name for name, p in method.student.named_parameters() if not p.requires_grad]
    assert idle
    assert all(name.startswith(("local_group_head.", "relation_blocks.")) for name in idle)
    trained = [p for p in method.student.parameters() if p.requires_grad]
    assert all(p.grad is not None for p in trained)
    mean = (out.logs["instance_loss"] + out.logs["group_loss"]) / 2
    torch.testing.assert_close(out.loss.detach(), mean)


def test_all_losses_off_is_refused():
    with pytest.raises(ValueError, match="at least one of instance_weight"):
        small(instance_weight=0.0, local_group_weight=0.0, group_weight=0.0)


def test_local_crops_as_large_as_the_large_ones_stay_out_of_dense_tokens_and_memory():
    method = small(local_size=64)
    out = method(crops(method), step(method))
    assert out.dense.shape[0] == 2 * BATCH
    assert [len(part) for part in method._seen[0]] == [BATCH] * 5


@pytest.fixture
def image() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 90, 3), dtype=np.uint8))


def transform(recipe):
    with torch.device("meta"):
        return Mugs(recipe).views()


def draws(recipe, image, count=12):
    view, drawn = transform(recipe), []
    for key in range(count):
        with seeded(key):
            drawn.append(view(image))
    return drawn


def test_one_draw_decides_both_large_crops_of_the_student_and_is_reported(image):
    seen = {bool(views.extra["weak"]) for views in draws(MugsRecipe.tiny(), image)}
    assert seen == {True, False}
    for share in (0.0, 1.0):
        recipe = dataclasses.replace(MugsRecipe.tiny(), weak_share=share)
        assert {bool(views.extra["weak"]) for views in draws(recipe, image, 4)} == {bool(share)}


def test_student_may_be_given_the_teachers_large_crops(image):
    (same,) = draws(dataclasses.replace(MugsRecipe.tiny(), same_large_crops=True), image, 1)
    assert all(torch.equal(same.images[i], same.images[2 + i]) for i in (0, 1))
    assert bool(same.extra["weak"])
    (own,) = draws(dataclasses.replace(MugsRecipe.tiny(), weak_share=1.0), image, 1)
    assert not any(torch.equal(own.images[i], own.images[2 + i]) for i in (0, 1))


def test_crops_are_two_for_the_teacher_two_and_ten_for_the_student(image):
    (views,) = draws(MugsRecipe(), image, 1)
    assert [v.shape[-1] for v in views.images] == [224] * 4 + [96] * 10
