"""What MLPerf's own checker says of a log, in plain words."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from mlperf_logging.mllog import constants as keys

from ssd.config import Config
from ssd.mlperf.benchmarks import SSD, Benchmark, benchmark_of
from ssd.mlperf.log import read_events
from ssd.run.files import Run


def check(file: Path, benchmark: Benchmark = SSD) -> list[str]:
    """What MLPerf's checker objects to in a log, in plain words: nothing if it complies. The checker's own words go to
    mlperf-check.log beside it."""
    report = file.with_name("mlperf-check.log")
    report.unlink(missing_ok=True)  # it would be appended to
    checker = [sys.executable, "-m", "mlperf_logging.compliance_checker", "--quiet", "--ruleset", benchmark.ruleset]
    command = [*checker, "--log_output", str(report), str(file)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")  # it names the file
    if done.returncode == 0:
        return []
    values: dict[str, list[Any]] = {}
    for event in read_events(file):
        values.setdefault(event["key"], []).append(event["value"])
    objections = [_plain_words(found, values, benchmark) for found in _OBJECTION.finditer(done.stderr)]
    return objections or [f"the checker failed: {(done.stderr.strip() or 'without a word').splitlines()[-1]}"]


def check_run(file: Path, config: Config, run: Run, time_to_target_s: float | None) -> bool:
    """Has the run's compliance log checked, and says what is wrong with it; whether nothing is."""
    if time_to_target_s is not None:
        of_masks = "" if config.target_masks is None else f" and {config.target_masks} of masks"
        run.say(f"MLPerf: AP {config.target}{of_masks} after {time_to_target_s:.1f} s, from run_start to run_stop")
    benchmark = benchmark_of(config)
    objections = check(file, benchmark)
    by = f"MLPerf's checker (ruleset {benchmark.ruleset}, {config.mlperf_division} division)"
    run.say(f"{by} {'objects to' if objections else 'passes'} {file}" + "".join(f"\n  - {o}" for o in objections))
    return not objections


# The checker's ways to object, by its text.
_OBJECTION = re.compile(
    r"Required \w+ occurrence of '(?P<rare>\w+)'(?: but found (?P<times>\d+))?"
    r"|CHECK for '(?P<wrong>\w+)' failed"
    r'|triggered by line ?:\n.*"key": "(?P<broken>\w+)"'
    r"|Failed checks for (?P<never>\w+)"
)


_RULES = {
    keys.SUBMISSION_ORG: "--mlperf-org must not be empty",
    keys.SUBMISSION_PLATFORM: "--mlperf-platform must not be empty",
    keys.INIT_STOP: "what comes before run_start must take less than 30 minutes",
    keys.OPT_LR_WARMUP_STEPS: "--warmup must be 1 step or more",
    keys.OPT_LR_DECAY_BOUNDARY_EPOCHS: "--multistep must be 40 50 or both longer by the same tenths: 44 55, 48 60, ...",
    keys.OPT_LR_DECAY_STEPS: "--multistep must have two falls",
    keys.OPT_LR_DECAY_FACTOR: "--multistep-factors must be a tenth at each fall",
    keys.NUM_IMAGE_CANDIDATES: "proposals of a rank's batch must be a multiple of 1000",
    keys.OPT_NAME: "the closed division of RetinaNet trains with Adam, which this program has not",
}


def _plain_words(objection: "re.Match[str]", values: dict[str, list[Any]], benchmark: Benchmark) -> str:
    key = next(name for kind, name in objection.groupdict().items() if name and kind != "times")
    if objection["rare"]:
        times = int(objection["times"] or 0)
        return f"{key} stands there {times} times, and not always the same" if times else f"{key} is missing"
    figures = " and ".join(f"{metric} of {least}" for metric, least in benchmark.quality.items())
    quality = f"an evaluation must reach an {figures}"
    rule = quality if key == keys.EVAL_ACCURACY else _RULES.get(key, f"{key} breaks a rule")
    found = max(values[key], key=benchmark.share_of_quality) if key == keys.EVAL_ACCURACY else values[key][-1]
    return rule if found is None else f"{rule}; here: {found}"
