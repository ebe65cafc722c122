"""From a VOC folder and a recipe file to a detector, as docs/own-data.rst says; and the options on two ranks."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from runs import SETTINGS, assert_equal_runs, last_of, log_of, run_all, write_small_data
from torchvision.models import resnet18
from voc_data import voc_of_coco

pytestmark = pytest.mark.slow

RECIPE = """
train_split = "train"
val_split = "val"
data_pipeline = "no_dali"
num_workers = 0
backbone = "resnet18"
freeze_backbone = true
batch_size = 4
accumulate = 2
learning_rate = 0.02
ema = 0.5
clip_norm = 10.0
schedule = "cosine"
epochs = 2
evaluation = [1]
device = "cpu"
seed = 1
"""


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_data(tmp_path_factory.mktemp("data") / "coco")


def test_a_voc_folder_and_a_recipe_make_a_detector(coco: Path, tmp_path: Path, refusal: Callable[..., str]) -> None:
    import main

    voc = voc_of_coco(coco, {"train": "train2017", "val": "val2017"}, tmp_path / "voc")
    recipe, weights, run = tmp_path / "own.toml", tmp_path / "resnet18.pth", tmp_path / "run"
    recipe.write_text(RECIPE)
    torch.manual_seed(0)
    trunk = resnet18(weights=None).state_dict()
    torch.save(trunk, weights)
    training = ["--data", voc, "--recipe", recipe, "--backbone-weights", weights, "--output", run]
    assert main.main([str(word) for word in training]) == 0

    (rate,) = log_of(run, "learning_rate")
    assert (rate["base"], rate["global_batch_size"], rate["peak"]) == (0.02, 4, 0.0025)
    # Epochs of two steps of four images: half a cosine over four steps.
    lines = log_of(run, "train")
    assert lines[-1]["step"] == 4 and lines[-1]["learning_rate"] == pytest.approx(0.0025 * (2 - 2**0.5) / 4)
    last = last_of(run)
    trained = last["trained_model"]
    assert torch.equal(trained["trunk.0.weight"], trunk["conv1.weight"])
    assert torch.equal(trained["trunk.1.running_mean"], trunk["bn1.running_mean"])
    assert not torch.equal(trained["box_heads.0.weight"], last["model"]["box_heads.0.weight"])

    checkpoint = run / "checkpoints" / "last.pt"
    figures = tmp_path / "figures.json"
    data = ["--data", str(voc), "--val-split", "val", "--device", "cpu", "--data_pipeline", "no_dali"]
    again = main.main(
        ["evaluate", *data, "--num-workers", "0", "--checkpoint", str(checkpoint), "--json", str(figures)]
    )
    assert again == 0
    judged, results = json.loads(figures.read_text()), json.loads((run / "results.json").read_text())
    assert judged["AP"] == results["AP"] and judged["AR100"] == results["AR100"]  # of the average, in both

    recipe.write_text(RECIPE.replace("freeze_backbone = true", "").replace("epochs = 2", "epochs = 3"))
    assert "--freeze-backbone is not as it was; pass it" in refusal(*training, "--resume", "auto")


def test_on_two_ranks_the_average_resumes_bit_for_bit(coco: Path, tmp_path: Path) -> None:
    """Within an epoch, where each rank has its own statistics, and the average its own of them."""
    options = ["--ema", "0.9", "--clip-norm", "5", "--schedule", "cosine", "--keep-checkpoints", "9"]
    command = ["--data", coco, "--data_pipeline", "no_dali", *SETTINGS, "--epochs", 2, *options]
    file = tmp_path / "whole" / "checkpoints" / "step-00000003.pt"
    whole = [*command, "--checkpoint-every", "1 step", "--output", tmp_path / "whole"]
    run_all([whole, [*whole[:-1], tmp_path / "rest", "--resume", file]], ranks=2)
    last = last_of(tmp_path / "whole")
    assert last["step"] == 4 and len(last["average_statistics"]) == 2
    halfway = torch.load(file, weights_only=True)
    assert not torch.equal(*halfway["average_statistics"])
    assert_equal_runs(last_of(tmp_path / "rest"), last)
