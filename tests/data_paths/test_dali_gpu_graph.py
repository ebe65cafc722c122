"""DALI's graph for a GPU, as far as it can be held without one: its operators, and what they make on a CPU."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ragged_data
import torch
from square_view import VIEW, view_with

from pipelines.annotations import Annotations
from pipelines.ragged.draws import Sample
from pipelines.ragged.order import TrainingOrder, evaluation_batches
from pipelines.ragged.shown import shown
from pipelines.readers.coco import read_annotations
from pipelines.readers.scan import read_encoded, read_image
from ssd.distributed import Ranks
from ssd.images import normalise_padded, resize
from ssd.views import AUGMENTATIONS, RaggedView, StretchView

pytest.importorskip("nvidia.dali", reason="DALI is not installed")

from nvidia.dali import data_node, fn, types

from pipelines.dali import graph, loaders, ragged_graph

CPU = Ranks(0, 0, 1, torch.device("cpu"))
ON_A_GPU = [Ranks(rank, rank, 2, torch.device("cuda", rank)) for rank in (0, 1)]


def fields(message: bytes) -> list[tuple[int, Any]]:
    """(number, int or bytes) of a protobuf message, whose schema is not in DALI's wheel."""
    found, at = [], 0

    def integer() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(message):
        number, kind = divmod(integer(), 8)
        if kind == 0:
            found.append((number, integer()))
            continue
        length = {1: 8, 5: 4}.get(kind) or integer()
        found.append((number, message[at : at + length]))
        at += length
    return found


def operators(ranks: Ranks) -> list[tuple[str, dict[str, list[Any]]]]:
    """Those of the training graph of squares."""
    pipeline = graph.train_graph(
        annotation_file="",
        image_folder="",
        shuffle_seed=0,
        ranks=ranks,
        view=VIEW,
        upright=False,
        batch_size=1,
        num_threads=1,
        seed=0,
        device_id=None,
    )
    return operators_of(pipeline)


def operators_of(pipeline: Any) -> list[tuple[str, dict[str, list[Any]]]]:
    """Name and settings of each operator of a serialised graph."""
    found = []
    for operator in (fields(content) for number, content in fields(pipeline.serialize()) if number == 5):
        ((_, name), *_) = operator
        settings = {}
        for argument in (fields(content) for number, content in operator if number == 4):
            (_, key), _, *values = argument
            settings[key.decode()] = [value for number, value in values if number != 8]
        found.append((name.decode(), settings))
    return found


@pytest.mark.parametrize("augmentation", sorted(AUGMENTATIONS))
def test_every_local_rank_has_the_same_digest(augmentation: str) -> None:
    """Rank 0's is in the checkpoint that all ranks resume from."""
    settings = AUGMENTATIONS[augmentation]
    first, second = (graph.graph_digest(ranks, view_with(settings)) for ranks in ON_A_GPU)
    assert first == second != graph.graph_digest(CPU, view_with(settings))


def test_the_digest_of_cpu_graphs_stays() -> None:
    """Runs that began with an earlier revision resume. With another DALI they do not, whatever its digest."""
    if loaders.nvidia.dali.__version__ != "2.4.0":
        pytest.skip("the digests are those of DALI 2.4.0")
    digests = {name: graph.graph_digest(CPU, view_with(settings)) for name, settings in AUGMENTATIONS.items()}
    assert digests == {"own": "7cd00a0328f43ec8", "published": "5baa8871ff02de53"}


def test_whole_images_are_decoded_on_the_gpu() -> None:
    """No region is asked of a decoder: the GPU's refuse to decode one with smooth chroma."""
    found = operators(ON_A_GPU[0])
    devices = {name: settings["device"] for name, settings in found}
    assert [name for name in devices if name.startswith("decoders")] == ["decoders__Image"]
    expected = {"decoders__Image": b"mixed", "Resize": b"gpu", "BoxEncoder": b"gpu", "PeekImageShape": b"cpu"}
    assert {name: devices[name] for name in expected} == {name: [device] for name, device in expected.items()}
    decoder = dict(found)["decoders__Image"]
    assert decoder["jpeg_fancy_upsampling"] == [1] and decoder["adjust_orientation"] == [0]
    assert decoder["preallocate_width_hint"] == decoder["preallocate_height_hint"] == [640]


@pytest.mark.parametrize("augmentation", sorted(AUGMENTATIONS))
def test_its_batches_are_those_of_the_cpu_graph(
    augmentation: str, demo_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On CPU operators. All that is drawn is the same, and pixels within 2/255 on average in every image, as when a GPU
    decodes; far less is seen, as crops in the resize look beyond their edges."""
    split = replace(read_annotations(demo_data, "train2017"), was_looked_at=True)
    settings = AUGMENTATIONS[augmentation]

    def first_batches(ranks: Ranks) -> list[list[Any]]:
        pipeline = loaders.build_pipeline(
            graph.train_graph,
            split,
            with_boxes=True,
            ranks=ranks,
            batch_size=8,
            num_threads=2,
            shuffle_seed=1,
            view=view_with(settings),
            seed=5,
        )
        return [[list(map(np.array, output)) for output in pipeline.run()] for _ in range(3)]

    expected = first_batches(CPU)
    options = dict(output_type=types.RGB, adjust_orientation=False, jpeg_fancy_upsampling=True)
    monkeypatch.setattr(
        graph, "decode_on_gpu", lambda encoded, upright: fn.decoders.image(encoded, device="cpu", **options)
    )
    monkeypatch.setattr(data_node.DataNode, "gpu", lambda node: node)
    monkeypatch.setattr(loaders, "_device_id", lambda ranks: None)
    found = first_batches(Ranks(0, 0, 1, torch.device("cuda", 0)))
    differences = []
    for ours, theirs in zip(found, expected, strict=True):
        for drawn, other in zip(ours[1:], theirs[1:], strict=True):
            assert all(np.array_equal(a, b) for a, b in zip(drawn, other, strict=True))
        for image, crop in zip(ours[0], theirs[0], strict=True):
            resized = resize(crop, (300, 300), antialias=settings.antialias)
            differences.append(np.abs(image.astype(float) - resized).mean())
    assert len(differences) == 24 and max(differences) < 2 and np.mean(differences) < 0.5


# Of a view that keeps shapes


def ragged_pipeline(
    batch: list[Sample], encoded: list[np.ndarray], ranks: Ranks, view: RaggedView, split: Annotations
) -> Any:
    return ragged_graph.ragged_graph(
        source=lambda: ragged_graph.inputs_of(batch, encoded, view, split),
        view=view,
        ranks=ranks,
        upright=False,
        batch_size=len(batch),
        num_threads=1,
        device_id=None,
    )


def test_ragged_batches_are_made_on_the_gpu(tmp_path: Path) -> None:
    split = ragged_data.write(tmp_path)
    found = operators_of(ragged_pipeline([Sample(0, (8, 8), False)], [], ON_A_GPU[0], ragged_data.VIEW, split))
    devices = {name: settings["device"] for name, settings in found}
    expected = {"decoders__Image": b"mixed", "Resize": b"gpu", "CropMirrorNormalize": b"gpu"}
    assert {name: devices[name] for name in expected} == {name: [device] for name, device in expected.items()}


@pytest.mark.parametrize("antialias", [False, True])
def test_its_ragged_batches_are_those_of_torch(
    antialias: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On CPU operators: resized, mirrored, normalised and padded by DALI, pixels are within 1/255 on average in every
    image, and the padding is 0."""
    split = ragged_data.write(tmp_path)
    view = ragged_data.VIEW._replace(antialias=antialias)
    options = dict(output_type=types.RGB, adjust_orientation=False, jpeg_fancy_upsampling=True)
    monkeypatch.setattr(
        ragged_graph, "decode_on_gpu", lambda encoded, upright: fn.decoders.image(encoded, device="cpu", **options)
    )
    for batch in evaluation_batches(split, view, batch_size=6, ranks=CPU):
        batch = [sample._replace(flip=number % 2 == 1) for number, sample in enumerate(batch)]
        pipeline = ragged_pipeline(batch, [read_encoded(split, s.image) for s in batch], ON_A_GPU[0], view, split)
        pipeline.build()
        (output,) = pipeline.run()
        found = torch.from_numpy(np.array(output.as_tensor())).permute(0, 3, 1, 2)
        resized = [resize(read_image(split, s.image), s.size_px, antialias=antialias) for s in batch]
        flipped = [image[:, ::-1].copy() if s.flip else image for image, s in zip(resized, batch, strict=True)]
        expected = normalise_padded([torch.from_numpy(image) for image in flipped], view)
        assert found.shape == expected.shape and found.dtype == torch.float32
        for ours, theirs, (width, height) in zip(found, expected, (s.size_px for s in batch), strict=True):
            inside = (ours - theirs)[:, :height, :width] * torch.tensor(view.std).view(3, 1, 1)
            assert inside.abs().mean() < 1 / 255 and inside.abs().max() < 3 / 255
            assert not ours[:, height:].any() and not ours[:, :, width:].any()


def test_its_windows_reach_beyond_the_image_as_in_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On CPU operators: DALI repeats the border. Near a window's edge it sees the image beyond, which the crop does not
    have, so a pixel there may be another; on average they are within 2/255."""
    split = ragged_data.write(tmp_path)
    view = StretchView((32, 24), ((32, 24), (48, 40)), steps_a_size=1, jitter=0.4)
    options = dict(output_type=types.RGB, adjust_orientation=False, jpeg_fancy_upsampling=True)
    monkeypatch.setattr(
        ragged_graph, "decode_on_gpu", lambda encoded, upright: fn.decoders.image(encoded, device="cpu", **options)
    )
    order = TrainingOrder(split, view, batch_size=10, seed=1, ranks=CPU)
    differences, beyond = [], 0
    for _, step in zip(range(3), order.steps((0, 0)), strict=False):
        batch = step.samples
        pipeline = ragged_pipeline(batch, [read_encoded(split, s.image) for s in batch], ON_A_GPU[0], view, split)
        pipeline.build()
        (output,) = pipeline.run()
        found = torch.from_numpy(np.array(output.as_tensor())).permute(0, 3, 1, 2)
        pixels = [shown(read_image(split, s.image), s, antialias=False) for s in batch]
        expected = normalise_padded(pixels, view)
        assert found.shape == expected.shape
        differences += (found - expected).abs().mean(dim=(1, 2, 3)).tolist()
        beyond += sum(s.window_ltrb_px is not None and min(s.window_ltrb_px[:2]) < 0 for s in batch)
    assert beyond > 10 and max(differences) < 2 / 255


def test_it_fits_images_in_as_torch_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On CPU operators: in the same place, with the same gray around, mirrored as a whole."""
    split = ragged_data.write(tmp_path)
    view = StretchView((32, 24), ((32, 24), (48, 40)), steps_a_size=1, jitter=0.4, fits=True)
    options = dict(output_type=types.RGB, adjust_orientation=False, jpeg_fancy_upsampling=True)
    monkeypatch.setattr(
        ragged_graph, "decode_on_gpu", lambda encoded, upright: fn.decoders.image(encoded, device="cpu", **options)
    )
    order = TrainingOrder(split, view, batch_size=10, seed=1, ranks=CPU)
    batches = [step.samples for _, step in zip(range(2), order.steps((0, 0)), strict=False)]
    for batch in [*batches, *evaluation_batches(split, view, batch_size=6, ranks=CPU)]:
        pipeline = ragged_pipeline(batch, [read_encoded(split, s.image) for s in batch], ON_A_GPU[0], view, split)
        pipeline.build()
        (output,) = pipeline.run()
        found = torch.from_numpy(np.array(output.as_tensor())).permute(0, 3, 1, 2)
        expected = normalise_padded([shown(read_image(split, s.image), s, antialias=False) for s in batch], view)
        assert found.shape == expected.shape
        assert (found - expected).abs().mean() < 1 / 255 and (found - expected).abs().max() < 4 / 255
    assert any(s.flip for s in batches[0]) and any(not s.flip for s in batches[0])
