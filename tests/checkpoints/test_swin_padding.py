"""Swin on grids that windows do not divide: against attention written out token by token, tokens recorded
from EsViT's own class, and torchvision's network itself."""

import itertools
from pathlib import Path

import pytest
import torch
from timm.models.swin_transformer import SwinTransformerBlock
from torchvision.models.swin_transformer import SwinTransformer as TorchvisionSwin

from dse_monitor.checkpoints import load_encoder
from dse_monitor.checkpoints.families.swin import _pad_then_attend
from dse_monitor.errors import UnknownLayout

GOLDEN = Path(__file__).parents[1] / "data" / "golden" / "esvit_small_images.pt"
GRID, WINDOW, WIDTH, HEADS = 4, 3, 8, 2
FILLED = 6  # the next multiple of the window


def written_out(block, x, shift):
    """Every token of the filled grid looks at those of its shifted window that were neighbours before."""
    filled = torch.zeros(FILLED, FILLED, WIDTH)
    filled[:GRID, :GRID] = x[0]
    places = list(itertools.product(range(FILLED), range(FILLED)))
    # after the shift, row or column p stands at (p - shift) mod FILLED
    moved = [((row - shift) % FILLED, (column - shift) % FILLED) for row, column in places]

    def part(p):
        return 0 if p < FILLED - WINDOW else 1 if p < FILLED - shift else 2

    tokens = torch.stack([filled[place] for place in places])
    query, key, value = block.attn.qkv(tokens).view(-1, 3, HEADS, WIDTH // HEADS).unbind(1)
    out = torch.zeros(len(places), HEADS, WIDTH // HEADS)
    for i, (r, c) in enumerate(moved):
        seen, bias = [], []
        for j, (r2, c2) in enumerate(moved):
            same_window = (r // WINDOW, c // WINDOW) == (r2 // WINDOW, c2 // WINDOW)
            if same_window and (not shift or (part(r), part(c)) == (part(r2), part(c2))):
                seen.append(j)
                bias.append((r - r2 + WINDOW - 1) * (2 * WINDOW - 1) + c - c2 + WINDOW - 1)
        for head in range(HEADS):
            score = key[seen, head] @ query[i, head] * (WIDTH // HEADS) ** -0.5
            score = score + block.attn.relative_position_bias_table[bias, head]
            out[i, head] = score.softmax(0) @ value[seen, head]
    return block.attn.proj(out.flatten(1)).view(1, FILLED, FILLED, WIDTH)[:, :GRID, :GRID]


@pytest.mark.parametrize("shift", [0, 1])
def test_a_grid_is_filled_up_before_it_is_shifted(shift):
    torch.manual_seed(0)
    block = SwinTransformerBlock(WIDTH, (GRID, GRID), HEADS, window_size=WINDOW, shift_size=shift).eval()
    torch.nn.init.normal_(block.attn.relative_position_bias_table)
    x = torch.randn(1, GRID, GRID, WIDTH)
    with torch.no_grad():
        expected = written_out(block, x, shift)
        found = _pad_then_attend((WINDOW, WINDOW), block._attn, x)
        as_timm = block._attn(x)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert torch.allclose(as_timm, expected, atol=1e-3) == (shift == 0)


def esvit(saved, vectors, case):
    """A checkpoint of EsViT around a recorded network."""
    start = f"{case}/param/"
    state = {name.removeprefix(start): value for name, value in vectors.items() if name.startswith(start)}
    student = {f"module.{name}": torch.zeros_like(value) for name, value in state.items()}
    content = {"student": student, "teacher": state, "dino_loss": {}, "epoch": 11}
    return load_encoder(saved(content, "checkpoint0010.pth"))


@pytest.mark.parametrize(("case", "windows"), [("56 px", "7-7-3-1"), ("44 px", "5")])
def test_stages_that_esvit_rounds_down_get_its_windows(saved, case, windows):
    vectors = torch.load(GOLDEN, weights_only=True)
    encoder = esvit(saved, vectors, case)
    assert f"window {windows}," in encoder.arch
    tokens = encoder.dense_tokens(vectors[f"{case}/images"])
    assert torch.allclose(tokens, vectors[f"{case}/tokens"], atol=1e-4)


def test_shifts_stay_as_esvit_built_them_when_images_are_larger(saved):
    vectors = torch.load(GOLDEN, weights_only=True)
    tokens = esvit(saved, vectors, "56 px").dense_tokens(vectors["56 px/larger/images"])
    assert torch.allclose(tokens, vectors["56 px/larger/tokens"], atol=1e-4)


@pytest.mark.parametrize(("side", "window"), [(64, 5), (44, 3), (36, 7)])
def test_torchvision_fills_up_before_it_shifts(saved, side, window):
    torch.manual_seed(0)
    network = TorchvisionSwin([4, 4], 8, [2, 2], [1, 2], [window, window]).eval()
    for parameter in network.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape)
    images = torch.randn(2, 3, side, side)
    with torch.no_grad():
        expected = network.norm(network.features(images)).flatten(1, 2)
    tokens = load_encoder(saved(network.state_dict(), "model.pth")).dense_tokens(images)
    assert torch.allclose(tokens, expected, atol=1e-4)


def test_absolute_positions_are_refused_by_name(saved):
    vectors = torch.load(GOLDEN, weights_only=True)
    vectors["56 px/param/absolute_pos_embed"] = torch.zeros(1, 196, 4)
    with pytest.raises(UnknownLayout, match=r"absolute positions \(absolute_pos_embed\)"):
        esvit(saved, vectors, "56 px")
