"""mlflow's local file store, checkpoints logged as artifacts: `python mlflow_store.py FOLDER`.

Writes mlruns/EXPERIMENT/RUN/meta.yaml and mlruns/EXPERIMENT/RUN/artifacts/checkpoints/epoch_1.pth and so on.
"""

import os
import tempfile
from pathlib import Path

os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")

import mlflow
import tiny
import torch

if __name__ == "__main__":
    mlflow.set_tracking_uri((tiny.folder() / "mlruns").as_uri())
    network = tiny.vit()
    optimizer = tiny.optimizer(network)
    with mlflow.start_run(), tempfile.TemporaryDirectory() as scratch:
        for epoch in range(1, tiny.SAVES + 1):
            tiny.step(network, optimizer)
            file = Path(scratch) / f"epoch_{epoch}.pth"
            torch.save({"model": network.state_dict(), "epoch": epoch}, file)
            mlflow.log_artifact(str(file), "checkpoints")
            file.unlink()
