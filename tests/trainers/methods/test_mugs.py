"""Mugs against vectors made with sail-sg/mugs, at the tolerances of its fact sheet."""

import dataclasses

import pytest
import torch
from torch import nn

from trainers import backbones
from trainers.centre import updated_centre
from trainers.heads import DINOHead
from trainers.method import Plan, Progress
from trainers.methods.mugs import (
    ContrastHead,
    Memory,
    Mugs,
    MugsRecipe,
    Network,
    contrast_pairs,
    granular_mean,
    weighted_mean,
)
from trainers.objectives import centred_softmax, pair_cross_entropies
from trainers.queues import KeyQueue

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
    centre, tau = g["group/center_before"], float(g["group/teacher_temp_schedule"][g["epoch"]])
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
    spec = backbones.describe(
        "vit_mini_patch8",
        g["vit/images"].shape[-1],
        patch_size=g["vit/patch_size"],
        embed_dim=width,
        depth=1,
        num_heads=heads,
        mlp_ratio=g["vit/mlp_ratio"],
    )
    network = Network(backbones.build(spec), heads, MugsRecipe.tiny(), predicts=False).eval()
    block = network.relation_blocks[0]
    inner = len(g["vit/param/relation_blocks.0.mlp.fc1.weight"])
    block.mlp.fc1, block.mlp.fc2 = nn.Linear(width, inner), nn.Linear(inner, width)
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
    assert MugsRecipe().patch_lr_scale == g["sched/patch_embed_lr_mult"]


def test_parameter_groups_equal_official(g):
    groups = Mugs(MugsRecipe.tiny()).parameter_groups()

    def official(group):  # the vectors list a depth-1 backbone with its relation block
        names = {name.removeprefix("backbone.") for name, _ in group.parameters if "head" not in name}
        return {name for name in names if not name.startswith("blocks.") or name.startswith("blocks.0.")}

    order = ("normal_params", "patch_embed", "no_wd", "patch_embed_no_wd")
    assert [official(group) for group in groups] == [set(g[f"groups/{k}"].split("\n")) for k in order]
    assert [group.lr_scale for group in groups] == [1.0, 0.2, 1.0, 0.2]
    assert [group.weight_decay for group in groups] == ["weight_decay"] * 2 + [""] * 2


def test_only_weakly_augmented_images_enter_the_students_memory():
    method = Mugs(dataclasses.replace(MugsRecipe.tiny(), local_crops=1))
    before = method.student_memory.searched.clone()
    features = torch.ones(4, 96)
    method._remembered.append((features, features, torch.tensor([True, False, False, True])))
    method.after_step(Progress(Plan(1, 1, 4, 4), 0, {"teacher_momentum": 1.0}))
    changed = (method.student_memory.searched != before).any(1)
    assert changed.sum() == 2
    assert (method.teacher_memory.searched == 1).all(1).sum() == 4
