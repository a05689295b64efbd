"""The file formats that checkpoints are written in."""
