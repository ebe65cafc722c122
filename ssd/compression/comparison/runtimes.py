"""The ways a detector is run, from uint8 images to detections: torch, torch.compile, onnxruntime, OpenVINO."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from ssd.batch import Detections, EvalBatch, on_host
from ssd.compression.comparison.subjects import Subject
from ssd.config import Config
from ssd.detectors.table import detector_of
from ssd.errors import InputError
from ssd.evaluation.detect import in_precision
from ssd.images import normalise
from ssd.inference.export import export
from ssd.inference.exported import feed_of, load_exported
from ssd.views import ShortSideView

RUNTIMES = ("eager", "compiled", "onnxruntime", "openvino")

Run = Callable[[Tensor, Tensor], Detections]
"""(images B x 3 x H x W uint8 RGB on the CPU, B x 4 int64 where each lies in its own: `EvalBatch.placed_ltrb_px`) ->
detections on the CPU."""


def require_runtimes(names: tuple[str, ...]) -> None:
    """Raises InputError for one that is not installed."""
    packages = {"onnxruntime": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("openvino",)}
    for name in names:
        for package in packages.get(name, ()):
            if importlib.util.find_spec(package) is None:
                remedy = "pip install openvino" if name == "openvino" else "pip install -e '.[export]'"
                raise InputError(f"--runtimes {name}: {package} is not installed; {remedy}, or leave {name} out")


def onnx_of(subject: Subject, folder: Path, config: Config) -> tuple[Path | None, str]:
    """The subject as an ONNX file, made in the folder if it is none, and ""; None of a detector that cannot be
    exported, and why."""
    if subject.content is None:
        return subject.file, ""
    try:
        target = folder / (subject.name.replace("/", "-") + ".onnx")
        export(subject.file, target, "onnx", config)
    except InputError as error:
        return None, str(error)
    return target, ""


def build_run(runtime: str, subject: Subject, onnx: Path | None, config: Config, device: torch.device) -> Run | None:
    """runtime: one of RUNTIMES. onnx: the file of `onnx_of`. None where the subject has no such form."""
    if runtime in ("eager", "compiled"):
        if subject.content is None:
            return None
        return _in_torch(subject.model(), subject, config, device, compiles=runtime == "compiled")
    if onnx is None:
        return None
    if runtime == "openvino":
        return _in_openvino(onnx)
    return _in_onnxruntime(onnx, device)


def _in_torch(model: nn.Module, subject: Subject, config: Config, device: torch.device, *, compiles: bool) -> Run:
    model = model.to(device).to(memory_format=torch.channels_last)
    forward = in_precision(torch.compile(model) if compiles else model, config, device)
    detector = detector_of(subject.settings)
    detect, view = detector.detect(subject.settings, config.thresholds), detector.view(subject.settings)

    @torch.no_grad()
    def run(pixels: Tensor, placed_ltrb_px: Tensor) -> Detections:
        pixels = pixels.to(device).contiguous(memory_format=torch.channels_last)
        images = normalise(pixels, view.mean, view.std)
        if isinstance(view, ShortSideView):  # whose images have zeros around them; others are whole, gray or not
            for image, (_, _, right, bottom) in zip(images, placed_ltrb_px.tolist(), strict=True):
                image[:, bottom:] = 0
                image[:, :, right:] = 0
        return on_host(detect(forward, EvalBatch(images, placed_ltrb_px, torch.arange(len(images)))))

    return run


def _in_onnxruntime(file: Path, device: torch.device) -> Run:
    exported = load_exported(file, threads=torch.get_num_threads(), on_gpu=device.type == "cuda")
    names = exported.input_names
    return lambda pixels, placed: exported.run(feed_of(pixels, placed, names))


def _in_openvino(file: Path) -> Run:
    import openvino

    compiled = openvino.Core().compile_model(
        file, "CPU", {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    )
    names = [each.get_any_name() for each in compiled.inputs]
    outputs = [each.get_any_name() for each in compiled.outputs]

    def run(pixels: Tensor, placed_ltrb_px: Tensor) -> Detections:
        found = compiled(feed_of(pixels, placed_ltrb_px, names))
        return Detections(**{name: torch.from_numpy(found[name].copy()) for name in outputs})

    return run
