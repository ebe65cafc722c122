"""A training with a teacher: what learns and what does not, what is saved, what is refused."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from distillation_toys import (
    METHODS,
    STEPS_PER_EPOCH,
    batch_of,
    hash_of,
    losses,
    new_training,
    random_batch,
    run,
    take_up,
    teacher_of,
    tiny,
)
from runs import assert_equal, assert_equal_runs
from test_distillation_methods import relation_as_written
from torchvision.ops import roi_align
from toy_training import CPU, log_of

from ssd.checkpoints import checkpoint
from ssd.config import Config
from ssd.distillation.attach import LARGE, identity_of, require_same
from ssd.distillation.settings import METHODS as ALL_METHODS
from ssd.distillation.settings import read_word, words_of
from ssd.distillation.settings import settings_of as method_settings
from ssd.distillation.teacher import load_teacher
from ssd.errors import InputError
from ssd.training.step import build_step

TERMS = {
    "pkd": ["pkd"],
    "cwd": ["cwd"],
    "mgd": ["mgd"],
    "gid": ["gid_feature", "gid_relation", "gid_class", "gid_box"],
    "crosskd": ["crosskd_class", "crosskd_box"],
}


def test_every_method_is_tested() -> None:
    assert set(METHODS) == ALL_METHODS.keys() == TERMS.keys()


@pytest.mark.parametrize("method", METHODS)
def test_a_step_teaches_the_student_and_leaves_the_teacher_as_it_was(method: str) -> None:
    """Also where the teacher was put into training mode. Each weight beside the student's learns."""
    teacher = teacher_of(tiny(6, seed=1))
    before = hash_of(teacher.model)
    # A map of one cell has nothing to say to CWD, and MGD may drop it.
    settings = {"cwd": ("cwd.levels=p3,p4",), "mgd": ("mgd.levels=p3,p4", "mgd.weight=1")}.get(method, ())
    training = new_training(teacher, method, clip_norm=None, distill_settings=settings)
    assert training.adapters is not None
    student, adapters = hash_of(training.model), hash_of(training.adapters)
    teacher.model.train()
    step = build_step(training)
    taken = step(random_batch(0), 1.0)
    names = ["classification", "bbox_regression", *TERMS[method]]
    assert training.loss_names == tuple(names) and taken.isfinite().all()
    assert (taken[2:] > 0).all()
    assert_equal(hash_of(teacher.model), before)  # running statistics too
    assert all(p.grad is None and not p.requires_grad for p in teacher.model.parameters())
    assert any(not torch.equal(a, b) for a, b in zip(student, hash_of(training.model), strict=True))
    own = list(training.adapters.parameters())
    assert len(own) == {"pkd": 4, "cwd": 2, "mgd": 12, "gid": 2, "crosskd": 2}[method]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in own)
    assert all(not torch.equal(a, b) for a, b in zip(adapters, hash_of(training.adapters), strict=True))
    assert training.model.state_dict().keys() == tiny().state_dict().keys()


@pytest.mark.parametrize("method", METHODS)
def test_a_term_alone_gives_the_student_a_gradient(method: str) -> None:
    training = new_training(teacher_of(tiny(4, seed=1)), method)
    for name in TERMS[method]:
        training.optimizer.zero_grad()
        losses(training)[name].backward()
        gradient = training.model.backbone.stem[0].weight.grad  # type: ignore[union-attr, index]
        assert gradient is not None and gradient.isfinite().all() and gradient.abs().sum() > 0, name


def test_the_plain_losses_stay_what_they_are_and_weights_multiply() -> None:
    plain = losses(new_training(None))
    found = losses(new_training(teacher_of(tiny(4, seed=1)), *METHODS))
    half = losses(new_training(teacher_of(tiny(4, seed=1)), *METHODS, distill_weight=0.5))
    for name, value in plain.items():
        assert torch.equal(found[name], value)
    for name in found.keys() - plain.keys():
        torch.testing.assert_close(half[name], found[name] / 2)
    own = losses(new_training(teacher_of(tiny(4, seed=1)), "pkd", distill_settings=("pkd.weight=5",)))
    torch.testing.assert_close(own["pkd"], found["pkd"] / 2)


def test_of_a_term_of_weight_0_nothing_is_built() -> None:
    training = new_training(
        teacher_of(tiny(6, seed=1)), "mgd", "gid",
        distill_settings=("mgd.weight=0", "gid.feature_weight=0", "gid.relation_weight=0", "gid.box_weight=0"),
    )  # fmt: skip
    assert training.adapters is not None and not list(training.adapters.parameters())
    assert list(losses(training)) == ["classification", "bbox_regression", "gid_class"]


@pytest.mark.parametrize(("kind", "branch"), [("class", "classes"), ("box", "boxes")])
def test_one_of_crosskds_terms_needs_one_branch_alone(kind: str, branch: str) -> None:
    """DistributedDataParallel waits for the gradient of every weight. The term is the one beside the other."""
    off = {"class": "box", "box": "class"}[kind]
    both = losses(new_training(teacher_of(tiny(6, seed=1)), "crosskd"))
    training = new_training(teacher_of(tiny(6, seed=1)), "crosskd", distill_settings=(f"crosskd.{off}_weight=0",))
    assert training.adapters is not None
    assert [name for name, _ in training.adapters.named_parameters()] == [f"crosskd.convs.{branch}.weight"]
    found = losses(training)
    assert [name for name in found if name.startswith("crosskd")] == [f"crosskd_{kind}"]
    assert both.keys() - found.keys() == {f"crosskd_{off}"}
    sum(found.values()).backward()  # type: ignore[union-attr]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in training.adapters.parameters())


def test_an_adapter_that_is_needed_cannot_be_left_out() -> None:
    with pytest.raises(InputError, match=r"gid.adapter=false: maps of .* have other channels \(p3 4 and 6, "):
        new_training(teacher_of(tiny(6, seed=1)), "gid", distill_settings=("gid.adapter=false",))
    new_training(teacher_of(tiny(4, seed=1)), "gid", distill_settings=("gid.adapter=false",))


def test_a_teacher_of_no_numbers_is_an_error() -> None:
    teacher = teacher_of(tiny(4, seed=1))
    with torch.no_grad():
        teacher.model.backbone.stem[0].weight.fill_(torch.nan)  # type: ignore[union-attr, index]
    with pytest.raises(InputError, match="the loss pkd is nan in the first step"):
        losses(new_training(teacher, "pkd"))


def test_a_weight_of_0_reads_no_teacher() -> None:
    assert load_teacher(Config(teacher="no such file", distill=("pkd",), distill_weight=0.0), CPU) is None
    assert identity_of(Config(distill=("pkd",)), None) == {}


def test_a_student_that_is_its_teacher_has_terms_of_nearly_0() -> None:
    """And is no error, though a term of 0 is one: as a model before it is pruned."""
    model = tiny(4, seed=1)
    model.eval()
    training = new_training(teacher_of(tiny(4, seed=1)), "pkd", "cwd", "crosskd", model=model)
    training.model.eval()
    found = losses(training)
    assert all(found[name].abs() < 1e-3 for name in ("pkd", "cwd", "crosskd_class"))


def test_a_term_that_is_exactly_0_is_an_error() -> None:
    with pytest.raises(InputError, match="mgd is exactly 0 in the first step"):
        losses(new_training(teacher_of(tiny(4, seed=1)), "mgd", distill_settings=("mgd.weight=1e-50",)))


def test_images_without_boxes_have_finite_losses() -> None:
    batch = batch_of((0, 0))
    training = new_training(teacher_of(tiny(6, seed=1)), *METHODS)
    taken = build_step(training)(batch, 0.01)
    assert taken.isfinite().all() and int(training.skipped_steps) == 0


def test_without_a_chosen_box_all_weights_have_a_gradient() -> None:
    """Boxes that must be larger than the image: DistributedDataParallel waits for the gradient of every weight."""
    training = new_training(teacher_of(tiny(6, seed=1)), "gid", distill_settings=("gid.least_side_px=1000",))
    assert training.adapters is not None
    found = losses(training)
    assert [found[name].item() for name in TERMS["gid"]] == [0, 0, 0, 0]
    sum(found.values()).backward()  # type: ignore[union-attr]
    for parameter in [*training.model.parameters(), *training.adapters.parameters()]:
        assert parameter.grad is not None and parameter.grad.isfinite().all()


@pytest.mark.parametrize("variant", ["paper", "seed"])
@pytest.mark.parametrize("instances", ["pos", "neg"])
def test_variants_of_gid(variant: str, instances: str) -> None:
    chosen: list[Any] = []
    training = new_training(
        teacher_of(tiny(4, seed=1)), "gid", show=lambda images, found: chosen.append(found),
        distill_settings=(f"gid.variant={variant}", f"gid.instances={instances}", "gid.count=4"),
    )  # fmt: skip
    assert training.adapters is not None and bool(list(training.adapters.parameters())) == (variant == "paper")
    found = losses(training)
    assert all(value.isfinite() for value in found.values())
    assert chosen[0].boxes_ltrb_px.shape == (2, 4, 4)
    if variant == "seed":  # cut to the image of 64 pixels
        assert (
            chosen[0].boxes_ltrb_px[1][chosen[0].real[1]].amax(dim=0).tolist() <= [64, 96, 64, 96]
            if chosen[0].real[1].any()
            else True
        )


def test_gids_terms_are_those_of_the_boxes_that_it_shows() -> None:
    """From what is shown on, in float64: each box looks at its own map, aligned, and all boxes are compared."""
    chosen: list[Any] = []
    teacher = teacher_of(tiny(6, seed=1))
    training = new_training(teacher, "gid", show=lambda images, found: chosen.append(found))
    batch = random_batch(0)
    maps = training.model.eval().backbone(batch.images)  # type: ignore[union-attr, operator]
    found = losses(training, batch)
    (instances,) = chosen
    assert training.adapters is not None
    names = [f"p{stride}" for stride in range(3, 8)]
    adapted = training.adapters["gid"](dict(zip(names, maps.values(), strict=True)))  # type: ignore[index]
    both = list(teacher.model.backbone(batch.images).values()), [adapted[name] for name in names]  # type: ignore[union-attr, operator]
    rows: tuple[list[np.ndarray], list[np.ndarray]] = [], []
    for image, (boxes, real) in enumerate(zip(instances.boxes_ltrb_px, instances.real, strict=True)):
        for box in boxes[real].double():
            area = float((box[2] - box[0]) * (box[3] - box[1]))
            level = min(max(math.floor(4 + math.log2(math.sqrt(area) / 224)), 3), 7) - 3
            for of_maps, own in zip(both, rows, strict=True):
                whole = of_maps[level][image : image + 1].detach().double()
                look = roi_align(whole, [box[None]], 10, 1 / 2 ** (level + 3), sampling_ratio=2, aligned=True)
                own.append(look.flatten().numpy())
    of_teacher, of_student = (np.array(each) for each in rows)
    assert len(of_teacher) > 4
    features = 5e-4 * np.linalg.norm(of_teacher - of_student, axis=1).mean()
    assert found["gid_feature"].item() == pytest.approx(features, rel=1e-5)
    assert found["gid_relation"].item() == pytest.approx(40 * relation_as_written(of_teacher, of_student), rel=1e-5)


def test_16_bits_an_average_and_parts_of_a_batch() -> None:
    training = new_training(teacher_of(tiny(6, seed=1)), *METHODS, bf16=True, ema=0.9, accumulate=2, batch_size=4)
    batch = batch_of((2, 1, 1, 2))
    step = build_step(training)
    for _ in range(2):
        assert step(batch, 0.01).isfinite().all()
    assert int(training.skipped_steps) == 0 and training.average is not None
    assert training.judged_model.state_dict().keys() == tiny().state_dict().keys()


# --- what is saved ---


def test_a_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    """In the middle of an epoch: the adapters, their momentum and the generator of MGD's mask among it."""
    methods = ("pkd", "gid", "mgd", "crosskd")
    settings: dict[str, Any] = {"checkpoint_every": (1, "steps"), "keep_checkpoints": 99, "evaluation": ()}
    teacher = teacher_of(tiny(6, seed=1))
    run(new_training(teacher, *methods, **settings), tmp_path / "whole", teacher)
    again = new_training(teacher_of(tiny(6, seed=1)), *methods, model=tiny(seed=5), **settings)
    take_up(again, tmp_path / "whole" / "checkpoints" / "step-00000004.pt")
    run(again, tmp_path / "again", teacher)
    whole, other = (checkpoint.load_run(tmp_path / name / "checkpoints" / "last.pt") for name in ("whole", "again"))
    assert whole["step"] == 2 * STEPS_PER_EPOCH
    assert_equal_runs(whole, other)
    told = [
        [{k: v for k, v in line.items() if k.endswith("loss")} for line in log_of(tmp_path / name, "train")]
        for name in ("whole", "again")
    ]
    assert told[0][4:] == told[1] and {"pkd_loss", "gid_relation_loss", "mgd_loss"} <= told[0][0].keys()

    state = whole["companions"]["distillation"]
    assert state["adapters"].keys() == again.adapters.state_dict().keys()  # type: ignore[union-attr]
    assert whole["model"].keys() == tiny().state_dict().keys()
    saved = [value for value in [*whole["model"].values(), *state["adapters"].values()] if value.dim() > 1]
    of_teacher = [value for value in teacher.model.state_dict().values() if value.dim() > 1]
    assert not any(a.shape == b.shape and torch.equal(a, b) for a in saved for b in of_teacher)
    assert whole["distillation"]["sha256"] == teacher.digest and whole["distillation"]["weight"] == 1.0


def test_another_teacher_method_or_weight_is_refused() -> None:
    teacher = teacher_of(tiny(4))
    config = Config(distill=("pkd", "gid"), teacher="x")
    was = identity_of(config, teacher)
    require_same(was, identity_of(Config(distill=("gid", "pkd"), teacher="y"), teacher))
    for other, said in (
        (identity_of(Config(distill=("pkd",)), teacher), "--distill was"),
        (identity_of(Config(distill=("pkd", "gid"), distill_weight=2.0), teacher), "--distill-weight was 1.0"),
        (identity_of(config, teacher._replace(digest="1" * 64)), "the file of --teacher was 000"),
        (
            identity_of(Config(distill=("pkd", "gid"), distill_settings=("pkd.weight=3",)), teacher),
            "--distill-settings was",
        ),
        ({}, "the run had a teacher; pass its --teacher"),
    ):
        with pytest.raises(InputError, match=said):
            require_same(was, other)
    with pytest.raises(InputError, match="had no teacher"):
        require_same({}, was)
    require_same({}, {})


def test_a_run_from_before_a_setting_had_what_is_its_default_now() -> None:
    teacher = teacher_of(tiny(4))
    now = identity_of(Config(distill=("gid",), teacher="x"), teacher)
    was = {
        **now,
        "settings": {"gid": {name: value for name, value in now["settings"]["gid"].items() if name != "samples"}},
    }
    require_same(was, now)
    seed = ("gid.variant=seed", "gid.instances=pos")
    was_seed = identity_of(Config(distill=("gid",), teacher="x", distill_settings=seed), teacher)
    del was_seed["settings"]["gid"]["positives"]  # which was by share then, and no more
    require_same(
        was_seed, identity_of(Config(distill=("gid",), distill_settings=(*seed, "gid.positives=share")), teacher)
    )
    with pytest.raises(InputError, match="--distill-settings was"):
        require_same(was_seed, identity_of(Config(distill=("gid",), distill_settings=seed), teacher))
    other = identity_of(Config(distill=("gid",), teacher="x", distill_settings=("gid.samples=16",)), teacher)
    with pytest.raises(InputError, match="--distill-settings was"):
        require_same(was, other)


# --- what is said ---


def test_a_term_that_drowns_the_others_is_told_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    teacher = teacher_of(tiny(4, seed=1))
    training = new_training(teacher, "pkd", "cwd", distill_settings=("pkd.weight=5000", "cwd.weight=0.001"), epochs=1)
    run(training, tmp_path / "run", teacher)
    lines = [line for line in capsys.readouterr().out.splitlines() if "warning" in line]
    assert len(lines) == 1 and "pkd" in lines[0] and "cwd" not in lines[0]
    assert f"more than {LARGE} times the other losses" in lines[0]


# --- settings ---


def test_settings_are_words_and_tables() -> None:
    words = words_of({"pkd": {"weight": 5, "levels": ["p3", "p4"]}, "gid": {"adapter": False, "shares": [0.3, 0.7]}})
    assert words == ["pkd.weight=5", "pkd.levels=p3,p4", "gid.adapter=false", "gid.shares=0.3,0.7"]
    pkd, gid = method_settings("pkd", words), method_settings("gid", words)
    assert (pkd.weight, pkd.levels) == (5.0, ("p3", "p4")) and (gid.adapter, gid.shares) == (False, (0.3, 0.7))
    assert gid.of_variant("score") == "paper" and gid.of_variant("adapter") is False
    assert method_settings("gid", ["gid.variant=seed"]).of_variant("before_nms") == 3000
    assert method_settings("pkd", []).weight is None


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("pkd", "is not like pkd.weight=5"),
        ("pdk.weight=5", "no method 'pdk'; did you mean pkd?"),
        ("pkd.wieght=5", "pkd has no setting 'wieght'; did you mean weight?"),
        ("pkd.weight=much", "is not a number"),
        ("gid.count=1.5", "is not a whole number"),
        ("gid.count=0", "is out of range"),
        ("gid.variant=detectron", "is none of paper, seed"),
        ("gid.adapter=2", "is not true or false"),
        ("gid.adapter_kernel=2", "is even"),
        ("gid.adapter_kernel=1000001", "is out of range"),
        ("gid.shares=0.7,0.3", "must rise"),
        ("cwd.temperature=0", "is out of range"),
    ],
)
def test_settings_that_make_no_sense_are_named(word: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        read_word(word)


def test_flags_that_do_not_go_together_are_refused(refusal: Callable[..., str], tmp_path: Path) -> None:
    assert "pass --teacher FILE too" in refusal("--data", "x", "--distill", "pkd")
    assert "teaches nothing without --distill" in refusal("--data", "x", "--teacher", "x")
    both = ["--data", "x", "--teacher", tmp_path / "none.pt", "--distill", "pkd"]
    assert "says nothing without --distill gid" in refusal(*both, "--distill-settings", "gid.count=3")
    assert "--distill-settings: pkd has no setting 'x'" in refusal(*both, "--distill-settings", "pkd.x=3")
    assert "--cuda-graphs freezes a step" in refusal(*both, "--cuda-graphs")
    assert "names a method twice" in refusal(*both, "pkd")
    assert "none.pt: no such file" in refusal(*both, "--device", "cpu")
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('distill = ["pkd"]\nteacher = "x"\n[distill_settings.pkd]\nwieght = 3\n')
    assert "recipe.toml: pkd has no setting 'wieght'" in refusal("--data", "x", "--recipe", recipe)
