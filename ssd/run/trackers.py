"""Experiment trackers behind one interface: TensorBoard, Weights & Biases, MLflow. Each is an optional extra.

None is on by default: log.jsonl and report.html hold the same and need no further package, and TensorBoard brings gRPC
and a server with it. Rank 0 alone has any. What they are given lies on the host already, so they wait for no device.
"""

import importlib.util
import json
import os
import re
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np

from ssd.console import say_on_stderr
from ssd.errors import InputError

_RECALL = np.linspace(0, 1, 101)


class Tracker(Protocol):
    """Opened with the run's folder, its settings and the step it starts from."""

    def __init__(self, folder: Path, settings: dict[str, Any], step: int) -> None: ...

    def scalars(self, values: Mapping[str, float], step: int) -> None: ...

    def image(self, name: str, pixels: np.ndarray, step: int) -> None:
        """pixels: H x W x 3 uint8."""
        ...

    def precision_recall(self, curves: Mapping[str, np.ndarray], step: int) -> None:
        """curves: of each class, 101 precisions in [0, 1] at recalls of 0, 0.01, ..., 1."""
        ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files in the run's folder: `tensorboard --logdir runs` shows all runs."""

    def __init__(self, folder: Path, settings: dict[str, Any], step: int) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter

        # What a killed run told of the steps after its checkpoint is hidden.
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1 if step else None)
        self._writer.add_text("settings", f"```\n{json.dumps(settings, indent=2)}\n```", step)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def image(self, name: str, pixels: np.ndarray, step: int) -> None:
        self._writer.add_image(name, pixels, step, dataformats="HWC")

    def precision_recall(self, curves: Mapping[str, np.ndarray], step: int) -> None:
        zeros = np.zeros(len(_RECALL))  # its counts, which it shows beside a point: the curves know none
        for name, precision in curves.items():
            self._writer.add_pr_curve_raw(
                f"precision_recall/{name}", zeros, zeros, zeros, zeros, precision, _RECALL, step, len(_RECALL)
            )

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A run of the project "ssd", or of WANDB_PROJECT. WANDB_MODE=offline needs no account."""

    def __init__(self, folder: Path, settings: dict[str, Any], step: int) -> None:
        import wandb

        self._wandb, id_file = wandb, folder / "wandb-id.txt"
        own_id = id_file.read_text() if id_file.exists() else secrets.token_hex(4)
        try:
            self._run = wandb.init(
                project=None if "WANDB_PROJECT" in os.environ else "ssd",
                name=folder.name, dir=str(folder), config=settings, id=own_id, resume="allow",
            )  # fmt: skip
        except wandb.errors.Error as error:
            raise InputError(
                f"--track wandb: {_first_line(error)}; run `wandb login`, or set WANDB_MODE=offline"
            ) from error
        id_file.write_text(own_id)
        self._run.define_metric("*", step_metric="step")  # its own counter cannot go back to a checkpoint

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        self._run.log({**values, "step": step})

    def image(self, name: str, pixels: np.ndarray, step: int) -> None:
        self._run.log({name: self._wandb.Image(pixels), "step": step})

    def precision_recall(self, curves: Mapping[str, np.ndarray], step: int) -> None:
        chart = self._wandb.plot.line_series(
            xs=_RECALL.tolist(), ys=[precision.tolist() for precision in curves.values()], keys=list(curves),
            title="Precision at IoU 0.5", xname="recall",
        )  # fmt: skip
        self._run.log({"precision_recall": chart, "step": step})

    def close(self) -> None:
        self._run.finish()


class MLflow:
    """A run of the experiment "ssd", or of MLFLOW_EXPERIMENT_NAME, on the server or folder of MLFLOW_TRACKING_URI."""

    def __init__(self, folder: Path, settings: dict[str, Any], step: int) -> None:
        import mlflow

        self._mlflow, id_file = mlflow, folder / "mlflow-id.txt"
        try:
            if "MLFLOW_EXPERIMENT_NAME" not in os.environ:
                mlflow.set_experiment("ssd")
            if id_file.exists():
                mlflow.start_run(run_id=id_file.read_text())
            else:
                id_file.write_text(mlflow.start_run(run_name=folder.name).info.run_id)
                mlflow.log_params({name: str(value) for name, value in settings.items()})
        except mlflow.exceptions.MlflowException as error:
            raise InputError(f"--track mlflow: {_first_line(error)}; set MLFLOW_TRACKING_URI to a server") from error

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        metrics = {re.sub(r"[^\w\-. :/]", "_", name): value for name, value in values.items()}
        self._mlflow.log_metrics(metrics, step=step, synchronous=False)

    def image(self, name: str, pixels: np.ndarray, step: int) -> None:
        self._mlflow.log_image(pixels, key=name, step=step, synchronous=False)

    def precision_recall(self, curves: Mapping[str, np.ndarray], step: int) -> None:
        """MLflow has no chart for them."""

    def close(self) -> None:
        try:
            self._mlflow.end_run()  # waits for what is on its way
        except self._mlflow.exceptions.MlflowException as error:  # the run itself is well
            say_on_stderr(f"warning: MLflow did not take all of it: {_first_line(error)}")


def _as_utf8(text: str) -> str:
    """With ? for what no UTF-8 has: the bytes of a file's name that are none."""
    return text.encode(errors="replace").decode()


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")


_TRACKERS: dict[str, type[Tracker]] = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases, "mlflow": MLflow}


def require_packages(names: Sequence[str]) -> None:
    """Raises InputError unless the trackers' packages are there; imports none of them."""
    for name in names:
        if importlib.util.find_spec(name) is None:  # each tracker has the name of its package
            raise InputError(f"--track {name}: the package is not installed; pip install -e '.[{name}]'")


class Trackers:
    """The trackers of a run, one for all; of none, its methods do nothing. Closes them at its end."""

    def __init__(self, names: Sequence[str]) -> None:
        """names: of config.TRACKERS."""
        self._names = names
        self._open: list[Tracker] = []

    def open(self, folder: Path, settings: dict[str, Any], step: int) -> None:
        """Raises InputError where one cannot be reached, or cannot write the folder's name."""
        for name in self._names:
            if _as_utf8(str(folder)) != str(folder):
                raise InputError(f"--track {name}: takes no folder whose name is no UTF-8, as {folder}; pass another")
            shown = {key: _as_utf8(value) if isinstance(value, str) else value for key, value in settings.items()}
            self._open.append(_TRACKERS[name](folder, shown, step))

    def __bool__(self) -> bool:
        return bool(self._open)

    def __enter__(self) -> "Trackers":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._open:
            self._open.pop().close()

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        for tracker in self._open:
            tracker.scalars(values, step)

    def image(self, name: str, pixels: np.ndarray, step: int) -> None:
        for tracker in self._open:
            tracker.image(name, pixels, step)

    def precision_recall(self, curves: Mapping[str, np.ndarray], step: int) -> None:
        for tracker in self._open:
            tracker.precision_recall(curves, step)
