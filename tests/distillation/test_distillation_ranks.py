"""A training with a teacher over two ranks: it learns what one rank would, and goes on bit for bit."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from distillation_toys import hash_of, new_training, random_batch, teacher_of, tiny
from runs import assert_equal
from test_distillation import TERMS
from toy_training import CPU
from two_ranks import on_two_ranks

from ssd.distributed import Ranks
from ssd.training.step import build_forward, build_step

REDUCED = ("pkd", "gid", "crosskd")


def gradients(ranks: Ranks, batch: Any, method: str) -> dict[str, np.ndarray]:
    """The terms of a step, and the gradients of it, by name. Batch norm, whose statistics are a rank's own, is held."""
    training = new_training(teacher_of(tiny(6, seed=1)), method, ranks=ranks)
    training.model.backbone.stem[1].eval()  # type: ignore[union-attr, index]
    forward = build_forward(training)  # which exchanges gradients as long as it lives
    found = training.losses_of(forward, batch)
    sum(found.values()).backward()  # type: ignore[union-attr]
    assert training.adapters is not None
    own = [*training.model.named_parameters(), *training.adapters.named_parameters()]
    terms = {name: found[name].detach() for name in TERMS[method]}
    return {name: value.numpy() for name, value in {**terms, **{n: p.grad for n, p in own}}.items()}  # type: ignore[union-attr]


def on_a_rank(ranks: Ranks, folder: Path) -> None:
    torch.set_num_threads(1)
    batch = random_batch(3).split(2)[ranks.rank]
    for method in REDUCED:
        np.savez(folder / f"{method}-{ranks.rank}.npz", **gradients(ranks, batch, method))
    goes_on_over_ranks(ranks, folder / "state.pt")
    has_no_instance_on_one_rank(ranks)


def has_no_instance_on_one_rank(ranks: Ranks) -> None:
    """A term of 0 in the first step is an error where something was to be computed, on any rank."""
    batch = random_batch(3)
    boxes_ltrb_px = batch.boxes_ltrb_px.clone()
    boxes_ltrb_px[-1] = torch.tensor([0.0, 0, 1, 1])  # the object of the second image: nothing lies in it
    batch = batch._replace(boxes_ltrb_px=boxes_ltrb_px).split(2)[ranks.rank]
    training = new_training(teacher_of(tiny(6, seed=1)), "gid", ranks=ranks, distill_settings=("gid.instances=pos",))
    found = training.losses_of(build_forward(training), batch)
    assert (found["gid_feature"] > 0) == ranks.is_main


def goes_on_over_ranks(ranks: Ranks, file: Path) -> None:
    """Within an epoch: each rank has its own generator of MGD's places."""
    batches = [random_batch(seed).split(2)[ranks.rank] for seed in (5, 6)]

    def begun(seed: int) -> Any:
        return new_training(teacher_of(tiny(6, seed=1)), "pkd", "gid", "mgd", model=tiny(seed=seed), ranks=ranks)

    whole = begun(0)
    step = build_step(whole)
    step(batches[0], 0.1)
    state = whole.state()
    if ranks.is_main:
        drawn = state["companions"]["distillation"]["generators"][0]
        assert len(drawn) == 2 and not torch.equal(drawn[0], drawn[1])
        torch.save(state, file)
    torch.distributed.barrier()
    losses = step(batches[1], 0.1)
    again, content = begun(9), torch.load(file, weights_only=True)
    again.model.load_state_dict(content["model"])
    again.restore(content)
    assert torch.equal(build_step(again)(batches[1], 0.1), losses)
    assert_equal(hash_of(again.model), hash_of(whole.model))
    assert_equal(hash_of(again.adapters), hash_of(whole.adapters))
    assert_equal(again.optimizer.state_dict()["state"], whole.optimizer.state_dict()["state"])


@pytest.mark.slow
def test_two_ranks_have_the_terms_and_gradients_of_one(tmp_path: Path) -> None:
    """Of a batch of two images, of which one has three objects and the other one. And two ranks go on bit for bit."""
    on_two_ranks(on_a_rank, tmp_path)
    for method in REDUCED:
        first, second = (np.load(tmp_path / f"{method}-{rank}.npz") for rank in range(2))
        whole = gradients(CPU, random_batch(3), method)
        assert len(whole) > 30
        largest = max(np.abs(value).max() for name, value in whole.items() if name not in TERMS[method])
        for name, expected in whole.items():
            if name in TERMS[method]:
                assert (first[name] + second[name]) / 2 == pytest.approx(expected, rel=1e-4), name
                continue
            assert np.array_equal(first[name], second[name])
            # A shift of a channel, as by a bias, says nothing to PKD: sums of what cancels out are rounded.
            rounding = 1e-5 * (1 + largest) + 1e-4 * np.abs(expected).max()
            np.testing.assert_allclose(first[name], expected, rtol=1e-3, atol=rounding)
