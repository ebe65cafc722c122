"""main.py check, show-data and download: data sets before a training."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ssd.cli.splits import find_splits, held_out_texts, read_split
from ssd.config import Config
from ssd.errors import InputError
from ssd.options.detectors import add_detector_flags, detector_in
from ssd.options.flags import (
    COUNT,
    EXIT_CODES,
    SEED,
    Parser,
    add_data_folder_flag,
    add_exif_flag,
    add_several_pipelines_flag,
    add_split_flags,
    config_of,
    flag,
    pipelines_named,
    require_folder_of,
    require_picture,
)


def check_parser() -> Parser:
    parser = Parser(
        "main.py check",
        description="Read every annotation and decode every image of a data set, and list all that is wrong with it.\n"
        "Changes nothing; --on-bad-image skip need not read the images again after it.",
        epilog="example: main.py check --data /coco --json findings.json\n"
        "exit codes: 0 clean, or only harmless findings, 1 findings that would stop a run or change what it learns or\n"
        "scores, 2 bad input, 130 interrupted",
    )
    group = parser.add_argument_group("data")
    add_data_folder_flag(group)
    add_split_flags(group, "train", "val")
    add_exif_flag(group)
    flag(
        group, "--detector", dest="detector", metavar="NAME",
        help="what the data are for: of a Mask or Keypoint R-CNN, broken masks or keypoints stop a run",
    )  # fmt: skip
    group.add_argument("--num-workers", type=COUNT, metavar="N", help="threads that decode (default: one a core)")
    parser.add_argument(
        "--json", metavar="FILE", help="write every finding there; the console shows a few of each kind"
    )
    return parser


def check(arguments: Sequence[str]) -> int:
    options = vars(check_parser().parse_args(arguments))
    threads, json_file = options.pop("num_workers") or os.cpu_count() or 1, options.pop("json")
    config = config_of(options, Config().with_detector(detector_in(arguments)))
    require_folder_of(json_file, "--json")

    from pipelines import check as data_check
    from ssd.console import Console
    from ssd.detectors.table import view_of

    train, val = find_splits(config)
    reports = data_check.check(train, val, threads, config.exif, view_of(config.detector))
    console = Console()
    for text in held_out_texts(train, val):
        console.print(f"note: {text}", markup=False, soft_wrap=True)
    data_check.show(reports, console)
    if json_file:
        data_check.write_json(Path(json_file), reports)
    return data_check.exit_code(reports)


def show_data_parser(settings: Any = Config.detector) -> Parser:
    parser = Parser(
        "main.py show-data",
        description="Write a picture of what the detector learns from: augmented images, their boxes (thick) and the\n"
        "default boxes matched to them (thin).",
        epilog=f"example: main.py show-data --data demo --data_pipeline both --output data.png\n{EXIT_CODES}",
    )
    group = parser.add_argument_group("data")
    add_data_folder_flag(group)
    add_split_flags(group, "train")
    add_exif_flag(group)
    add_several_pipelines_flag(group)
    flag(group, "--seed", "-s", dest="seed", type=SEED, metavar="N", help="default: 0")
    add_detector_flags(parser, settings)
    group = parser.add_argument_group("picture")
    group.add_argument("--output", default="show-data.png", metavar="FILE", help="PNG or JPEG (default: %(default)s)")
    group.add_argument("--rows", type=COUNT, default=3, metavar="N", help="(default: %(default)s)")
    group.add_argument("--columns", type=COUNT, default=3, metavar="N", help="a data path (default: %(default)s)")
    return parser


def show_data(arguments: Sequence[str]) -> int:
    settings = detector_in(arguments)
    options = vars(show_data_parser(settings).parse_args(arguments))
    output, rows, columns = Path(options.pop("output")), options.pop("rows"), options.pop("columns")
    names = pipelines_named(options.pop("data_pipeline"))
    config = config_of(options, Config(seed=0).with_detector(settings))
    require_picture(str(output), "--output")

    import torch

    import pipelines
    from pipelines.exif import look_at_images
    from pipelines.show import write_mosaic
    from ssd.console import say
    from ssd.detectors.table import view_of
    from ssd.distributed import Ranks
    from ssd.pictures.lettering import note_on_numbers, shown_in_picture
    from ssd.views import shows_empty

    here = Ranks(0, 0, 1, torch.device("cpu"))
    view = view_of(config.detector)
    split = read_split(config, "train")
    shown = split.trainable_indices(with_empty=shows_empty(view))
    (split,), exif_text = look_at_images([split], [shown], here, config.exif)
    if exif_text:
        say(f"note: {exif_text}")
    loaders = {
        name: pipelines.build_train(
            name, split, batch_size=columns, num_workers=1, seed=config.seed or 0, ranks=here, view=view
        )
        for name in names
    }
    skeleton = split.keypoints.skeleton if split.keypoints else None
    class_names = [category.name for category in split.categories]
    write_mosaic(output, loaders, class_names, view, rows=rows, columns=columns, skeleton=skeleton)
    if note := note_on_numbers({name: shown_in_picture(name, label) for label, name in enumerate(class_names, 1)}):
        say(f"note: {note}")
    say(f"wrote {output}")
    return 0


def download_parser() -> Parser:
    parser = Parser(
        "main.py download",
        description="Fetch COCO 2017 (20 GB, and as much again while it is unpacked), or PASCAL VOC 2007 and\n"
        "2012 (3 GB), into a folder to train on. Run again after an interruption, it goes on where it was.",
        epilog=f"example: main.py download --dataset voc --data /data/VOCdevkit\n{EXIT_CODES}",
    )
    parser.add_argument("--data", "-d", required=True, metavar="DIR", help="folder for it; made if it is not there")
    parser.add_argument(
        "--dataset", choices=("coco", "voc"), default="coco",
        help="voc: trainval of 2007 and 2012, test of 2007 (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--url", metavar="URL",
        help="a server that has the archives under the paths of the data set's own one (default: that one)",
    )  # fmt: skip
    return parser


def download(arguments: Sequence[str]) -> int:
    options = download_parser().parse_args(arguments)
    folder = Path(options.data)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--data {folder}: not a folder; pass another path")

    from pipelines.download import COCO_2017, COCO_URL, VOC_2007_2012, VOC_URL
    from pipelines.download import download as fetch
    from ssd.console import say

    title, own_url, archives = {
        "coco": ("COCO 2017", COCO_URL, COCO_2017),
        "voc": ("PASCAL VOC", VOC_URL, VOC_2007_2012),
    }[options.dataset]
    fetched = fetch(folder, options.url or own_url, archives)
    say(f"{folder}: fetched {', '.join(fetched)}" if fetched else f"{folder}: {title} is there already")
    return 0
