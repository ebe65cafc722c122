"""A checkpoint is whole or refused, runs no code, and fits the model it is put into."""

import errno
import os
import pickle
import signal
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from model_files import refusal_of, seeded
from torch import Tensor
from torchvision import models

from ssd.checkpoints import checkpoint, conversion
from ssd.detectors.ssd300 import weights
from ssd.detectors.ssd300.model import SSD300
from ssd.detectors.ssd300.settings import SSD300Settings
from ssd.errors import InputError

CATEGORIES = [(1, "balloon"), (3, "crate"), (90, "star")]
R34 = {"family": "ssd300", "backbone": "resnet34"}


def small_content() -> dict[str, Any]:
    """Every kind of value that a run's checkpoint holds, in a few kilobytes. The weights fit no model."""
    return {
        "format": checkpoint.FORMAT,
        "detector": {"family": "ssd300", "backbone": "resnet18"},
        "categories": CATEGORIES,
        "seed": 3,
        "settings": {"data": "DIR", "learning_rate": 2.6e-3, "multistep": (43, 54), "target": None, "fp16": True},
        "model": {"weight": torch.arange(12.0).reshape(3, 4), "count": torch.tensor(7)},
        "optimizer": {"state": {0: {"momentum_buffer": torch.ones(4)}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
        "data_states": [torch.arange(5, dtype=torch.uint8), torch.zeros(0, dtype=torch.uint8)],
    }


def equal(a: Any, b: Any) -> bool:
    """Type for type and bit for bit."""
    if type(a) is not type(b):
        return False
    if isinstance(a, Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return bool(a == b)


def refused(file: Path, load: Callable[[Path], Any] = checkpoint.load) -> str:
    return refusal_of(file, load)


def content_of(model: SSD300, categories: list[tuple[int, str]]) -> dict[str, Any]:
    return {
        "format": checkpoint.FORMAT,
        "detector": {"family": "ssd300", "backbone": model.backbone},
        "categories": categories,
        "model": model.state_dict(),
    }


# --- saving ---


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    file = tmp_path / "new" / "folder" / "last.pt"
    checkpoint.save(file, small_content())
    assert equal(checkpoint.load(file), small_content())
    assert equal(torch.load(file, weights_only=True), small_content())
    assert [path.name for path in file.parent.iterdir()] == ["last.pt"]


def test_saving_replaces(tmp_path: Path) -> None:
    file = tmp_path / "last.pt"
    checkpoint.save(file, small_content())
    checkpoint.save(file, {**small_content(), "seed": 4})
    assert checkpoint.load(file)["seed"] == 4
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]


def test_others_may_read_what_the_umask_lets_them(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        checkpoint.save(tmp_path / "last.pt", small_content())
    finally:
        os.umask(before)
    assert (tmp_path / "last.pt").stat().st_mode & 0o777 == 0o644


def write_half(content: Any, stream: Any) -> None:
    stream.write(b"PK\x03\x04" + bytes(500))
    stream.flush()


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(content: Any, stream: Any) -> None:
        write_half(content, stream)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    file = tmp_path / "last.pt"
    checkpoint.save(file, small_content())
    before = file.read_bytes()
    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(file, {**small_content(), "seed": 4})
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]

    with pytest.raises(OSError, match="No space left") as refused:
        checkpoint.save(tmp_path / "best.pt", small_content())
    assert refused.value.filename == str(tmp_path / "best.pt")  # which the stream's own complaint does not name
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]


def test_ctrl_c_takes_effect_when_the_checkpoint_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In torch's callback it would be told as a full disk, or end the process by a signal."""
    save = torch.save

    class Interrupted:
        def __init__(self, stream: Any) -> None:
            self.stream = stream

        def write(self, data: bytes) -> int:
            signal.raise_signal(signal.SIGINT)
            return int(self.stream.write(data))

        def flush(self) -> None:
            self.stream.flush()

    monkeypatch.setattr(torch, "save", lambda content, stream: save(content, Interrupted(stream)))
    file = tmp_path / "last.pt"
    # What a shell starts in the background ignores Ctrl-C.
    ours = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            checkpoint.save(file, small_content())
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, ours)
    assert checkpoint.load(file)["model"].keys() == small_content()["model"].keys()
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]


def test_a_kill_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(content: Any, stream: Any) -> None:
        write_half(content, stream)
        os.kill(os.getpid(), signal.SIGKILL)

    file = tmp_path / "last.pt"
    checkpoint.save(file, small_content())
    before = file.read_bytes()
    monkeypatch.setattr(torch, "save", die)
    child = os.fork()
    if child == 0:
        try:
            checkpoint.save(file, {**small_content(), "seed": 4})
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    assert file.read_bytes() == before
    monkeypatch.undo()
    checkpoint.save(file, {**small_content(), "seed": 5})
    assert checkpoint.load(file)["seed"] == 5


# --- files that are no checkpoint ---


class Touch:
    """Unpickled, it creates a file."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.file),)


def load_trunk(file: Path) -> None:
    weights.load_backbone(seeded(0, "resnet18", 4), str(file))


@pytest.mark.parametrize("load", [checkpoint.load, conversion.load, load_trunk])
@pytest.mark.parametrize("layout", ["zip", "legacy", "pickle"])
def test_a_file_runs_no_code(layout: str, load: Callable[[Path], Any], tmp_path: Path) -> None:
    file, trace = tmp_path / "evil.pt", tmp_path / "trace"
    content = {**small_content(), "extra": Touch(trace)}
    if layout == "pickle":
        file.write_bytes(pickle.dumps({"format": 1, "extra": Touch(trace)}, protocol=2))
    else:
        torch.save(content, file, _use_new_zipfile_serialization=layout == "zip")
    refused(file, load)
    assert not trace.exists()
    torch.load(file, weights_only=False) if layout != "pickle" else pickle.loads(file.read_bytes())
    assert trace.exists()  # the file was dangerous


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole.pt", tmp_path / "cut.pt"
    checkpoint.save(whole, small_content())
    data = whole.read_bytes()
    for size in [*range(0, len(data), 11), *range(len(data) - 30, len(data))]:
        cut.write_bytes(data[:size])
        refused(cut)


def test_no_flipped_byte_changes_what_is_loaded(tmp_path: Path) -> None:
    """Either the damage is found or it lies where it changes nothing, such as in padding."""
    file = tmp_path / "last.pt"
    checkpoint.save(file, small_content())
    data = file.read_bytes()
    with zipfile.ZipFile(file) as archive:
        directory = archive.start_dir  # no checksum covers this part and what follows
    flips = [(at, 0xFF) for at in range(0, directory, 13)]
    flips += [(at, mask) for at in range(directory, len(data), 2) for mask in (0x08, 0xFF)]
    flips += [(at, mask) for at in range(directory + 1, len(data), 2) for mask in (0x01, 0x10)]
    found = 0
    for at, mask in flips:
        damaged = bytearray(data)
        damaged[at] ^= mask
        file.write_bytes(damaged)
        try:
            assert equal(checkpoint.load(file), small_content()), f"byte {at} ^ {mask:#x} went unnoticed"
        except InputError as error:
            assert str(file) in str(error) and "\n" not in str(error)
            found += 1
    assert found > len(flips) / 3


def test_damaged_weights_are_found(tmp_path: Path) -> None:
    file = tmp_path / "last.pt"
    checkpoint.save(file, {**small_content(), "model": {"weight": torch.full((1000,), 1.5)}})
    data = file.read_bytes()
    at = data.index(torch.full((1000,), 1.5).numpy().tobytes()) + 1234
    file.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    assert "damaged" in refused(file)


def test_garbage_is_refused(tmp_path: Path) -> None:
    """Most of these reach torch's reader of the format before 1.6, which fails in many ways."""
    file = tmp_path / "garbage.pt"
    rng = np.random.default_rng(0)
    for _ in range(300):
        file.write_bytes(rng.bytes(int(rng.integers(1, 60))))
        refused(file)
    torch.save(small_content(), file, _use_new_zipfile_serialization=False)
    data = file.read_bytes()
    for size in range(0, len(data), 7):
        file.write_bytes(data[:size])
        refused(file)


@pytest.mark.parametrize("data", [b"", b"weights\n", b"\n" * 10_000, b"PK\x03\x04", b"\x80\x02", b"{}"])
def test_other_files_are_refused(data: bytes, tmp_path: Path) -> None:
    file = tmp_path / "file.pt"
    file.write_bytes(data)
    refused(file)


def test_what_is_not_a_file_is_refused(tmp_path: Path) -> None:
    assert "no such file" in refused(tmp_path / "none.pt")
    refused(tmp_path)
    (tmp_path / "loop.pt").symlink_to(tmp_path / "loop.pt")
    refused(tmp_path / "loop.pt")
    with zipfile.ZipFile(tmp_path / "some.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    refused(tmp_path / "some.zip")


@pytest.mark.parametrize(
    "content",
    [
        None,
        7,
        [1, 2],
        torch.zeros(3),
        {},
        {"model": {}},
        {"format": checkpoint.FORMAT},
        {"format": checkpoint.FORMAT, "model": {}},
        {"format": checkpoint.FORMAT, "model": {}, "detector": {"family": "ssd300"}},
        {"format": checkpoint.FORMAT, "model": torch.zeros(3), "detector": {"family": "ssd300"}, "categories": []},
        {**small_content(), "detector": {"family": "ssd300", "backbone": "vgg16"}},
        {**small_content(), "detector": {"family": "ssd301"}},
        {**small_content(), "detector": {"family": "ssd300", "colour": "red"}},
        {**small_content(), "detector": {}},
        {**small_content(), "format": checkpoint.FORMAT + 1},
        models.resnet18().state_dict(),
    ],
    ids=lambda content: str(list(content) if isinstance(content, dict) and len(content) < 9 else type(content))[:60],
)
def test_other_contents_are_refused(content: Any, tmp_path: Path) -> None:
    file = tmp_path / "file.pt"
    torch.save(content, file)
    refused(file)


# --- models out of checkpoints ---


def test_build_model_is_the_saved_one(tmp_path: Path) -> None:
    model = seeded(1, "resnet18", 4)
    checkpoint.save(tmp_path / "best.pt", content_of(model, CATEGORIES))
    built = checkpoint.build_model(checkpoint.load(tmp_path / "best.pt"), tmp_path / "best.pt")
    assert built.backbone == "resnet18" and built.num_classes == 4
    assert equal(dict(built.state_dict()), dict(model.state_dict()))


def test_a_checkpoint_of_format_1_is_an_ssd300(tmp_path: Path) -> None:
    model, file = seeded(1, "resnet18", 4), tmp_path / "best.pt"
    content = content_of(model, CATEGORIES)
    del content["detector"]
    old = {**content, "format": 1, "backbone": "resnet18", "settings": {"augmentation": "published"}}
    checkpoint.save(file, old)
    read = checkpoint.load(file)
    assert checkpoint.settings_of(read) == SSD300Settings("resnet18", "published")
    assert equal(dict(checkpoint.build_model(read, file).state_dict()), dict(model.state_dict()))


def test_build_model_refuses_weights_of_another(tmp_path: Path) -> None:
    for wrong in (
        {**content_of(seeded(0, "resnet18", 4), CATEGORIES), "detector": {"family": "ssd300", "backbone": "resnet34"}},
        content_of(seeded(0, "resnet18", 4), CATEGORIES[:2]),
        small_content(),
        {**small_content(), "model": {}},
    ):
        file = tmp_path / "file.pt"
        checkpoint.save(file, wrong)
        refused(file, lambda file: checkpoint.build_model(checkpoint.load(file), file))


def test_require_categories() -> None:
    content, file = small_content(), Path("best.pt")
    checkpoint.require_categories(content, file, list(CATEGORIES), "DIR")

    def message(categories: list[tuple[int, str]]) -> str:
        with pytest.raises(InputError) as refusal:
            checkpoint.require_categories(content, file, categories, "DIR")
        text = str(refusal.value)
        assert "best.pt" in text and "DIR" in text and "fine-tune" in text and "\n" not in text
        return text

    assert "trained on 3 categories, DIR has 2" in message(CATEGORIES[:2])
    assert "category 1 'balloon' there is 3 'crate' here" in message([CATEGORIES[1], CATEGORIES[0], CATEGORIES[2]])
    assert "category 90 'star' there is 90 'moon' here" in message([*CATEGORIES[:2], (90, "moon")])
    assert "category 90 'star' there is 91 'star' here" in message([*CATEGORIES[:2], (91, "star")])
    nameless = {"categories": [(1, "class 1"), (2, "class 2")]}
    with pytest.raises(InputError, match="does not say what its classes are called; put net.names beside it"):
        checkpoint.require_categories(nameless, Path("net.weights"), [(1, "a"), (2, "b")], "cells")


def fine_tuned(model: SSD300, content: dict[str, Any]) -> list[str]:
    return checkpoint.load_for_fine_tuning(model, SSD300Settings(model.backbone), content, Path("best.pt"))


def test_fine_tuning_takes_everything_that_fits() -> None:
    old, new = seeded(1, "resnet18", 4), seeded(2, "resnet18", 4)
    assert fine_tuned(new, content_of(old, CATEGORIES)) == []
    assert equal(dict(new.state_dict()), dict(old.state_dict()))


@pytest.mark.parametrize("num_classes", [3, 81])
def test_fine_tuning_onto_another_number_of_classes_keeps_the_rest(num_classes: int) -> None:
    old, new, fresh = seeded(1, "resnet18", 4), seeded(2, "resnet18", num_classes), seeded(2, "resnet18", num_classes)
    names = checkpoint.load_for_fine_tuning(
        new, SSD300Settings(new.backbone), content_of(old, CATEGORIES), Path("best.pt")
    )
    assert names == sorted(name for name in fresh.state_dict() if name.startswith("class_heads."))
    assert len(names) == 12  # six levels, a weight and a bias each
    for name, value in new.state_dict().items():
        source = fresh if name in names else old
        assert torch.equal(value, source.state_dict()[name]), name


def test_fine_tuning_onto_another_backbone_is_refused() -> None:
    old, new = seeded(1, "resnet18", 4), seeded(2, "resnet34", 4)
    before = {name: value.clone() for name, value in new.state_dict().items()}
    with pytest.raises(
        InputError,
        match=r"^--checkpoint best\.pt: holds SSD300-resnet18, .* trains SSD300-resnet34; pass --backbone resnet18$",
    ):
        fine_tuned(new, content_of(old, CATEGORIES))
    lying = {**content_of(old, CATEGORIES), "detector": R34}
    with pytest.raises(InputError, match=r"^--checkpoint best\.pt: its weights do not fit"):
        fine_tuned(new, lying)
    no_tensor = {**content_of(old, CATEGORIES), "detector": R34, "model": {"trunk.0.weight": 3}}
    with pytest.raises(InputError, match=r"^--checkpoint best\.pt: its weights do not fit"):
        fine_tuned(new, no_tensor)
    assert equal(dict(new.state_dict()), before)


def test_restoring_keeps_the_optimisers_own_implementation() -> None:
    """A checkpoint of another implementation must not replace the fused one, which takes the verdict on a step."""
    from ssd.config import Config
    from ssd.detectors.ssd300.loss import ssd_losses
    from ssd.distributed import Ranks
    from ssd.precision import grad_scaler
    from ssd.training.optimizer import build_optimizer
    from ssd.training.state import Training

    def training() -> Training:
        model, cpu = torch.nn.Linear(2, 2), torch.device("cpu")
        optimizer = build_optimizer(model, Config())
        return Training(model, optimizer, grad_scaler(Config(), cpu), ssd_losses, Config(), Ranks(0, 0, 1, cpu))

    other, own = training(), training()
    for group in other.optimizer.param_groups:
        group.update(fused=False, foreach=True)
    own.restore(other.state())
    assert all(group["fused"] and not group["foreach"] for group in own.optimizer.param_groups)


def test_a_run_cannot_go_on_from_weights_alone(tmp_path: Path) -> None:
    file = tmp_path / "best.safetensors"
    file.write_bytes(b"whatever")
    with pytest.raises(InputError, match=r"^--resume .*best.safetensors: holds a model but no run; pass it as --check"):
        checkpoint.load_run(file)
    with pytest.raises(InputError, match="no such file"):
        checkpoint.load_run(tmp_path / "none.safetensors")
