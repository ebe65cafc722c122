"""darknet's own program beside the networks here: cfg and weights written here and read there, one image through both.

    git clone https://github.com/pjreddie/darknet && git -C darknet checkout f6afaabc
    python benchmarks/darknet_forward.py --darknet darknet --json benchmarks/results/darknet-forward-cpu.json

A small driver is compiled with gcc from that checkout's sources for CPUs; nothing is written to it. Weights are random.
What is compared is the output of the last convolution, and that of [region] with its sigmoids and softmax. darknet's
code for CPUs adds 1e-6 to a standard deviation where that for GPUs, and torch, add 1e-5 to a variance, so they differ a
little.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path[:0] = [str(Path(__file__).parents[1])]

from ssd.detectors.yolov2.boxes import cells_of  # noqa: E402
from ssd.detectors.yolov2.darknet.cfg import parse, write  # noqa: E402
from ssd.detectors.yolov2.darknet.configurations import NAMES, cfg_named  # noqa: E402
from ssd.detectors.yolov2.darknet.model import VERSION, Darknet  # noqa: E402
from ssd.detectors.yolov2.darknet.weights import write_weights  # noqa: E402
from ssd.environment import git_revision, hardware, versions  # noqa: E402

DRIVER = """
#include <stdio.h>
#include <stdlib.h>
#include "darknet.h"

int main(int argc, char **argv) {
    network *net = load_network(argv[1], argv[2], 0);
    set_batch_network(net, 1);
    float *image = calloc(net->inputs, sizeof(float));
    FILE *file = fopen(argv[3], "rb");
    if (fread(image, sizeof(float), net->inputs, file) != net->inputs) return 1;
    fclose(file);
    network_predict(net, image);
    file = fopen(argv[4], "wb");
    for (int i = net->n - 2; i < net->n; ++i)
        fwrite(net->layers[i].output, sizeof(float), net->layers[i].outputs, file);
    fclose(file);
    return 0;
}
"""


def compiled(darknet: Path, folder: Path) -> Path:
    (folder / "driver.c").write_text(DRIVER)
    sources = [str(file) for file in sorted((darknet / "src").glob("*.c")) if file.name != "compare.c"]
    includes = [f"-I{darknet / 'include'}", f"-I{darknet / 'src'}"]
    program = folder / "driver"
    command = ["gcc", "-O2", "-w", "-fcommon", *includes, "-o", str(program), str(folder / "driver.c"), *sources]
    subprocess.run([*command, "-lm", "-lpthread"], check=True)
    return program


def with_random_weights(model: Darknet) -> Darknet:
    for _, layer in model.convolutions():
        if layer.norm is not None:
            assert layer.norm.running_mean is not None and layer.norm.running_var is not None
            layer.norm.running_mean.normal_(std=0.1)
            layer.norm.running_var.uniform_(0.5, 1.5)
            layer.norm.weight.data.uniform_(0.5, 1.5)
            layer.norm.bias.data.normal_(std=0.1)
    return model.eval()


@torch.no_grad()
def compare(name: str, program: Path, folder: Path) -> dict[str, Any]:
    network = parse(cfg_named(name), name)
    torch.manual_seed(0)
    model = with_random_weights(Darknet(network))
    image = torch.rand(1, 3, network.net.height, network.net.width)
    files = [folder / each for each in ("network.cfg", "network.weights", "image.bin", "outputs.bin")]
    files[0].write_text(write(network))
    files[1].write_bytes(write_weights(network, model.state_dict(), VERSION, 0))
    image.numpy().astype("<f4").tofile(files[2])
    subprocess.run([str(program), *map(str, files)], check=True, capture_output=True)
    raw, region = torch.from_numpy(np.fromfile(files[3], "<f4")).chunk(2)
    values = model(image).values
    cells = cells_of(values, network.region)
    entries = 5 + network.region.classes
    theirs = region.view(network.region.num, entries, -1).transpose(1, 2).flatten(0, 1)
    ours = torch.cat(
        [
            cells.centre_in_cell[0],
            cells.log_sides[0],
            cells.objectness[0, :, None].sigmoid(),
            cells.classes[0].softmax(1),
        ],
        dim=1,
    )
    activated = [0, 1, *range(4, entries)]
    return {
        "network": name,
        "largest_output": values.abs().max().item(),
        "largest_difference": (values - raw.view_as(values)).abs().max().item(),
        "largest_difference_after_activation": (ours - theirs)[:, activated].abs().max().item(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--darknet", type=Path, required=True, help="a checkout of pjreddie/darknet")
    parser.add_argument("--networks", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        program = compiled(arguments.darknet, Path(folder))
        results = [compare(name, program, Path(folder)) for name in arguments.networks]
    for each in results:
        print(
            f"{each['network']}: outputs up to {each['largest_output']:.3g} differ by {each['largest_difference']:.2g} "
            f"at most, after activation by {each['largest_difference_after_activation']:.2g}"
        )
    report = {
        "results": results,
        "hardware": hardware(torch.device("cpu")),
        "versions": versions(),
        "git_revision": git_revision(),
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
