"""Mutated image files: each is an image or BadImage to `check` and the torch path, and none of them takes DALI down.

    python tests/fuzz_images.py --inputs 100000 --dali 2000

The mutations know JPEG's segments, so that many survive the header: bytes changed, cut, put in or repeated; segments
doubled, exchanged or of a false length; sizes and sampling changed. Of the files that the torch path still reads, a
sample goes through DALI's decoders in a process of their own, in batches, as in training. What DALI refuses of them is
named, and what ends its process as well; the exit code is 1 then.
"""

import argparse
import collections
import io
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

from pipelines.readers.image_files import BadImage, decode_rgb

DALI_BATCH = 32


def seeds() -> list[bytes]:
    """Small images of all kinds: JPEG of several samplings, progressive, gray and CMYK; PNG; WebP."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (9, 7, 3)).repeat(8, axis=0).repeat(8, axis=1).astype(np.uint8)
    picture = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x0112] = 6
    kinds: list[tuple[Image.Image, str, dict[str, object]]] = [
        (picture, "JPEG", {}),
        (picture, "JPEG", {"subsampling": "4:4:4", "quality": 95}),
        (picture, "JPEG", {"subsampling": "4:2:2", "restart_marker_blocks": 4}),
        (picture, "JPEG", {"progressive": True}),
        (picture, "JPEG", {"progressive": True, "optimize": True, "subsampling": "4:4:4"}),
        (picture, "JPEG", {"exif": exif.tobytes(), "dpi": (300, 300), "comment": "x" * 40}),
        (picture.convert("L"), "JPEG", {}),
        (picture.convert("CMYK"), "JPEG", {}),
        (picture, "PNG", {}),
        (picture.convert("P"), "PNG", {}),
        (picture.convert("RGBA"), "PNG", {}),
        (picture, "WEBP", {}),
        (picture, "WEBP", {"lossless": True}),
    ]
    files = []
    for image, format, options in kinds:
        stream = io.BytesIO()
        image.save(stream, format, **options)
        files.append(stream.getvalue())
    return files


def segments(content: bytes) -> list[bytes]:
    """A JPEG's marker segments, the last with all the pixels; other files whole."""
    parts, at = [content[:2]], 2
    while (
        content.startswith(b"\xff\xd8") and at + 4 <= len(content) and content[at] == 0xFF and content[at + 1] != 0xDA
    ):
        end = at + 2 + int.from_bytes(content[at + 2 : at + 4])
        parts.append(content[at:end])
        at = end
    return [*parts, content[at:]]


def mutate(content: bytes, others: list[bytes], draw: random.Random) -> bytes:
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        what = draw.randrange(9)
        if what <= 2:
            changed = bytearray(content)
            for _ in range(draw.choice([1, 1, 2, 8])):
                if changed:
                    changed[draw.randrange(len(changed))] = draw.choice([0, 1, 0x7F, 0x80, 0xFF, draw.randrange(256)])
            content = bytes(changed)
        elif what == 3:
            content = content[: draw.randrange(len(content) + 1)]
        elif what == 4:
            at = draw.randrange(len(content) + 1)
            content = content[:at] + draw.randbytes(draw.choice([1, 2, 5, 30])) + content[at:]
        elif what == 5:
            at, length = draw.randrange(len(content) + 1), draw.randrange(40)
            content = content[:at] + content[at + length :]
        else:
            parts = segments(content)
            number = draw.randrange(len(parts))
            if what == 6:
                parts.insert(draw.randrange(len(parts) + 1), parts[number])
            elif what == 7:
                parts[number] = draw.choice(segments(draw.choice(others)))
            elif len(parts[number]) > 4:
                part = bytearray(parts[number])
                part[draw.randrange(2, min(len(part), 20))] = draw.randrange(256)  # its length, size or sampling
                parts[number] = bytes(part)
            content = b"".join(parts)
    return content


def mutants(inputs: int, seed: int) -> Iterator[bytes]:
    draw = random.Random(seed)
    files = seeds()
    weights = [1.0 if file.startswith(b"\xff\xd8") else 0.2 for file in files]
    for _ in range(inputs):
        yield mutate(draw.choices(files, weights)[0], files, draw)


def read_all(inputs: int, seed: int, keep: int, folder: Path) -> None:
    """Decodes every mutant; writes a sample of `keep` of those that are images to the folder."""
    answers: collections.Counter[str] = collections.Counter()
    draw, start_s, passed = random.Random(seed), time.monotonic(), 0
    for content in mutants(inputs, seed):
        try:
            pixels = decode_rgb(content)
        except BadImage as error:
            answers[error.flaw] += 1
            assert len(str(error).splitlines()) == 1, error
        else:
            answers["read"] += 1
            assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3 and pixels.size > 0
            passed += 1  # reservoir sampling
            place = passed - 1 if passed <= keep else draw.randrange(passed)
            if place < keep:
                (folder / f"{place:06}").write_bytes(content)
    print(f"{inputs} files in {time.monotonic() - start_s:.0f} s: {dict(answers.most_common())}", flush=True)


# One batch after the other; says which it begins, so that the parent knows on which it died.
DALI_READER = f"""
import sys
from pathlib import Path
import numpy as np
from nvidia.dali import fn, pipeline_def, types

files = [Path(name) for name in sys.stdin.read().split()]
batch = []

@pipeline_def(batch_size={DALI_BATCH}, num_threads=2, device_id=None, prefetch_queue_depth=1)
def graph():
    encoded = fn.external_source(lambda: batch, dtype=types.UINT8, ndim=1)
    options = dict(device="cpu", output_type=types.RGB, adjust_orientation=False, jpeg_fancy_upsampling=True)
    crop = fn.decoders.image_slice(encoded, [0.2, 0.3], [0.5, 0.6], **options)
    return fn.decoders.image(encoded, **options), crop

pipeline = None
for first in range(0, len(files), {DALI_BATCH}):
    print("begin", first, flush=True)
    batch[:] = [np.fromfile(file, dtype=np.uint8) for file in files[first : first + {DALI_BATCH}]]
    try:
        if pipeline is None:
            pipeline = graph()
            pipeline.build()
        pipeline.run()
    except RuntimeError as error:
        print("refused", first, flush=True)
        pipeline = None
"""


def dali_batches(files: list[Path]) -> tuple[list[int], list[int]]:
    """The first numbers of the batches that DALI refused, and of those that ended its process."""
    refused, died, start = [], [], 0
    while start < len(files):
        names = "\n".join(map(str, files[start:]))
        done = subprocess.run([sys.executable, "-c", DALI_READER], input=names, capture_output=True, text=True)
        lines = [line.split() for line in done.stdout.splitlines() if line.startswith(("begin", "refused"))]
        refused += [start + int(number) for word, number in lines if word == "refused"]
        if done.returncode == 0:
            break
        if not lines:
            raise RuntimeError(done.stderr)
        died.append(start + int(lines[-1][1]))
        start = died[-1] + DALI_BATCH
    return refused, died


def read_by_dali(folder: Path) -> int:
    """The exit code: 1 if DALI refuses a file of the folder or dies of it."""
    files, start_s = sorted(folder.iterdir()), time.monotonic()
    refused, died = dali_batches(files)
    guilty = {"refused": 0, "ended its process": 0}
    for first in {*refused, *died}:
        for file in files[first : first + DALI_BATCH]:
            alone_refused, alone_died = dali_batches([file])
            if alone_refused or alone_died:
                what = "ended its process" if alone_died else "refused"
                guilty[what] += 1
                print(f"DALI {what} over {file}")
    print(f"{len(files)} of those read through DALI in {time.monotonic() - start_s:.0f} s: {guilty}", flush=True)
    return 1 if refused or died else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--dali", type=int, default=2_000, help="how many of the files still read go through DALI")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="ssd-fuzz-"))
    read_all(options.inputs, options.seed, options.dali, folder)
    return read_by_dali(folder) if options.dali else 0


if __name__ == "__main__":
    sys.exit(main())
