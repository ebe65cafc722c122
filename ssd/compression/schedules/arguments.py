"""The classes that a schedule may name, with their arguments: Distiller's, by its names.

Every argument has a reader: it takes the plain value of the YAML file and returns it checked, or raises ValueError that
says what it must be.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

GROUP_TYPES = ("2D", "Rows", "Cols", "Channels", "3D", "Filters")
RANKED_GROUP_TYPES = ("3D", "Filters", "Channels", "Rows", "Blocks")
LASSO_GROUP_TYPES = (*GROUP_TYPES, "Rows+Cols", "Cols+Rows", "4D", "Channels+4D", "4D+Channels")
CRITERIA = ("Max", "Mean_Abs")

Reader = Callable[[Any], Any]


class Argument(NamedTuple):
    """names_tensors: its list items, or its keys, are names of tensors; "*" among keys means all the others."""

    read: Reader
    required: bool = True
    names_tensors: bool = False


def number(low: float = float("-inf"), high: float = float("inf")) -> Reader:
    def read(value: Any) -> float:
        if isinstance(value, str):  # YAML 1.1 takes 1e-4, without a point, for a word
            try:
                value = float(value)
            except ValueError:
                pass
        is_finite = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not is_finite or not low <= value <= high:
            limits = f" in {low:g}..{high:g}" if high < float("inf") else f" of {low:g} or more" if low > -1e300 else ""
            raise ValueError(f"must be a number{limits}")
        return float(value)

    return read


def whole(low: int) -> Reader:
    def read(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value < low:
            raise ValueError(f"must be a whole number of {low} or more")
        return value

    return read


def one_of(*choices: str) -> Reader:
    def read(value: Any) -> str:
        if value not in choices:
            raise ValueError(f"must be one of {', '.join(choices)}")
        return str(value)

    return read


def switch(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("must be true or false")
    return value


def names(value: Any) -> list[str]:
    found = [value] if isinstance(value, str) else value
    if not isinstance(found, list) or not found or not all(isinstance(name, str) for name in found):
        raise ValueError("must be a list of names of tensors")
    return found


def by_name(read_one: Reader, *, needs_star: bool = False) -> Reader:
    def read(value: Any) -> dict[str, Any]:
        if not isinstance(value, dict) or not value:
            raise ValueError("must be {name of a tensor: value}")
        if needs_star and "*" not in value:
            raise ValueError("must have an entry '*', for the tensors that it does not name")
        return {name: read_one(each) for name, each in value.items()}

    return read


def _strength_and(*group_types: str) -> Reader:
    def read(value: Any) -> tuple[float, str]:
        if not isinstance(value, list) or len(value) != 2:
            raise ValueError("must be {name of a tensor: [number, group type]}")
        return number(0)(value[0]), one_of(*group_types)(value[1])

    return read


def _interval(value: Any) -> tuple[float, float]:
    if not isinstance(value, list) or len(value) != 2:
        raise ValueError("must be [lowest, highest]")
    low, high = map(number(0, 1), value)
    if low > high:
        raise ValueError("must be [lowest, highest]")
    return low, high


def _block_kwargs(value: Any) -> dict[str, list[int]]:
    shape = value.get("block_shape") if isinstance(value, dict) and len(value) == 1 else None
    if not isinstance(shape, list) or len(shape) != 4 or not all(isinstance(n, int) and n > 0 for n in shape):
        raise ValueError("must be {block_shape: [filters, channels, 1, 1]}")
    if shape[2:] != [1, 1]:
        raise ValueError("must have a block_shape that ends in 1, 1")
    return {"block_shape": shape}


def _one(value: Any) -> int:
    if value != 1:
        raise ValueError("must be 1; other sizes are not supported")
    return 1


_FRACTION = number(0, 1)
_WEIGHTS = Argument(names, names_tensors=True)
_AGP = {"initial_sparsity": Argument(_FRACTION), "final_sparsity": Argument(_FRACTION)}
_DEPENDENCY = {"group_dependency": Argument(one_of("Leader"), required=False)}
_LEVEL = {"desired_sparsity": Argument(_FRACTION)}
_OF_FILTERS = {"group_type": Argument(one_of("3D", "Filters")), "weights": _WEIGHTS}
_OF_STRUCTURES = {
    "group_type": Argument(one_of(*RANKED_GROUP_TYPES)),
    "weights": _WEIGHTS,
    "kwargs": Argument(_block_kwargs, required=False),
    **_DEPENDENCY,
}
_OF_RANKING = {"noise": Argument(_FRACTION, required=False), "group_size": Argument(_one, required=False)}
_FRACTIONS = {"sensitivities": Argument(by_name(number(0)), names_tensors=True)}

_RANKED_FILTERS = (
    "GradientRankedFilterPruner", "RandomRankedFilterPruner", "BernoulliFilterPruner",
    "ActivationAPoZRankedFilterPruner", "ActivationMeanRankedFilterPruner",
)  # fmt: skip

OVER_ALL = ("GlobalMagnitudePruner", "GlobalFilterPruner")
"""Not Distiller's: they rank over all of their tensors at once, as AnishDelft/ModelCompression prunes YOLOv2."""

PRUNERS: dict[str, dict[str, Argument]] = {
    "MagnitudeParameterPruner": {
        "thresholds": Argument(by_name(number(0), needs_star=True), names_tensors=True),
    },
    "SparsityLevelParameterPruner": {"levels": Argument(by_name(_FRACTION), names_tensors=True)},
    "AutomatedGradualPruner": {**_AGP, "weights": _WEIGHTS},
    "SensitivityPruner": _FRACTIONS,
    "SplicingPruner": {
        **_FRACTIONS,
        "low_thresh_mult": Argument(number(0)),
        "hi_thresh_mult": Argument(number(0)),
        "sensitivity_multiplier": Argument(number(0), required=False),
    },
    "BaiduRNNPruner": {
        "q": Argument(number(0)),
        "ramp_epoch_offset": Argument(whole(0)),
        "ramp_slope_mult": Argument(number(0)),
        "weights": _WEIGHTS,
    },
    "StructureParameterPruner": {
        "reg_regims": Argument(by_name(_strength_and(*GROUP_TYPES)), names_tensors=True),
        "threshold_criteria": Argument(one_of(*CRITERIA)),
    },
    "L1RankedStructureParameterPruner": {**_OF_STRUCTURES, **_LEVEL, **_OF_RANKING},
    "L2RankedStructureParameterPruner": {**_OF_STRUCTURES, **_LEVEL, **_OF_RANKING},
    "RandomLevelStructureParameterPruner": {**_OF_STRUCTURES, "sparsity_range": Argument(_interval)},
    "L1RankedStructureParameterPruner_AGP": {**_OF_STRUCTURES, **_AGP},
    "L2RankedStructureParameterPruner_AGP": {**_OF_STRUCTURES, **_AGP},
    **{name: {"weights": _WEIGHTS, **_LEVEL} for name in OVER_ALL},
    **{f"{name}_AGP": {"weights": _WEIGHTS, **_AGP} for name in OVER_ALL},
    **{name: {**_OF_FILTERS, **_LEVEL, **_DEPENDENCY} for name in
       _RANKED_FILTERS},
    **{f"{name}_AGP": {**_OF_FILTERS, **_AGP, **_DEPENDENCY} for name in _RANKED_FILTERS},
}  # fmt: skip

REGULARIZERS: dict[str, dict[str, Argument]] = {
    "L1Regularizer": {
        "reg_regims": Argument(by_name(number(0)), names_tensors=True),
        "threshold_criteria": Argument(one_of(*CRITERIA), required=False),
    },
    "GroupLassoRegularizer": {
        "reg_regims": Argument(by_name(_strength_and(*LASSO_GROUP_TYPES)), names_tensors=True),
        "threshold_criteria": Argument(one_of(*CRITERIA), required=False),
    },
    "GroupVarianceRegularizer": {
        "reg_regims": Argument(by_name(_strength_and("Channels")), names_tensors=True),
    },
}

# Extensions: what they are of is a model's own matter, and not Distiller's name for it.
_REMOVER = {
    "thinning_func_str": Argument(one_of("remove_filters", "remove_channels"), required=False),
    "arch": Argument(lambda value: value, required=False),
    "dataset": Argument(lambda value: value, required=False),
}
EXTENSIONS: dict[str, dict[str, Argument]] = {"FilterRemover": _REMOVER, "ChannelRemover": _REMOVER}

# What Distiller has and this does not, with what to do about it.
REFUSED = {
    "FMReconstructionChannelPruner": "needs feature maps of images, which are not kept; "
    "L1RankedStructureParameterPruner ranks channels by weights",
    "DropFilterRegularizer": "is not supported; BernoulliFilterPruner drops filters at random",
    "DistributionRegularizer": "belongs to quantisation and is not supported; take it out",
    **dict.fromkeys(("LambdaLR", "MultiplicativeLR"), "takes a function, which a file cannot hold; use MultiStepLR"),
    **dict.fromkeys(("SequentialLR", "ChainedScheduler"), "takes other schedulers; give each a policy of its own"),
    "ReduceLROnPlateau": "depends on metrics, so that the rate is no function of the step; use MultiStepLR",
}  # fmt: skip

PRUNER_POLICY_ARGUMENTS: dict[str, Argument] = {
    "levels": Argument(by_name(_FRACTION), required=False, names_tensors=True),
    "keep_mask": Argument(switch, required=False),
    "mini_batch_pruning_frequency": Argument(whole(0), required=False),
    "mask_on_forward_only": Argument(switch, required=False),
    "mask_gradients": Argument(switch, required=False),
    "use_double_copies": Argument(switch, required=False),
    "discard_masks_at_minibatch_end": Argument(switch, required=False),
    "skip_first_minibatch": Argument(switch, required=False),
    "fold_batchnorm": Argument(switch, required=False),
    "mask_batchnorm": Argument(switch, required=False),  # not Distiller's
}
REGULARIZER_POLICY_ARGUMENTS: dict[str, Argument] = {"keep_mask": Argument(switch, required=False)}
