"""Image files as no encoder writes them: each is an image or BadImage to `check` and the torch path, and DALI agrees.

    python tests/fuzz/fuzz_images.py --inputs 100000 --dali 2000 --made 10000

Mutated files know JPEG's segments, so that many survive the header: bytes changed, cut, put in or repeated; segments
doubled, exchanged or of a false length; sizes and sampling changed. Made ones (`made_images.py`) are whole, most of
them, and have chunks and segments in any order and of any size.

Of the files whose header passes, as in training, mutated ones are sampled and made ones all go through DALI's decoders
in a process of their own, in batches. It is told of each that ends this process, and of each that the torch path reads
and DALI refuses or reads with other pixels; the exit code is 1 then.
"""

import argparse
import collections
import io
import random
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

import made_images

from pipelines.readers.image_files import BadImage, decode_rgb, open_image

DALI_BATCH = 32
LEVELS = 1
"""Of 255, by which pixels may differ: DALI rounds 16 bits and CMYK, and Pillow cuts them off."""


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


def has_header(content: bytes) -> bool:
    """What the DALI path asks of a file before it trains."""
    try:
        open_image(content).close()
    except BadImage:
        return False
    return True


def make_all(count: int, seed: int, folder: Path) -> dict[Path, str]:
    """Writes the made files whose header passes; says what they are made of."""
    draw, kinds = random.Random(seed), {}
    for number in range(count):
        made = made_images.image(draw)
        if has_header(made.content):
            file = folder / f"made-{number:06}"
            file.write_bytes(made.content)
            kinds[file] = made.kind
    return kinds


def read_all(inputs: int, seed: int, keep: int, folder: Path) -> None:
    """Decodes every mutant; writes a sample of `keep` of those whose header is an image's to the folder."""
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
        if has_header(content):
            passed += 1  # reservoir sampling
            place = passed - 1 if passed <= keep else draw.randrange(passed)
            if place < keep:
                (folder / f"{place:06}").write_bytes(content)
    print(f"{inputs} files in {time.monotonic() - start_s:.0f} s: {dict(answers.most_common())}", flush=True)


# One batch after the other, each file's pixels beside it. Says which it begins, so that the parent knows when it died.
DALI_READER = """
import sys
from pathlib import Path
import numpy as np
from nvidia.dali import fn, pipeline_def, types

batch_size, files, batch = int(sys.argv[1]), [Path(name) for name in sys.stdin.read().split()], []

@pipeline_def(batch_size=batch_size, num_threads=2, device_id=None, prefetch_queue_depth=1)
def graph():
    encoded = fn.external_source(lambda: batch, dtype=types.UINT8, ndim=1)
    options = dict(device="cpu", output_type=types.RGB, adjust_orientation=False, jpeg_fancy_upsampling=True)
    crop = fn.decoders.image_slice(encoded, [0.2, 0.3], [0.5, 0.6], **options)
    return fn.decoders.image(encoded, **options), crop, fn.peek_image_shape(encoded, adjust_orientation=False)

pipeline = None
for first in range(0, len(files), batch_size):
    print("begin", first, flush=True)
    names = files[first : first + batch_size]
    batch[:] = [np.fromfile(file, dtype=np.uint8) for file in names]
    try:
        if pipeline is None:
            pipeline = graph()
            pipeline.build()
        images, _, shapes = pipeline.run()
    except RuntimeError as error:
        print("refused", first, flush=True)
        pipeline = None
        continue
    for i, name in enumerate(names):
        assert tuple(shapes.at(i)) == images.at(i).shape, f"{name}: {shapes.at(i)} {images.at(i).shape}"
        np.save(name.with_suffix(".npy"), images.at(i))
print("end", flush=True)
"""


def dali_batches(files: list[Path], batch_size: int) -> tuple[list[Path], list[Path]]:
    """The files of the batches that DALI refused, and of those that ended its process."""
    refused, died, start = [], [], 0
    while start < len(files):
        names = "\n".join(map(str, files[start:]))
        command = [sys.executable, "-c", DALI_READER, str(batch_size)]
        done = subprocess.run(command, input=names, capture_output=True, text=True)
        lines = [line.split() for line in done.stdout.splitlines() if line.startswith(("begin", "refused", "end"))]
        for first in (start + int(line[1]) for line in lines if line[0] == "refused"):
            refused += files[first : first + batch_size]
        if lines and lines[-1][0] == "end":
            break
        if not lines or done.returncode > 0:
            raise RuntimeError(done.stderr)
        first = start + int(lines[-1][1])
        died += files[first : first + batch_size]
        start = first + batch_size
    return refused, died


def read_by_dali(folder: Path) -> dict[Path, str]:
    """File -> what DALI makes of it: "read", "refused" or "ended its process"."""
    files, start_s = sorted(file for file in folder.iterdir() if not file.suffix), time.monotonic()
    answers = dict.fromkeys(files, "read")
    refused, died = dali_batches(files, DALI_BATCH)
    guilty = [*refused, *died]
    refused, died = dali_batches(guilty, 1)
    answers |= dict.fromkeys(refused, "refused") | dict.fromkeys(died, "ended its process")
    told = dict(collections.Counter(answers.values()))
    print(f"{len(files)} files through DALI in {time.monotonic() - start_s:.0f} s: {told}", flush=True)
    return answers


def held_against_dali(folder: Path, kinds: dict[Path, str]) -> list[str]:
    """What is wrong, a line for each file. kinds: what files are, for these lines."""
    wrong = []
    for file, answer in read_by_dali(folder).items():
        try:
            pixels = decode_rgb(file.read_bytes())
        except BadImage:
            if answer != "ended its process":
                continue
        else:
            if answer == "read":
                dali_pixels = np.load(file.with_suffix(".npy")).astype(int)
                if pixels.shape == dali_pixels.shape and np.abs(dali_pixels - pixels).max() <= LEVELS:
                    continue
                answer = "read it with other pixels"
        wrong.append(f"DALI {answer}: {file} {kinds.get(file, '')}")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=100_000, help="mutated files")
    parser.add_argument("--dali", type=int, default=2_000, help="how many of them go through DALI")
    parser.add_argument("--made", type=int, default=10_000, help="made files, all of which go through DALI")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # Pillow's, of odd EXIF data
    folder = Path(tempfile.mkdtemp(prefix="ssd-fuzz-"))
    read_all(options.inputs, options.seed, options.dali, folder)
    kinds = make_all(options.made, options.seed, folder)
    wrong = held_against_dali(folder, kinds)
    print("\n".join(wrong) or "nothing wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
