"""Where results go: TensorBoard event files, best.json, kept checkpoints. No torch."""
