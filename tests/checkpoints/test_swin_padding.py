"""EsViT's windows on grids that they do not divide, against attention written out token by token."""

import itertools

import pytest
import torch
from timm.models.swin_transformer import SwinTransformerBlock

from dse_monitor.checkpoints.families.swin import _pad_then_attend

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
