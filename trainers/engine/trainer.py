"""The only training loop: precision, DDP, accumulation, schedules, the DSE term, logging, saving."""

from __future__ import annotations

import contextlib
import resource
import signal
import time
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dse_monitor.metric import DSERegularizer
from dse_monitor.trainers import distributed
from dse_monitor.trainers.blocks import optim
from dse_monitor.trainers.engine import data, devices, divergence, saving, sharding, starting
from dse_monitor.trainers.engine.divergence import LossCheck
from dse_monitor.trainers.engine.preparing import prepare
from dse_monitor.trainers.engine.reporting import Means, Report
from dse_monitor.trainers.engine.stopping import StopRequests
from dse_monitor.trainers.engine.unreadable import UnreadableImages
from dse_monitor.trainers.method import Method, Plan, Progress, Recipe, StepOutput, Views, normalise
from dse_monitor.trainers.settings import Settings, TrainingError


class Stopped(Exception):
    """A signal asked a run to stop, and it has saved where it was.

    Attributes:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


def train(name: str, method_type: type[Method], recipe: Recipe, settings: Settings) -> None:
    """Run a method to the end of its recipe, until ``max_steps``, or until SIGTERM or Ctrl-C.

    Under torchrun every process calls this; alone it is one process.

    Args:
        name: of the method, as in METHODS.
        method_type: its class.
        recipe: its numbers.
        settings: the run's flags.

    Raises:
        TrainingError: the run cannot start or go on.
        divergence.NonFiniteLoss: training diverged.
        Stopped: by a signal; what was done is saved.
    """
    with devices.processes(settings) as device:
        trainer = Trainer(name, method_type, recipe, settings, device)
        try:
            trainer.run()
        finally:
            trainer.loader.close()
            trainer.report.close()


class Trainer:
    """One run in one process.

    Attributes:
        method: the method, not wrapped by DDP.
        plan: how long the run is.
        step: optimiser steps done.
        report: where it says what it does.
    """

    def __init__(
        self, name: str, method_type: type[Method], recipe: Recipe, settings: Settings, device: torch.device
    ) -> None:
        self.name, self.settings, self.device = name, settings, device
        self.precision = devices.precision(settings, device)
        devices.set_up_torch(settings, device)
        settings.out.mkdir(parents=True, exist_ok=True)
        self.source = data.open_source(
            settings.data, scene_count=settings.scenes, image_size=recipe.image_size, seed=settings.seed
        )
        self.plan = _plan(recipe, settings, len(self.source))
        torch.manual_seed(settings.seed)  # the same weights on every process,
        self.method = method_type(recipe).to(device)
        torch.manual_seed(settings.seed + 1 + self.plan.rank)  # then chance of its own
        prepared = prepare(self.method, settings, self.precision, device, self.plan.world_size)
        self.module, self._channels_last, self._sharded = prepared
        self.groups = self.method.parameter_groups()
        self.optimizer = optim.build(recipe, self.groups, fused=not self._sharded)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.precision == torch.float16)
        self.schedules = self.method.schedules(self.plan)
        beta = settings.dse_weight
        self.regularizer = DSERegularizer(beta, seed=settings.seed + self.plan.rank) if beta else None
        trained = starting.Trained(name, self.method, self.optimizer, self.scaler, self.regularizer)
        start = starting.start(trained, settings, self.plan, device)
        self.step, self.first_step = start.step, start.first_step
        begin = settings.dse_from
        self._dse_from = self.first_step / self.plan.steps_per_epoch if begin == "best" else begin
        self.report = Report(settings.out, self.step, silent=self.plan.rank > 0)
        self.order = data.Order(self.plan, settings.seed)
        self.loader = data.Loader(
            data.ViewsDataset(self.source, self.method.views(), settings.seed),
            self.order,
            data.Collator(self.method.collator(), settings.seed, self.plan.rank),
            workers=devices.workers(settings, device),
            pin=device.type == "cuda",
            say=self.report.say,
        )
        self._unreadable = UnreadableImages(settings.out, self.report.say)
        self._stop = StopRequests(device, self.plan.world_size)
        self._losses = LossCheck(settings.out, self.plan.rank)
        self._introduce(start.origin)

    def run(self) -> None:
        """Train to the end, or to a signal.

        Raises:
            Stopped: by a signal.
        """
        total = self._total_steps()
        if self.step >= total:
            self.report.say(f"nothing to do: {self.step} of {total} steps are done")
        with self._stop.caught():
            while self.step < total and not self._stop.agreed:
                self._epoch(total)
            if self.step % self.plan.steps_per_epoch:
                self._save(saving.LAST)
        stopped = self._stop.agreed and self.step < total
        if stopped or self.step % self.plan.steps_per_epoch:
            done = f"stopped after step {self.step} of {self.plan.total_steps}"
            self.report.say(f"{done}; --resume goes on")
        if stopped:
            raise Stopped(self._stop.agreed)

    def _total_steps(self) -> int:
        """Optimiser steps after which to stop, those of the run that this one goes on from included."""
        more, limit = self.settings.more_epochs * self.plan.steps_per_epoch, self.settings.max_steps
        total = self.first_step + more if more else self.plan.total_steps
        return min(total, limit) if limit else total

    # One epoch, one step ----------------------------------------------------------------------------------

    def _epoch(self, total: int) -> None:
        """From the current step to the end of its epoch, of the run, or to a signal."""
        plan, every = self.plan, self.settings.log_every
        epoch, first = divmod(self.step, plan.steps_per_epoch)
        end = min(total, (epoch + 1) * plan.steps_per_epoch)
        title = f"epoch {epoch + 1:>{len(str(plan.epochs))}}/{plan.epochs}"
        self.order.epoch, self.order.first_step = epoch, first
        self.report.begin_epoch(title, plan.steps_per_epoch, first)
        batches = iter(self.loader)
        means, logged, then = Means(), self.step, time.perf_counter()
        while self.step < end and not self._stop.agreed:
            progress = self._progress()
            measured = self._optimise(batches, progress)
            means.add(measured)
            self.report.advance(measured)
            self.step += 1
            if self.step % every == 0 or self.step == end:
                taken = distributed.means_over_processes(means.take())
                scalars = {f"train/{name}": value.item() for name, value in taken.items()}
                now = time.perf_counter()
                scalars["train/images_per_second"] = (self.step - logged) * plan.batch_size / (now - then)
                logged, then = self.step, now
                self.report.log(self.step, {**scalars, **self._state_of(progress)})
            self._stop.agree()
        self._losses.look(self.step)  # at the last step's too, before anything is saved
        self.report.end_epoch(title, (self.step - epoch * plan.steps_per_epoch - first) * plan.batch_size)
        if self.step == (epoch + 1) * plan.steps_per_epoch:
            done = epoch + 1
            if done % self.settings.save_every == 0 or self.step == total or self._stop.agreed:
                self._save(f"checkpoint_{done:04d}.pth")

    def _optimise(self, batches: Iterator[data.Batch], progress: Progress) -> dict[str, Tensor]:
        """One optimiser step; returns what was measured, as detached scalars by name."""
        accumulate = self.settings.accumulate
        for entry, group in zip(self.optimizer.param_groups, self.groups, strict=True):
            entry["lr"] = progress.values[group.lr] * group.lr_scale
            entry["weight_decay"] = progress.values[group.weight_decay] if group.weight_decay else 0.0
        self.method.before_step(progress)
        self.optimizer.zero_grad(set_to_none=True)
        means = Means()
        for micro in range(accumulate):
            views = self._received(next(batches))
            with self._synchronised(micro == accumulate - 1):
                loss, terms = self._loss(views, progress)
                self._losses.look(self.step)
                self._losses.add(loss.detach(), views)
                self.scaler.scale(loss / accumulate).backward()
            means.add(terms)
        self.scaler.unscale_(self.optimizer)
        measured = means.take()
        if (self.step + 1) % self.settings.log_every == 0:
            gradients = [p.grad for p in self.method.parameters() if p.grad is not None]
            measured["grad_norm"] = sharding.whole(nn.utils.get_total_norm(gradients))
        self.method.after_backward(progress)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.method.after_step(progress)
        return measured

    def _loss(self, views: Views, progress: Progress) -> tuple[Tensor, dict[str, Tensor]]:
        """The method's loss with the DSE term where it is due, and their parts for the log."""
        settings = self.settings
        with torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32):
            out = self.module(views, progress)
        if isinstance(self.module, sharding.Sharded):
            out = StepOutput(*out)
        terms = {"loss": out.loss.detach(), **out.logs}
        if (
            self.regularizer is None
            or progress.fraction < self._dse_from
            or progress.step % settings.dse_every
        ):
            return out.loss, terms
        if out.dense is None:
            raise TrainingError(f"{self.name} gives no dense tokens, so --dse-weight cannot be used with it")
        term = self.regularizer(out.dense)
        measured = self.regularizer.last
        assert measured is not None
        terms.update({"dse" if k == "dse" else f"dse_{k}": v for k, v in measured._asdict().items()})
        return out.loss + term, terms

    def _progress(self) -> Progress:
        values = {name: float(s[min(self.step, len(s) - 1)]) for name, s in self.schedules.items()}
        return Progress(self.plan, self.step, values)

    def _received(self, batch: data.Batch) -> Views:
        """A batch on the device, normalised; unreadable files are counted once and listed in ``out``."""
        self._unreadable.add(batch.unreadable)
        form = torch.channels_last if self._channels_last else torch.preserve_format

        def moved(tensor: Tensor) -> Tensor:
            return tensor.to(self.device, non_blocking=True)

        views = Views(
            [moved(image) for image in batch.views.images],
            {k: moved(v) for k, v in batch.views.extra.items()},
        )
        views = normalise(views, self.method.mean, self.method.std)
        return Views([image.contiguous(memory_format=form) for image in views.images], views.extra)

    def _state_of(self, progress: Progress) -> dict[str, float]:
        state = {f"schedule/{name}": value for name, value in progress.values.items()}
        if self.device.type == "cuda":
            state["train/memory_gb"] = torch.cuda.max_memory_allocated(self.device) / 1e9
        else:
            state["train/memory_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
        if self._unreadable:
            state["train/unreadable_images"] = len(self._unreadable)
        return {**state, "epoch": self.step / self.plan.steps_per_epoch}

    def _save(self, file: str) -> None:
        state = torch.zeros(1, 2, dtype=torch.long)
        if self.regularizer is not None:
            state = self.regularizer.get_extra_state()[None]
        states = distributed.gather(state.to(self.device)).cpu()
        content = saving.contents(
            self.name,
            self.method,
            self.optimizer,
            self.scaler,
            epoch=self.step // self.plan.steps_per_epoch,
            step=self.step,
            regularizer=states if self.regularizer is not None else None,
            run={**starting.facts(self.settings, self.plan), **starting.habits(self.settings)},
            first_step=self.first_step,
        )
        divergence.refuse_broken(content["model"], file, self.step, self.settings.out)
        if self.plan.rank == 0:
            out = self.settings.out
            saving.write(content, out / file)
            if file != saving.LAST:
                (out / saving.LAST).unlink(missing_ok=True)
                saving.rotate(out, self.settings.keep)

    def _synchronised(self, last: bool) -> contextlib.AbstractContextManager[None]:
        """DDP averages gradients in the last micro-batch only."""
        if last or not isinstance(self.module, DistributedDataParallel):
            return contextlib.nullcontext()
        return self.module.no_sync()

    def _introduce(self, origin: str) -> None:
        plan, method, say = self.plan, self.method, self.report.say
        trained = sum(p.numel() for p in method.parameters() if p.requires_grad) / 1e6
        say(f"method    {self.name}, {method.recipe.backbone}, {trained:.1f} M trained parameters")
        steps = f"{plan.steps_per_epoch} steps of {plan.batch_size}"
        say(f"data      {self.settings.data}, {plan.images:,} images, {steps}")
        processes = f"{plan.world_size} process{'es' if plan.world_size > 1 else ''}"
        shared = ", fsdp" if self._sharded else ""
        say(f"device    {self.device}, {str(self.precision).removeprefix('torch.')}, {processes}{shared}")
        say(f"start     {origin}")
        say(f"output    {self.settings.out}")
        parts = self.settings.accumulate
        coupled = [method.batch_coupled] if method.batch_coupled else []
        if self.regularizer is not None:
            coupled.append("the DSE term, which is measured on each")
        if parts > 1 and coupled:
            say(f"warning   {parts} micro-batches are not one large batch here: {'; '.join(coupled)}")


def _plan(recipe: Recipe, settings: Settings, images: int) -> Plan:
    for flag, value in (("--batch-size", recipe.batch_size), ("--epochs", recipe.epochs)):
        if value < 1:
            raise TrainingError(f"{flag} is at least 1, got {value}")
    world, parts = distributed.world_size(), distributed.world_size() * settings.accumulate
    if recipe.batch_size % parts:
        raise TrainingError(
            f"--batch-size {recipe.batch_size} must be a multiple of {world} processes x "
            f"{settings.accumulate} micro-batches"
        )
    steps = images // recipe.batch_size
    if steps == 0:
        raise TrainingError(
            f"{images} images do not fill one batch of {recipe.batch_size}: give more images or a smaller "
            "--batch-size"
        )
    return Plan(
        recipe.epochs, steps, recipe.batch_size, images, world, distributed.rank(), settings.accumulate
    )
