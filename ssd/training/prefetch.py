"""Batches that come to the GPU while it computes."""

from collections.abc import Iterator

import torch

from ssd.batch import Batch


def on_side_stream(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """The same batches. On a GPU, what copies and finishes them runs on a stream of its own, beside the steps that the
    device still has before it: the host is ahead of it anyway, so no batch is taken before its turn, and the loader's
    state stays that of the batches taken."""
    if device.type != "cuda":
        yield from batches
        return
    stream = torch.cuda.Stream(device)
    while True:
        with torch.cuda.stream(stream):
            batch = next(batches)
        training_stream = torch.cuda.current_stream(device)
        training_stream.wait_stream(stream)
        for tensor in batch:
            if tensor.is_cuda:
                tensor.record_stream(training_stream)  # its memory is the side stream's again only after the step
        yield batch
