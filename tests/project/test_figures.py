"""Every figure of the README and of the docs is that of a result file, whose revision is in the history."""

import json
import re
import statistics
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
RESULTS = sorted((ROOT / "benchmarks" / "results").glob("*.json"))
PAGES = [str(page.relative_to(ROOT)) for page in (ROOT / "README.rst", *sorted((ROOT / "docs").rglob("*.rst")))]
# What a result file says of where it comes from; the rest are figures, settings and the machine.
PROVENANCE = {"git_revision", "first_in_revision", "note"}


def git(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)


def has_history() -> bool:
    """Whether this is a clone, and a whole one: no source archive, no clone of the last commits only."""
    try:
        said = git("rev-parse", "--show-toplevel", "--is-shallow-repository").stdout.split("\n")
    except FileNotFoundError:  # no git
        return False
    return said[:2] == [str(ROOT), "false"]


def revisions(content: Any) -> Iterator[str]:
    """Of the whole file, or of each row."""
    if isinstance(content, dict):
        for name, value in content.items():
            if name in ("git_revision", "first_in_revision"):
                yield value
            else:
                yield from revisions(value)
    elif isinstance(content, list):
        for value in content:
            yield from revisions(value)


def figures_of(content: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in content.items() if name not in PROVENANCE}


@pytest.mark.skipif(not has_history(), reason="this is no clone with its whole history")
@pytest.mark.parametrize("file", RESULTS, ids=lambda file: file.stem)
def test_a_result_names_its_revision_which_is_in_the_history(file: Path) -> None:
    """git_revision: of the code that was run. first_in_revision: the first with figures of a run that noted none."""
    content = json.loads(file.read_text())
    named = list(revisions(content))
    assert named
    for revision in named:
        commit = revision.removesuffix("-dirty")
        assert re.fullmatch("[0-9a-f]{40}", commit)
        assert git("merge-base", "--is-ancestor", commit, "HEAD").returncode == 0, f"{commit} is not in the history"
        assert commit == revision or "working copy" in content["note"]  # says what differed
    if "first_in_revision" in content:
        then = git("show", f"{content['first_in_revision']}:{file.relative_to(ROOT)}").stdout
        assert figures_of(json.loads(then)) == figures_of(content)


def test_the_machine_stands_beside_every_result() -> None:
    for file in RESULTS:
        content = json.loads(file.read_text())
        assert content["hardware"]["cpu_model"] and content["versions"]["torch"], file


# What the pages say, made of the result files


@cache
def result(name: str) -> Any:
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())


def seeds(what: str, key: str) -> list[float]:
    names = (f"{what}-seed1" if what == "dle" else what, f"{what}-seed2", f"{what}-seed3")
    return [result(f"accuracy-bccd-{name}")[key] for name in names]


def of_seeds(what: str, key: str) -> str:
    """Such as "0.546, 0.553, 0.543"."""
    return ", ".join(f"{value:.3f}" for value in seeds(what, key))


def mean_ap(what: str) -> str:
    return f"{statistics.mean(seeds(what, 'AP')):.3f}"


def minutes(name: str) -> str:
    return f"{result(f'accuracy-{name}')['train_seconds'] / 60:.1f}"


def data(name: str) -> dict[str, Any]:
    found: dict[str, Any] = result("data-cpu-peers")[name]
    return found


def data_row(name: str) -> str:
    """Images a second, CPU ms an image and the share of decoding alone, as the table has them."""
    measured, ratios = data(name), result("data-cpu-peers")["ratios"]
    share = ratios.get(f"{name} / decode_only", 1)
    milliseconds = 1000 * measured["cpu_seconds_per_image"]
    return f"{measured['images_per_second']:.0f} {milliseconds:.2f} {100 * share:.0f} %"


def data_ratio(ours: str, peer: str) -> str:
    return f"{result('data-cpu-peers')['ratios'][f'{ours} / {peer}']:.2f}"


def through(name: str) -> str:
    return f"{result('data-cpu-through-train')['through_train'][name]['images_per_second']:.1f}"


def waits(name: str) -> str:
    """Per cent of the time that training waits for data."""
    return f"{100 * result('data-cpu-through-train')['through_train'][name]['data_wait_fraction']:.0f}"


def step(of: str, figure: str) -> float:
    (batch,) = result("train-cpu-peers")["by_batch_size"]
    return float(batch[figure][of])


def milliseconds(part: str) -> str:
    (found,) = (
        each
        for each in result("train-cpu")["configurations"]
        if (each["precision"], each["batch_size"]) == ("bf16", 16)
    )
    return f"{found['milliseconds'][part]:.0f}"


def metrics_s(engine: str) -> str:
    return f"{statistics.median(each[engine] for each in result('metrics')['rounds_s']):.1f}"


def post(name: str) -> str:
    return f"{result(f'postprocess-{name}')['dle / ours']:.1f}"


def found(name: str) -> str:
    return f"{result(f'postprocess-{name}')['detections_per_image']:.0f}"


def scale_row(what: str, *at: str, unit: str = " MB", digits: int = 0, less: str = "") -> str:
    """A row of the table of docs/scale.rst: a value of each size, less another of the same measurement."""
    cells = []
    for size in result("scale")["sizes"]:
        *way, name = at
        for key in way:
            size = size[key]
        cells.append(f"{size[name] - (size[less] if less else 0):,.{digits}f}{unit}")
    return " ".join([what, *cells])


def least_and_most(names: list[str], key: str, digits: int = 2) -> str:
    values = [result(name)[key] for name in names]
    return f"{min(values):.{digits}f} to {max(values):.{digits}f}"


def eight_epochs(key: str) -> str:
    values = [row[key] for row in result("accuracy-on-off")["rows"]]
    return f"{min(values):.2f} to {max(values):.2f}"


def three_of(everything: str) -> str:
    first, second, third = (
        f"{row['AP']:.3f}" for row in result("accuracy-on-off")["rows"] if row["everything"] == everything
    )
    return f"{first}, {second} and {third}"


SPREAD = max(max(seeds(what, "AP")) - min(seeds(what, "AP")) for what in ("dali", "no_dali", "dle"))
DEMO, PEER = "accuracy-demo", step("dle", "images_per_second")
FIFTY_EPOCHS = [file.stem for file in RESULTS if re.match("accuracy-bccd-(no_)?dali", file.stem)]
BATCH = result("train-cpu-peers")["by_batch_size"][0]
FP32_MFU = {
    each["batch_size"]: each["mfu"] for each in result("train-cpu")["configurations"] if each["precision"] == "fp32"
}


# Of each page: what it says, with spaces as one.
def ragged(name: str, path: str) -> str:
    return f"{result(f'data-ragged{name}-cpu')['ratios'][f'{path} / torchvision']:.2f}"


def their_steps(precision: str, what: str) -> str:
    """How many times as long torchvision's step takes, by the processor's time: RetinaNet, Faster and Mask R-CNN."""
    steps = result(f"torchvision-steps{precision}-cpu")["results"]
    return "{}, {} and {} times".format(*(f"{each['ratios'][f'{what}_processor_s']:.2f}" for each in steps))


def their_steps_by_clock(precision: str) -> str:
    steps = result(f"torchvision-steps{precision}-cpu")["results"]
    return "{}, {} and {} times".format(*(f"{each['ratios']['reference_s']:.2f}" for each in steps))


def demo_ap(name: str, word: str = "") -> str:
    found = result(f"accuracy-demo-{name}")
    return f"{found['AP']:.3f} ({word}{found['AP50']:.3f})"


def of_masks(name: str, of_boxes: str = "", of_masks: str = "") -> str:
    found = result(f"accuracy-demo-maskrcnn{name}")
    return f"{found['AP']:.3f}{of_boxes} and {found['segm_AP']:.3f}{of_masks}"


def of_points(name: str, of_boxes: str = "", of_points: str = "") -> str:
    found = result(f"accuracy-demo-keypointrcnn{name}")
    return f"{found['AP']:.3f}{of_boxes} and {found['keypoints_AP']:.3f}{of_points}"


def worker_mib(name: str, path: str) -> str:
    return f"{result(f'data-ragged{name}-cpu')['worker_mib'][path]:.0f}"


def cost_of_pkd(place: int) -> dict[str, Any]:
    found: dict[str, Any] = result("distillation-cpu")["results"][place]
    return {**found, "gflop": f"{found['teacher_flops_an_image'] / 1e9:.1f} GFLOP"}


def taught_rows(name: str) -> list[str]:
    """The lines of a table, with spaces as one, without the student's name."""
    rows = {row["name"]: row for row in result(name)["over_seeds"]}
    lines = []
    for way, row in rows.items():
        if way not in ("teacher", "plain"):
            method, _, settings = way.partition("--distill-settings")
            words = [
                *(f"{rows[each]['AP']:.3f}" for each in ("teacher", "plain")),
                f"``{(settings or method).strip()}``",
            ]
            lines.append(" ".join([*words, f"{row['AP']:.3f}", f"{row['gain']:.3f} ± {row['sd of it']:.3f}"]))
    return lines


def of_teachers() -> list[str]:
    """What is said below the table."""
    scratch, retinanet, quarter = (
        result(f"taught-{name}")["over_seeds"] for name in ("scratch-bccd", "retinanet-demo", "quarter-bccd")
    )

    def made_up(rows: list[dict[str, Any]]) -> str:
        teacher, plain, taught = (row["AP"] for row in rows[:3])
        return f"{(taught - plain) / (teacher - plain):.0%}".replace("%", " %")

    def longer(rows: list[dict[str, Any]], place: int) -> str:
        return f"{rows[place]['minutes'] / rows[1]['minutes']:.1f}"

    return [
        f"makes up {made_up(scratch)} of the distance to its teacher, the RetinaNet {made_up(retinanet)} with PKD.",
        f"takes {longer(scratch, 2)} times as long as a plain one for the SSD300, and {longer(retinanet, 2)} (PKD) and "
        f"{longer(retinanet, 3)} times (GID) for",
        f"Its gain of {quarter[2]['gain']:.3f} is",
        f"20 plain epochs come to {compressed('quarter')['AP']:.3f} (",
    ]


def of_yolo(path: str) -> str:
    found = result(f"accuracy-bccd-yolov2-tiny-{path}")
    return f"{found['AP']:.3f} and {found['AP50']:.3f}"


def sizes_rows() -> list[str]:
    """The lines of the table; by both data paths the same."""
    rows = result("accuracy-bccd-yolov2-tiny-sizes")["rows"]
    of_path = {
        path: [f"{row['side_px']} {row['AP']:.3f} {row['AP50']:.3f}" for row in rows if row["data_pipeline"] == path]
        for path in ("dali", "no_dali")
    }
    assert of_path["dali"] == of_path["no_dali"] and of_yolo("dali") == of_yolo("no_dali")
    return of_path["dali"]


def equal_minutes() -> list[str]:
    short, long, ssd300 = (
        {**row, "minutes": f"{row['minutes']:.1f}", "APs": f"AP {row['AP']:.3f} and AP50 {row['AP50']:.3f}"}
        for row in result("equal-minutes-bccd")["rows"]
    )
    return [
        f"50 epochs take {ssd300['minutes']} minutes, for {ssd300['APs']} (three seeds)",
        f"has {short['APs']} after 72 epochs, which take {short['minutes']},",
        f"its 180 epochs take {long['minutes']} (",
    ]


def pruned_rows(name: str) -> list[str]:
    """The lines of a table, with spaces as one."""
    millions, one = ("parameters", "not 0"), ("GFLOP", "MB", "MB zipped", "ms torch", "ms onnx")
    lines = []
    for row in result(name)["rows"]:
        pruned = row["name"] if row["name"] == "dense" else f"{row['name']} %"
        words = [pruned, *(f"{row[key]:.3f}" for key in ("AP50 before", "AP50 after", "AP after"))]
        words += [*(f"{row[key] / 1e6:.1f}" for key in millions), *(f"{row[key]:.1f}" for key in one)]
        lines.append(" ".join([*words, f"{row['times as fast']:.2f}"]))
    return lines


def by_layer() -> list[str]:
    """What is said of filters taken from each layer."""
    rows = {row["name"]: row for row in result("pruned-by-layer-bccd")["rows"]}
    dense, w90, f40, f60 = (rows[name] for name in ("dense", "weights 90", "filters 40", "filters 60"))
    return [
        f"40 % of each layer gone an image is {f40['times as fast']:.2f} times as fast, with 60 % "
        f"{f60['times as fast']:.2f} times.",
        f"AP is {w90['AP after']:.3f}, where the dense network has {dense['AP after']:.3f}.",
        f"filters 40 % come to AP50 {result('accuracy-bccd-yolov2-tiny-filters-40')['AP50']:.3f} ",
        f"by layer even 60 % come to {f60['AP50 after']:.3f}.",
    ]


def compressed(name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(row for row in result("frontier-bccd")["over_seeds"] if row["name"] == name)
    return found


def frontier_rows(name: str) -> list[str]:
    """The lines of the table, with spaces as one."""
    lines = []
    for row in result(name)["over_seeds"]:
        less = [] if row["name"] == "dense" else [f"{row['AP less']:.3f} ± {row['sd of it']:.3f}"]
        words = [row["name"], f"{row['AP']:.3f}", *less, f"{row['GFLOP']:.1f}", f"{row['MB zipped']:.1f}"]
        lines.append(" ".join([*words, f"{row['times as fast']:.2f}"]))
    return lines


def cost_of_a_schedule(place: int) -> str:
    return f"{result('schedule-cost-cpu')['results'][place]['ratio']:.2f}"


def round_to() -> str:
    faster = [
        f"{each['speeds']['onnxruntime']['batch_1']['times_as_fast']:.2f}" for each in result("round-to-bccd")["files"]
    ]
    return (
        f"is {faster[1]} times as fast in onnxruntime, one with multiples of 8 is {faster[2]} times, with multiples of "
        f"16 it is {faster[3]} times"
    )


def recipe_rows() -> list[str]:
    """The lines of the table, with spaces as one."""
    lines = []
    for name in ("recipes-bccd", "recipes-short-bccd"):
        published, own = result(name)["over_seeds"]
        lines.append(
            f"{published['AP']:.3f} {own['AP']:.3f} {own['gain']:.3f} ± {own['sd of it']:.3f} {published['AP50']:.3f} "
            f"{own['AP50']:.3f}"
        )
    own = result("recipes-bccd")["over_seeds"][1]
    rates = {name: statistics.median(rates) for name, rates in result("recipes-bccd")["images_per_second"].items()}
    of_two = result("recipes-bccd")["images_per_second_of_two_threads"]
    on_two = statistics.median(b / a for a, b in zip(of_two["published"], of_two["own"], strict=True))

    def in_minutes(epochs: int, name: str) -> str:
        return f"{epochs * 292 / rates[name] / 60:.1f}"

    return [
        *lines,
        *(
            f"{epochs} in {in_minutes(epochs, 'published')} minutes; of ``own`` {of_own} in {in_minutes(of_own, 'own')}"
            for epochs, of_own in ((12, 11), (50, 46))
        ),
        f"{100 * (float(in_minutes(46, 'own')) / float(in_minutes(50, 'published')) - 1):.0f} % more time",
        f"They make {1 / own['time']:.2f} of the images a second that batches of 16 make on one core, "
        f"{on_two:.2f} on two",
    ]


FIGURES: dict[str, list[str]] = {
    "docs/compression.rst": [
        *frontier_rows("frontier-bccd"),
        *frontier_rows("frontier-demo"),
        round_to(),
        "lose 0.005 more",  # computed
        f"takes {cost_of_a_schedule(0)} times a plain one for an SSD300-R18, {cost_of_a_schedule(1)} times for a Mask "
        "R-CNN",
    ],
    "docs/design.rst": [
        f"AP 0.531 on BCCD (one run, :doc:`project/log`), where the same seed has "
        f"{result('accuracy-bccd-no_dali')['AP']:.3f}."
    ],
    "docs/distillation.rst": [
        f"takes {cost_of_pkd(0)['ratio']:.2f} times a plain step and that pass together for a RetinaNet of R18 from "
        f"R50 ({cost_of_pkd(0)['gflop']} an image for the pass), and {cost_of_pkd(1)['ratio']:.2f} times for an SSD300 "
        f"of R18 from R50 ({cost_of_pkd(1)['gflop']})",
        *taught_rows("taught-scratch-bccd"),
        *taught_rows("taught-retinanet-demo"),
        *taught_rows("taught-quarter-bccd"),
        *of_teachers(),
    ],
    "docs/yolov2.rst": [
        f"AP {of_yolo('dali').replace(' and ', ' and AP50 ')}, judged at 416. Both data paths end",
        *sizes_rows(),
        *equal_minutes(),
        *pruned_rows("pruned-by-layer-bccd"),
        *by_layer(),
        *pruned_rows("pruned-bccd"),
    ],
    "docs/torchvision.rst": [
        f"PyTorch path {ragged('', 'no_dali')} times as many, DALI path {ragged('', 'dali')} times.",
        f"With masks {ragged('-masks', 'no_dali')} and {ragged('-masks', 'dali')} times, to a short side of 256 with "
        f"masks {ragged('-masks-256', 'no_dali')} and {ragged('-masks-256', 'dali')} times",
        f"torchvision's take {their_steps('-bf16', 'reference')} as long in bf16, {their_steps('', 'reference')} in "
        "float32",
        f"By the clock, with two threads, torchvision's take {their_steps_by_clock('-bf16')} as long in bf16",
        f"it takes {their_steps('-bf16', 'finished')} as long in bf16, {their_steps('', 'finished')} in float32",
        f"``retinanet_resnet18_fpn`` AP {demo_ap('retinanet', 'AP50 ')} by DALI and {demo_ap('retinanet-no_dali')} by "
        f"PyTorch, ``fasterrcnn_resnet18_fpn`` {demo_ap('fasterrcnn')} and {demo_ap('fasterrcnn-no_dali')}",
        f"``maskrcnn_resnet18_fpn`` has AP {of_masks('', ' for boxes', ' for masks')} by DALI, "
        f"{of_masks('-no_dali')} by PyTorch",
        f"``keypointrcnn_resnet18_fpn`` has AP {of_points('', ' for boxes', ' for the points')} of the one class that "
        f"has some by DALI, {of_points('-no_dali')} by PyTorch",
        f"Again in bf16, by DALI: AP {result('accuracy-demo-retinanet-bf16')['AP']:.3f} (RetinaNet), "
        f"{result('accuracy-demo-fasterrcnn-bf16')['AP']:.3f} (Faster R-CNN), {of_masks('-bf16')} (Mask R-CNN), "
        f"{of_points('-bf16')} (Keypoint R-CNN)",
        f"Decoding alone makes {result('data-ragged-cpu')['decode_only']['images_per_second']:.0f} images a second",
        f"needs {worker_mib('-masks-256', 'no_dali')} MiB for images to 256 with masks, torchvision's "
        f"{worker_mib('-masks-256', 'torchvision')}. To 800 it is {worker_mib('-masks', 'no_dali')} and "
        f"{worker_mib('-masks', 'torchvision')} with masks, {worker_mib('', 'no_dali')} and "
        f"{worker_mib('', 'torchvision')} without",
    ],
    "README.rst": [
        f"AP on BCCD, DALI path {of_seeds('dali', 'AP')} NVIDIA's model, loss and data: {of_seeds('dle', 'AP')}",
        f"AP on BCCD, PyTorch path {of_seeds('no_dali', 'AP')} ",
        f"AP on the demo data, after {minutes('demo')} minutes {result(DEMO)['AP']:.3f} ",
        f"training step, images a second {step('ours', 'images_per_second'):.1f} NVIDIA's step: {PEER:.1f} "
        f"(ours is {BATCH['ours / dle']:.2f} times as fast)",
        f"data by DALI, images a second {data('dali')['images_per_second']:.0f} DALI's SSD example: "
        f"{data('dali_example')['images_per_second']:.0f} ({data_ratio('dali', 'dali_example')} times)",
        f"data by PyTorch, images a second {data('no_dali')['images_per_second']:.0f} NVIDIA's PyTorch path: "
        f"{data('dle')['images_per_second']:.0f} ({data_ratio('no_dali', 'dle')} times)",
        f"post-processing of 32 BCCD images {post('bccd')} times as fast",
        f"in onnxruntime {compressed('half int8')['times as fast']:.2f} times as fast the dense model (AP "
        f"{compressed('dense')['AP']:.3f}; {compressed('half int8')['AP']:.3f} here)",
        f"Seeds differ by up to {SPREAD:.2f},",
    ],
    "docs/results.rst": [
        f"demo, 8 epochs, DALI {result(DEMO)['AP']:.3f} {result(DEMO)['AP50']:.3f} {minutes('demo')} ",
        f"BCCD, 50 epochs, DALI {of_seeds('dali', 'AP')} {of_seeds('dali', 'AP50')} {minutes('bccd-dali-seed3')} ",
        f"BCCD, 50 epochs, PyTorch {of_seeds('no_dali', 'AP')} {of_seeds('no_dali', 'AP50')} "
        f"{result('equal-minutes-bccd')['rows'][2]['minutes']:.1f} ",
        f"NVIDIA's code, the same {of_seeds('dle', 'AP')} {of_seeds('dle', 'AP50')} "
        + ", ".join(minutes(f"bccd-dle-seed{seed}") for seed in (1, 2, 3)),
        f"the means are {mean_ap('dali')} with DALI, {mean_ap('no_dali')} with PyTorch and {mean_ap('dle')} for",
        f"Seeds differ by up to {SPREAD:.2f}.",
        f"{post('bccd')} times as fast on BCCD ({found('bccd')} detections an image), {post('demo')} times on "
        f"the demo data ({found('demo')}), {post('demo-crowded')} times on crowded demo data "
        f"({found('demo-crowded')})",
    ],
    "docs/data-paths.rst": [
        f"decoding alone, the ceiling {data_row('decode_only')}",
        f"``dali`` {data_row('dali')} {data_ratio('dali', 'dali_example')} x the DALI example's graph "
        f"({data('dali_example')['images_per_second']:.0f})",
        f"``no_dali`` {data_row('no_dali')} {data_ratio('no_dali', 'dle')} x DeepLearningExamples' path "
        f"({data('dle')['images_per_second']:.0f})",
        f"takes {through('in_memory')} images a second from memory, {through('dali')} with DALI and "
        f"{through('no_dali')} with PyTorch",
        f"it waits {waits('no_dali')} or {waits('dali')} % of the time",
    ],
    "docs/evaluation.rst": [
        f"{result('metrics')['faster / pycocotools']:.2f} of pycocotools' time, {metrics_s('faster')} s where "
        f"pycocotools takes {metrics_s('pycocotools')},",
    ],
    "docs/speed.rst": [
        f"{BATCH['matched_default_boxes_per_image']:.1f} matched default boxes an image",
        f"median of {len(BATCH['rounds'])} pairs' ratios",
        f"ours {step('ours', 'images_per_second'):.1f} img/s ({100 * step('ours', 'mfu'):.0f} % MFU) NVIDIA's "
        f"{PEER:.1f} img/s ({100 * step('dle', 'mfu'):.0f} % MFU) {BATCH['ours / dle']:.2f}x",
        f"{milliseconds('forward')} ms forward, {milliseconds('loss')} ms loss, {milliseconds('backward')} ms "
        f"backward and {milliseconds('optimiser')} ms optimiser",
        f"({100 * FP32_MFU[16]:.0f} % MFU)",
        f"gives AP {three_of('off')}, and this one with ``--compile`` {three_of('on')}: means of "
        f"{result('accuracy-on-off')['mean_AP']['off']:.3f} and {result('accuracy-on-off')['mean_AP']['on']:.3f},",
        f"DALI makes {result('data-cpu')['dali']['images_per_second']:.0f} on two cores",
    ],
    "docs/own-data.rst": [
        *recipe_rows(),
        f"they give AP {eight_epochs('AP')}, AP50 {eight_epochs('AP50')} (six runs",
        f"50 give AP {least_and_most(FIFTY_EPOCHS, 'AP')} ",
        f"; {['no', *range(1, 8), 'eight'][len(FIFTY_EPOCHS)]} runs, ``benchmarks/results/``",
    ],
    "docs/scale.rst": [
        scale_row("size of the file", "file_mb"),
        scale_row("one process alone: time", "alone", "seconds", unit=" s", digits=1),
        scale_row("one process alone: memory", "alone", "peak_mb", less="before_mb"),
        scale_row("local rank 0 of two: time", "local_rank_0", "seconds", unit=" s", digits=1),
        scale_row("local rank 0 of two: memory", "local_rank_0", "peak_mb", less="before_mb"),
        scale_row("the other rank: memory", "other_rank", "peak_mb", less="before_mb"),
        scale_row("DALI's clean file, a rank: time", "dali", "write", "seconds", unit=" s", digits=1),
        scale_row("DALI's clean file, a rank: memory", "dali", "write", "peak_mb", less="before_mb"),
        scale_row("DALI's reader of it, a rank: time", "dali", "parse", "seconds", unit=" s", digits=1),
        scale_row("DALI's reader of it, a rank: memory at most", "dali", "parse", "peak_mb", less="before_mb"),
        scale_row("DALI's reader of it, a rank: memory to stay", "dali", "parse", "after_mb", less="before_mb"),
        f"the 730 MB included, is {result('scale')['sizes'][1]['alone']['peak_mb'] / 1000:.2f} GB there",
        f"are about {round(result('scale')['sizes'][0]['alone']['before_mb'], -1)} MB of each process",
    ],
}  # fmt: skip

# What looks like a measurement and is none, or has its source beside it.
NOT_MEASURED: dict[str, list[str]] = {
    "README.rst": ["14 GB of disk"],
    "docs/commands.rst": ["to AP 0.23 by MLPerf's rules", "20 GB", "2012, 3 GB", "0.0026 at", '"10 minutes"'],
    "docs/compression.rst": [
        "to 80 % zeros",
        "initial_sparsity: 0.05",
        "final_sparsity: 0.80",
        "--levels 0.25 0.5 0.75 0.9",
        "--max-drop 0.01",
        "fewer than 95 %",
    ],
    "docs/design.rst": ["less than 2 of 255"],  # the test that the page names asserts it
    "docs/detectron-rules.rst": ["a score of 0.0001"],
    "docs/detectron.rst": ["place of ``0.02``", "19.9 times the pixels"],  # computed
    "docs/distillation-files.rst": ["rate 0.01,"],
    "docs/distillation.rst": ["2e-5, 0.65"],
    "docs/docker.rst": ["64 MB", "16 GB and 1 GB"],
    "docs/export.rst": ["B x 3 x H", "count x 1 x height", "more than 95 % of the points"],  # a test's bound
    # What MLPerf asks for, and its rates.
    "docs/mlperf.rst": [
        "to AP 0.23",
        "AP 0.34",
        "1.0.0 AP 0.23",
        "AP 0.377 of boxes",
        "0.339 of masks",
        "k x 0.02",
        "0.02 / k",
        "--target 0.377 --target-masks 0.339",
        "The rate, 0.01 for 16 images",
    ],
    "docs/retinanet.rst": [
        "rate is 0.01",
        "R50 1x",
        "R50 3x",
        "R101 3x",
        "prior is 0.01",
        "above 0.05",
        "differs by 1 of 255",  # tests/inference/test_images.py
    ],
    # An example of what a run says.
    "docs/run-folder.rst": ["5 minutes at least", "about 7 minutes more", "0.004 10.0 img/s 1% data wait"],
    "docs/survival.rst": ['"10 minutes"'],
    "docs/train-coco.rst": ["20 GB, and", '"10 minutes"', "32 times as large"],
    "docs/voc.rst": [
        "3 GB;",
        "than at 0.005",
        "40 % of the filters of each layer",
        "--lr 0.0001",
        # Of others, published.
        *("32 times the decay", "0.005 and 0.25", "70 % of the weights", "60 % of the filters"),
    ],
    "docs/yolov2.rst": [
        "not 0 GFLOP",
        "differences of 0.02 mean little",
        "IoU is above 0.45",
        "score of more than 0.005",
        "with 90 % of them gone",  # a share that was chosen
    ],
    "docs/data-paths.rst": ["one of seven options"],
    "docs/speed.rst": [
        "can pass 100 %",
        "above 40 % of places",
        # Computed: by torch's counter, and on paper from what vendors and others publish.
        *("120.5 GFLOP an image", "46.3", "94.7", "40.3 to detect", "31.7", "15.6"),
        "22.9 million weights, 92 MB of gradients",
        *("160 MB a GPU", "0.36 ms at", "450 GB/s", "0.53 ms at", "300)", "2,500 img/s a GPU", "takes 51 ms"),
        *("under 1 %", "6.4 minutes at", "7.1 at 90 %", "23:46", "668 img/s a GPU", "20,000 images a second"),
        "within nine minutes",
    ],
    "docs/own-data.rst": [
        "ResNet, 45 MB",
        "0.95 ",
        "last 20 steps",
        "0.04 ",
        "0.02 ",
        "0.01",
        "0.999",
        "0.99``",
        "0.08 at",
    ],
    "docs/scale.rst": [
        "The aim was 20 s and 1.5 GB",
        # By the slopes of the table, as the page says.
        *("0.9 kB a box", "a file of 38 GB", "70 GB on each host", "5.5 GB, once", "0.9 GB on", "11 GB a rank"),
        *("keeps 9 GB", "12 minutes", "5 minutes"),
    ],
}

UNITS = "%|of 255|ms|[kMG]B|img/s|GFLOP|TFLOP/s|images a second|times|minutes"
MEASUREMENT = re.compile(rf"(?<![\w.,/-])(?:\d[\d,]*(?:\.\d+)?(?:x\b| ?(?:{UNITS})(?!\w)| x(?! \d))|0\.\d\d+)")


def spaced(text: str) -> str:
    return re.sub(r"\s+", " ", text)


@pytest.mark.parametrize("page", FIGURES)
def test_a_page_says_what_was_measured(page: str) -> None:
    text = spaced((ROOT / page).read_text())
    assert [said for said in FIGURES[page] if said not in text] == []


def test_the_log_has_what_a_page_says_it_has() -> None:
    assert "AP 0.559 instead of 0.531" in spaced((ROOT / "benchmarks" / "LOG.md").read_text())


@pytest.mark.parametrize("page", PAGES)
def test_a_page_has_no_figure_without_a_result(page: str) -> None:
    text = spaced((ROOT / page).read_text())
    for known in (*FIGURES.get(page, []), *NOT_MEASURED.get(page, [])):
        text = text.replace(known, " ")
    assert MEASUREMENT.findall(text) == []


def test_a_figure_without_a_result_is_noticed() -> None:
    for text in (
        "it takes 12.5 ms",
        "AP 0.612",
        "1.3x as fast",
        "2.1 times",
        "615 img/s",
        "97 % of it",
        "3 GB",
        "0.2 of 255",
    ):
        assert MEASUREMENT.search(text), text
    for text in ("300 x 300", "step-0.pt", "bf16", "batch 16", "seed 3", "Python 3.11"):
        assert not MEASUREMENT.search(text), text
