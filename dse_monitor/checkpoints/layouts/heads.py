"""Attention heads of the models that repositories define, by embedding width."""

DINO_VITS = {192: 3, 384: 6, 768: 12}
IBOT_VITS = {192: 3, 384: 6, 768: 12, 1024: 16}
MAE_VITS = {768: 12, 1024: 16, 1280: 16}
IJEPA_VITS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16, 1408: 16, 1664: 16}
DINOV2_VITS = {384: 6, 768: 12, 1024: 16, 1536: 24}
DINOV3_VITS = {384: 6, 768: 12, 1024: 16, 1152: 18, 1280: 20, 1536: 24, 4096: 32}
