"""DINOv2's saving calls, repeated, not run: `python dinov2_calls.py FOLDER`.

facebookresearch/dinov2 @ b8931f7, dinov2/train/train.py: `do_test`, which writes the teacher for evaluations;
dinov2/fsdp/__init__.py: `FSDPCheckpointer`, of which a training keeps the last three files,
one for each rank. Writes eval/training_1/teacher_checkpoint.pth and so on, and model_0000019.rank_0.pth.
Only the former hold whole tensors where several ranks trained; here, with one, both do.
"""

import tiny
import torch

if __name__ == "__main__":
    folder = tiny.folder()
    network = tiny.vit()
    optimizer = tiny.optimizer(network)
    for count in tiny.saves(network, optimizer):
        iteration = count - 1
        teacher = {f"backbone.{name}": tensor for name, tensor in network.state_dict().items()}
        output = folder / "eval" / f"training_{iteration}"
        output.mkdir(parents=True)
        torch.save({"teacher": teacher}, output / "teacher_checkpoint.pth")
        if count == 2 * tiny.SAVES:
            name = f"model_{iteration:07d}.rank_0.pth"
            model = {f"teacher.{key}": tensor for key, tensor in teacher.items()}
            content = {"model": model, "optimizer": optimizer.state_dict(), "iteration": iteration}
            torch.save(content, folder / name)
            (folder / "last_checkpoint.rank_0").write_text(name)
