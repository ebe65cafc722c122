"""Whether the images of a data set are used as they are stored or as EXIF turns them, and a look at all their heads.

Boxes are in the pixels of one of the two. The stated sizes tell which, of images that EXIF turns by a quarter: stored,
a picture is 160 x 120, upright it is 120 x 160. Where sizes are not stated, as in YOLO's files, tools show images
upright; where nothing tells, images are used as they are stored, as COCO's are.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch

from pipelines.annotations import Annotations
from pipelines.readers.headers import Header, read_headers
from pipelines.readers.image_files import unreadable
from pipelines.readers.scan import dropping_the_verdict
from ssd.distributed import Ranks, sum_over_ranks
from ssd.errors import InputError


class Votes(NamedTuple):
    """How many images EXIF turns, and what the stated sizes say of those that show it."""

    turned: int = 0
    say_stored: int = 0
    say_upright: int = 0


def count_votes(headers: Sequence[Header], stated_px: Sequence[Sequence[int]]) -> Votes:
    """stated_px: (width, height) of each."""
    turned = stored = upright = 0
    for header, (width, height) in zip(headers, stated_px, strict=True):
        turned += header.orientation != 1
        if header.size_px != header.upright_size_px:
            stored += header.size_px == (width, height)
            upright += header.upright_size_px == (width, height)
    return Votes(turned, stored, upright)


def decide(votes: Votes, choice: str, states_sizes: bool, name: str) -> tuple[bool, str]:
    """Whether to turn images upright, and what to say of it, '' where no image is concerned.

    choice: "upright", "stored" or '' for what the sizes say. Raises InputError where they say both.
    """
    if choice:
        why = f"as --exif {choice} says"
    elif votes.say_stored and votes.say_upright:
        raise InputError(
            f"{name}: of the images that EXIF turns, {votes.say_upright} are stated by their upright size and "
            f"{votes.say_stored} as they are stored; correct the sizes of the ones, or pass --exif upright or stored"
        )
    elif votes.say_upright or votes.say_stored:
        choice = "upright" if votes.say_upright else "stored"
        why = f"as the stated sizes are (--exif {'stored' if votes.say_upright else 'upright'} for the other)"
    elif not states_sizes:
        choice, why = "upright", "as no sizes are stated (--exif stored for the other)"
    else:
        choice, why = "stored", "as no stated size tells (--exif upright for the other)"
    if not votes.turned:
        return choice == "upright", ""
    used = "turned upright" if choice == "upright" else "used as they are stored"
    return choice == "upright", f"{name}: {votes.turned} images have an EXIF orientation; they are {used}, {why}"


def look_at_images(
    splits: Sequence[Annotations], indices: Sequence[np.ndarray], ranks: Ranks, choice: str = ""
) -> tuple[list[Annotations], str]:
    """The splits, which are used alike, after a look at the heads of these images of each; and what to say of EXIF.

    Each rank looks at its share. Raises InputError that names an image that cannot be used or is of another size.
    """
    shares = [chosen[ranks.rank :: ranks.world_size] for chosen in indices]
    headers = [_headers(split, share) for split, share in zip(splits, shares, strict=True)]
    own = [
        count_votes(found, split.sizes_px[share].tolist())
        for split, share, found in zip(splits, shares, headers, strict=True)
    ]
    votes = Votes(*sum_over_ranks(torch.tensor(own).sum(dim=0), ranks).tolist())
    states_sizes = any(split.states_sizes for split in splits)
    upright, text = decide(votes, choice, states_sizes, str(splits[0].file))
    for split, share, found in zip(splits, shares, headers, strict=True):
        for index, header in zip(share.tolist(), found, strict=True):
            size_px = header.upright_size_px if upright else header.size_px
            if size_px != (stated := tuple(split.sizes_px[index].tolist())):
                raise InputError(_other_size(split, index, header, size_px, stated))
    return [replace(split, is_upright=upright, was_looked_at=True) for split in splits], text


def _headers(split: Annotations, share: np.ndarray) -> list[Header]:
    paths = [split.image_folder / split.file_names[index] for index in share.tolist()]
    headers = []
    for index, path, header in zip(share.tolist(), paths, read_headers(paths), strict=True):
        if not isinstance(header, Header):
            with dropping_the_verdict(split, index):
                raise unreadable(path, header) from header
        headers.append(header)
    return headers


def _other_size(
    split: Annotations, index: int, header: Header, size_px: tuple[int, int], stated_px: tuple[int, int]
) -> str:
    cause = ""
    if header.size_px != header.upright_size_px:
        cause = f" (EXIF orientation {header.orientation}; --exif upright or stored chooses which size is meant)"
    return (
        f"{split.image_folder / split.file_names[index]}: is {size_px[0]} x {size_px[1]} pixels, but "
        f"{split.file} says {stated_px[0]} x {stated_px[1]}{cause}; correct the one or the other"
    )
