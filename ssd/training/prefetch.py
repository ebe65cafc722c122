"""Batches that come to the GPU while it computes."""

from collections.abc import Iterator

import torch

from ssd.batch import Batch


def on_side_stream(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """The same batches. On a GPU a second stream copies and finishes them while the device computes earlier steps.

    No batch is taken before its turn, because the host runs ahead of the device anyway. So the loader's state is always
    that of the batches which training has taken.
    """
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
            if tensor is not None and tensor.is_cuda:
                tensor.record_stream(training_stream)  # its memory is the side stream's again only after the step
        yield batch
