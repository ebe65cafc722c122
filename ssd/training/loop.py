"""The training loop. It never asks which detector or data path it runs."""

import time
from typing import Any

import torch

from ssd.batch import TrainLoader
from ssd.checkpoints import checkpoint
from ssd.checkpoints.retention import Keeper
from ssd.distributed import Vote, gather_tensors
from ssd.mlperf.log import ComplianceLog
from ssd.run.files import Run
from ssd.running_statistics import average_statistics
from ssd.schedule import Plan, epochs_at, lr_at, plan_of, reached_target, reaches_target, warmup_of
from ssd.training.evaluations import Evaluations, Judge
from ssd.training.interruption import Preempted, Watchdog, stop_signals
from ssd.training.loss_log import Meter
from ssd.training.prefetch import on_side_stream
from ssd.training.state import Training
from ssd.training.step import build_step


def train(
    training: Training,
    loader: TrainLoader,
    judge: Judge,
    run: Run,
    compliance: ComplianceLog,
    describe: dict[str, Any],
) -> tuple[dict[str, Any], bool]:
    """Trains from training.step to the end of the run, or to the target.

    judge: of the model on the validation split. describe: what every checkpoint says of its run.
    Returns rank 0's results (the last evaluation's metrics, images_per_second, train_seconds, ...) and whether the
    target was reached. Raises NonFiniteLossError at the logging step that sees that the loss stays infinite, and
    Preempted, after a checkpoint, one or two steps after a signal has asked any rank to end, or within an evaluation,
    which is made anew when the run goes on.
    """
    config, ranks = training.config, training.ranks
    take_step, version = build_step(training), training.version
    steps_per_epoch, plan = loader.steps_per_epoch, plan_of(config, loader.steps_per_epoch)
    total_steps = plan.total_steps
    keeper, meter, vote = Keeper(run.folder, config), Meter(run, training, total_steps, steps_per_epoch), Vote(ranks)
    watchdog = Watchdog(60 * config.timeout)
    evaluations = Evaluations(judge, training, run, compliance, keeper, steps_per_epoch)
    reached = reached_target(config, training.best_ap, training.reached_by)
    must_stop = False
    # For an AP: with a target the next step depends on it, and MLPerf's log has an order.
    nothing_waits = config.target is None and not config.mlperf

    def save(*, is_best: bool = False) -> None:
        watchdog.is_alive()
        evaluations.collect(wait=True)
        if training.tally.lost_steps > 1:  # what led there is not worth the place of an earlier checkpoint
            return
        training.tally.elapsed_s = meter.elapsed_s()
        content = _checkpoint(training, loader, describe)
        if ranks.is_main:
            keeper.save(content, is_best=is_best)

    def evaluate(*, may_overlap: bool = False) -> None:
        nonlocal reached, must_stop
        watchdog.is_alive()
        began = time.perf_counter()
        try:
            found = evaluations.evaluate(may_overlap=may_overlap, is_asked_to_end=lambda: request.received)
        except Preempted:
            must_stop = True  # what there is to save has been saved before
            return
        run.leave_out(time.perf_counter() - began)
        if found is None:
            return
        ap, masks_ap = found
        is_best, training.best_ap = ap > training.best_ap, max(ap, training.best_ap)
        training.judged_step = training.step
        if reaches_target(config, ap, masks_ap):
            reached, training.reached_by = True, None if masks_ap is None else [ap, masks_ap]
        save(is_best=is_best)

    batches = on_side_stream(loader.batches(training.step), ranks.device)
    training.model.train()
    watchdog.is_alive()
    run.start_progress(total_steps, training.step)
    try:
        with stop_signals() as request:
            is_due = training.judged_step < training.step and training.step in plan.judged
            if is_due or reached or training.step >= total_steps:  # ended between a checkpoint and what follows it
                evaluate()
            while training.step < total_steps and not (reached or must_stop):
                compliance.before_step(training.step)
                lr = _lr(training, plan)
                for companion in training.companions:
                    lr = companion.before_step(training.step, lr)
                if training.version != version:
                    take_step, version = build_step(training), training.version
                meter.wait_for_data()
                batch = next(batches)
                meter.data_is_here()
                meter.add(take_step(batch, lr), batch.image_ids)
                for companion in training.companions:
                    companion.after_step(training.step)
                training.step += 1
                watchdog.is_alive()

                must_stop, is_time = vote.cast(request.received, ranks.is_main and keeper.asks())
                epoch, into_epoch = divmod(training.step, steps_per_epoch)
                judges = training.step in plan.judged
                saves = judges or must_stop or is_time or keeper.is_due(training.step, steps_per_epoch)
                if saves or into_epoch == 0 or training.step % config.log_interval == 0:
                    meter.log(lr)
                    evaluations.collect(wait=False)
                if into_epoch == 0:
                    compliance.epoch_stop(epoch)
                    meter.end_epoch(epoch, lr)
                if into_epoch == 0 or judges:
                    average_statistics(training.model, ranks)
                    if training.average is not None:
                        average_statistics(training.average.model, ranks)
                if saves:
                    save()  # before an evaluation too, which a signal may end
                if judges and not must_stop:
                    evaluate(may_overlap=nothing_waits and training.step < total_steps)
                if saves or into_epoch == 0:
                    meter.restart()
        vote.end()
    finally:
        if training.graph is not None:  # of one that still runs, CUDA frees what is left afterwards
            training.graph.reset()
        watchdog.end()
        evaluations.end()
        run.stop_progress()
    if must_stop:
        unjudged = training.judged_step < training.step and training.step in plan.judged
        when = f"after step {training.step} of {total_steps}" + (", before it was judged" if unjudged else "")
        raise Preempted(f"ended {when}, as it was asked to")
    return {**evaluations.metrics, **meter.totals(), "epochs": epochs_at(training.step, steps_per_epoch)}, reached


def _lr(training: Training, plan: Plan) -> float:
    config = training.config
    return lr_at(
        training.step,
        base_lr=config.learning_rate,
        global_batch_size=config.batch_size * training.ranks.world_size,
        warmup=warmup_of(config),
        falls=plan.falls,
        cosine_steps=plan.total_steps if config.schedule == "cosine" else None,
    )


def _checkpoint(training: Training, loader: TrainLoader, describe: dict[str, Any]) -> dict[str, Any]:
    """The content of a checkpoint, with what each rank has of its own; whole on rank 0 only."""
    device = training.ranks.device
    # As tensors, because weights_only=True loads no bytes.
    data_state = torch.tensor(list(loader.state()), dtype=torch.uint8)
    rng_states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        rng_states["cuda"] = torch.cuda.get_rng_state(device)
    return {
        "format": checkpoint.FORMAT,
        **describe,
        **({"channels": plan} if (plan := getattr(training.model, "channel_plan", {})) else {}),
        "epoch": training.step // loader.steps_per_epoch,
        "steps_per_epoch": loader.steps_per_epoch,
        "global_batch_size": training.config.batch_size * training.ranks.world_size,
        **training.state(),
        "data_states": gather_tensors(data_state, training.ranks),
        "rng_states": {name: gather_tensors(state, training.ranks) for name, state in rng_states.items()},
    }
