"""main.py evaluate: a checkpoint judged on a split."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ssd.cli.splits import data_name, held_out_texts, judged_text, split_to_judge
from ssd.config import Config
from ssd.errors import InputError
from ssd.options.detectors import add_set_flags, for_detector
from ssd.options.flags import (
    CHECKPOINT_HELP,
    Parser,
    add_data_flags,
    add_evaluation_flags,
    add_machine_flags,
    add_timeout_flag,
    add_tta_flag,
    config_of,
    require_folder_of,
)

if TYPE_CHECKING:
    from ssd.distributed import Ranks


def evaluate_parser() -> Parser:
    parser = Parser(
        "main.py evaluate",
        description="Judge a checkpoint on a data set by the COCO metrics, and by PASCAL VOC's.",
        epilog="example: main.py evaluate --data /coco --checkpoint runs/coco/checkpoints/best.pt\n"
        "exit codes: 0 done, 2 bad input, 3 another rank lost, 130 interrupted",
    )
    parser.add_argument("--checkpoint", required=True, metavar="FILE", help=CHECKPOINT_HELP)
    add_data_flags(parser, training=False)
    evaluation = parser.add_argument_group("evaluation")
    add_evaluation_flags(evaluation)
    add_tta_flag(evaluation)
    add_machine_flags(parser)
    group = parser.add_argument_group("run")
    add_timeout_flag(group, "another rank")
    add_set_flags(parser)
    group.add_argument("--json", metavar="FILE", help="write the metrics there too")
    group.add_argument(
        "--comp4", metavar="DIR", help="write the detections there as PASCAL VOC's development kit takes them"
    )
    group.add_argument(
        "--proposals",
        metavar="FILE",
        help="write the boxes there as Detectron's rpn_proposals.pkl, whatever their class",
    )
    return parser


def evaluate(arguments: Sequence[str]) -> int:
    options = vars(evaluate_parser().parse_args(arguments))
    local_rank, json_file = options.pop("local_rank"), options.pop("json")
    files = {name: options.pop(name) for name in ("comp4", "proposals")}
    words, is_tta_asked = options.pop("set", ()), options.pop("tta", None)
    config = config_of(options, Config())
    require_folder_of(json_file, "--json")
    require_folder_of(files["proposals"], "--proposals")
    if files["comp4"] is not None and Path(files["comp4"]).is_file():
        raise InputError(f"--comp4 {files['comp4']}: is a file; pass a folder")

    from ssd.distributed import process_group

    with process_group(config.device, local_rank, config.timeout) as ranks:
        return _evaluate(config, set(options), ranks, json_file, words, is_tta_asked, **files)


def _evaluate(
    config: Config,
    given: set[str],
    ranks: "Ranks",
    json_file: str | None,
    words: Sequence[str],
    is_tta_asked: bool | None,
    comp4: str | None,
    proposals: str | None,
) -> int:
    """words: of --set. is_tta_asked: as of `table.tta_of`."""
    import json
    from dataclasses import replace

    import torch

    import pipelines
    from ssd.checkpoints import checkpoint, conversion
    from ssd.console import say, say_on_stderr
    from ssd.detectors.table import tta_of, tta_text, view_of, view_with
    from ssd.evaluation.detect import detect_split
    from ssd.evaluation.metrics import metrics_of
    from ssd.evaluation.recall import proposals_of
    from ssd.evaluation.voc import write_comp4
    from ssd.run.printed_metrics import show_metrics
    from ssd.run.progress import told
    from ssd.storage.pickles import pickled
    from ssd.views import described, num_looks

    file = Path(config.checkpoint or "")
    content = conversion.with_words(conversion.load(file), words)
    config = for_detector(checkpoint.settings_of(content), config, given)
    tta = tta_of(config.detector, is_tta_asked)
    if tta is not None and "eval_batch_size" not in given:
        config = replace(config, eval_batch_size=1)  # of each image several sizes are in memory
    source, split, exif_text = split_to_judge(content, file, config, ranks)
    model = checkpoint.build_model(content, file).to(ranks.device).to(memory_format=torch.channels_last)
    loader = pipelines.build_eval(
        config.data_pipeline, split, batch_size=config.eval_batch_size, num_workers=config.num_workers, ranks=ranks,
        view=view_with(config.detector, tta),
    )  # fmt: skip
    ground_truth = split.ground_truth()
    if ranks.is_main:
        share = ranks.world_size / num_looks(view_with(config.detector, tta))
        loader = told(loader, len(split), say_on_stderr, images_each=share)
    results = detect_split(model, loader, ground_truth, config, ranks, tta)
    if results is not None:
        if len(results) == 0:  # in training that is a bad beginning, here it is a mistake
            raise InputError(
                f"{file}: detects nothing in {len(split)} images of {source.name}; lower --score-threshold "
                f"(it is {config.score_threshold}), or pass a checkpoint that was trained for longer"
            )
        metrics = metrics_of(ground_truth, results, names=config.metrics, engine=config.eval_engine)
        for warning in filter(None, (split.repairs_text, judged_text(split))):
            say_on_stderr(f"warning: {warning}")
        for note in filter(None, (*content.get("notes", ()), *held_out_texts(source), split.mended_text, exif_text)):
            say_on_stderr(f"note: {note}")
        said = tta_text(config.detector, tta)
        show_metrics(metrics, f"{data_name(config)} {source.name}, {len(split)} images, {file}{said and f', {said}'}")
        if json_file:
            about = {
                "images": len(split),
                "images_left_out": split.num_left_out,
                "tta": said or None,
                **described(view_of(config.detector)),
                **config.thresholds._asdict(),
            }
            Path(json_file).write_text(json.dumps({**metrics, **about}, indent=2) + "\n")
        if comp4:
            written = write_comp4(Path(comp4), ground_truth, results.rows, split.file_names)
            say(f"wrote {len(written)} files comp4_det_test_CLASS.txt to {comp4}")
        if proposals:
            found = {**proposals_of(ground_truth, results.rows), "cfg": getattr(config.detector, "cfg", "")}
            Path(proposals).write_bytes(pickled(found))
            say(f"wrote {len(results)} boxes of {len(split)} images to {proposals}")
    return 0
