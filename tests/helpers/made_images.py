"""Small images of every kind of PNG, WebP and JPEG: chunks and segments in any order, of any size, some a little wrong.

A generator of its own and no encoder's, because encoders write but a few of the kinds that the formats allow.
"""

import io
import random
import struct
import zlib
from typing import NamedTuple

import numpy as np
from PIL import Image


class Made(NamedTuple):
    """kind: what the file is made of, to be told of a file that a decoder does not like."""

    kind: str
    content: bytes


def image(draw: random.Random) -> Made:
    return draw.choice([png, webp, webp, jpeg])(draw)


def _pixels(draw: random.Random, width: int, height: int, channels: int) -> np.ndarray:
    """A slope with a little noise, height x width x channels uint8."""
    rng = np.random.default_rng(draw.randrange(2**32))
    slope = np.add.outer(np.linspace(0, 120, height), np.linspace(0, 100, width))[..., None]
    return (slope + rng.integers(0, 30, (height, width, channels))).astype(np.uint8)


def _size_px(draw: random.Random) -> tuple[int, int]:
    return draw.choice([1, 2, 4, 7, 8, 15, 16, 17, 31, 40]), draw.choice([1, 2, 4, 7, 8, 16, 17, 33, 40])


def exif(draw: random.Random) -> bytes:
    """A TIFF header with an orientation, or what tools make of it."""
    if draw.random() < 0.15:
        return draw.randbytes(draw.randrange(12))
    order, mark = draw.choice([("<", b"II*\0"), (">", b"MM\0*")])
    orientation = draw.choice([1, 2, 3, 4, 5, 6, 7, 8, 6, 6, 0, 9, 255])
    kind = draw.choice([3, 3, 3, 3, 1, 4, 5, 99])  # a SHORT, as it should be, or not
    count = draw.choice([1, 1, 1, 1, 0, 2, 65536, 2**32 - 1])
    entry = struct.pack(f"{order}HHIHH", 0x0112, kind, count, orientation, 0)
    text = struct.pack(f"{order}HHII", 0x010F, 2, draw.choice([4, 5, 300]), draw.choice([38, 4, 2**31]))
    entries = draw.choice([[entry], [text, entry], [entry, text], [text], []])
    stated = len(entries) if draw.random() < 0.85 else draw.choice([0, 5, 65535])
    start = 8 if draw.random() < 0.85 else draw.choice([0, 7, 9, 2**31, 2**32 - 1])
    content = mark + struct.pack(f"{order}I", start) + struct.pack(f"{order}H", stated) + b"".join(entries) + bytes(4)
    content += b"x" * draw.choice([0, 0, 1, 2, 7])
    return content if draw.random() < 0.9 else content[: draw.randrange(len(content))]


def _parts(length: int, part: int) -> int:
    """How many parts cover a length."""
    return -(-length // part)


def _blob(draw: random.Random) -> bytes:
    return draw.randbytes(draw.choice([0, 1, 1, 2, 3, 4, 7, 8, 9, 31, 300]))


# PNG ------------------------------------------------------------------------------------------------------------------


def _png_chunk(name: bytes, content: bytes, right: bool = True) -> bytes:
    checksum = zlib.crc32(name + content) ^ (not right)
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)


def _png_rows(draw: random.Random, width: int, height: int, bits: int, channels: int, interlaced: bool) -> bytes:
    passes = [(0, 0, 1, 1)]
    if interlaced:
        passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    rows = b""
    for left, top, step_x, step_y in passes:
        columns, lines = len(range(left, width, step_x)), len(range(top, height, step_y))
        if columns:
            rows += b"".join(bytes([0]) + draw.randbytes(-(-columns * bits * channels // 8)) for _ in range(lines))
    return rows


def png(draw: random.Random) -> Made:
    width, height = _size_px(draw)
    depths = {0: [1, 2, 4, 8, 16], 2: [8, 8, 16], 3: [1, 2, 4, 8], 4: [8, 16], 6: [8, 16]}
    colour = draw.choice(list(depths))
    bits, channels = draw.choice(depths[colour]), {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    interlaced = draw.random() < 0.3
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, interlaced)
    packed = zlib.compress(_png_rows(draw, width, height, bits, channels, interlaced), draw.choice([0, 1, 9]))
    parts = sorted(draw.randrange(len(packed) + 1) for _ in range(draw.choice([0, 0, 0, 1, 3])))
    data = [_png_chunk(b"IDAT", packed[a:b]) for a, b in zip([0, *parts], [*parts, len(packed)], strict=True)]

    srgb = zlib.compress(draw.randbytes(140))
    optional = {
        b"gAMA": struct.pack(">I", draw.choice([45455, 100000, 1, 0, 2**31])),
        b"cHRM": struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000),
        b"sRGB": bytes([draw.choice([0, 1, 9])]),
        b"iCCP": b"profile\0\0" + srgb,
        b"sBIT": bytes([bits] * {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}[colour]),
        b"bKGD": bytes({0: 2, 2: 6, 3: 1, 4: 2, 6: 6}[colour]),
        b"hIST": bytes(2 * 2**bits if bits <= 8 else 4),
        b"pHYs": struct.pack(">IIB", 2835, 2835, 1),
        b"tIME": struct.pack(">HBBBBB", 2020, 1, 2, 3, 4, 5),
        b"tEXt": b"Comment\0" + _blob(draw),
        b"zTXt": b"Comment\0\0" + zlib.compress(_blob(draw)),
        b"iTXt": b"Comment\0\0\0\0\0" + _blob(draw),
        b"eXIf": exif(draw),
        b"tRNS": {0: bytes(2), 2: bytes(6), 3: bytes([0, 128])[: 2**bits], 4: b"", 6: b""}[colour],
        b"cICP": bytes([9, 16, 0, 1]),
        b"ruSt": _blob(draw),  # ancillary and private: to be passed over
        b"RuST": _blob(draw),  # critical and unknown: to be refused
    }
    weights = [0.05 if name == b"RuST" else 1.0 for name in optional]
    names = draw.choices(list(optional), weights, k=draw.choice([0, 1, 1, 2, 3, 5]))
    chunks = []
    for name in names:
        content = optional[name] if draw.random() < 0.9 else _blob(draw)  # of a size that it should not have
        chunks.append(_png_chunk(name, content, right=draw.random() < 0.95))
    palette = [_png_chunk(b"PLTE", draw.randbytes(3 * 2 ** min(bits, 8)))] if colour == 3 or draw.random() < 0.1 else []

    before, between, after = [], [], []
    for chunk in chunks:
        draw.choice([before, before, between, after]).append(chunk)
    if draw.random() < 0.05 and len(data) > 1:
        data.insert(1, draw.choice(chunks or [b""]))
    content = b"\x89PNG\r\n\x1a\n" + b"".join(
        [_png_chunk(b"IHDR", header), *before, *palette, *between, *data, *after, _png_chunk(b"IEND", b"")]
    )
    content += draw.choice([b"", b"", b"", b"\0", b"after the end" * 9])
    kind = f"PNG {width}x{height} colour {colour} bits {bits}{' interlaced' * interlaced} IDAT {len(data)} "
    kind += " ".join(name.decode() for name in names)
    return Made(kind, content)


# WebP -----------------------------------------------------------------------------------------------------------------


def _webp_chunk(name: bytes, content: bytes, padded: bool = True) -> bytes:
    return name + struct.pack("<I", len(content)) + content + b"\0" * (padded and len(content) % 2)


def _webp_chunks(content: bytes) -> dict[bytes, bytes]:
    chunks, at = {}, 12
    while at + 8 <= len(content):
        length = int.from_bytes(content[at + 4 : at + 8], "little")
        chunks[content[at : at + 4]] = content[at + 8 : at + 8 + length]
        at += 8 + length + length % 2
    return chunks


def webp(draw: random.Random) -> Made:
    width, height = _size_px(draw)
    alpha, lossless = draw.random() < 0.4, draw.random() < 0.4
    stream = io.BytesIO()
    Image.fromarray(_pixels(draw, width, height, 4 if alpha else 3)).save(stream, "WEBP", lossless=lossless, method=0)
    made = _webp_chunks(stream.getvalue())
    bitstream = b"VP8L" if b"VP8L" in made else b"VP8 "
    picture = [_webp_chunk(name, made[name]) for name in (b"ALPH", bitstream) if name in made]
    contents = {
        b"EXIF": exif(draw) if draw.random() < 0.8 else b"Exif\0\0" + exif(draw),
        b"XMP ": b"<x:xmpmeta/>" + _blob(draw),
        b"ICCP": _blob(draw),
        b"abcd": _blob(draw),
        b"\0\0\0\0": _blob(draw),
    }
    names = draw.choices(list(contents), [3, 2, 2, 2, 0.3], k=draw.choice([0, 1, 2, 2, 3, 4]))
    padded = draw.random() < 0.92
    before, after = [], []
    for name in names:
        where = before if name == b"ICCP" or draw.random() < 0.3 else after
        where.append(_webp_chunk(name, contents[name], padded))
    extended = draw.random() < 0.9 or b"ALPH" in made
    flags = 0x20 * (b"ICCP" in names) | 0x10 * alpha | 0x08 * (b"EXIF" in names) | 0x04 * (b"XMP " in names)
    if draw.random() < 0.1:
        flags = draw.randrange(64) & ~2  # what it says is not what there is; never an animation
    canvas = (width, height) if draw.random() < 0.95 else (width + 1, height)
    head = b""
    if extended:
        body = struct.pack("<I", flags) + b"".join(struct.pack("<I", side - 1)[:3] for side in canvas)
        head = _webp_chunk(b"VP8X", body + b"\0" * draw.choice([0, 0, 0, 0, 0, 0, 0, 1, 2]))
    body = b"WEBP" + head + b"".join([*before, *picture, *after])
    wrong = 0 if draw.random() < 0.9 else draw.choice([-9, -2, -1, 1, 2, 8, 1000, 2**31])
    content = b"RIFF" + struct.pack("<I", max(0, len(body) + wrong)) + body
    content += draw.choice([b"", b"", b"", b"", b"\0", b"after the end" * 9])
    kind = f"WebP {width}x{height} {bitstream.decode()}{' VP8X' * extended}{' alpha' * alpha}"
    kind += f"{'' if padded else ' unpadded'}{f' RIFF {wrong:+}' if wrong else ''} "
    kind += " ".join(f"{name.decode()}:{len(contents[name])}" for name in names)
    return Made(kind, content)


# JPEG -----------------------------------------------------------------------------------------------------------------

_DC_BITS = bytes([0, 1, 5, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0])  # the standard's table K.3
_DC_VALUES = bytes(range(12))
_AC_BITS = bytes([1] + [0] * 15)  # one code, "0", for the end of the block


def _dc_codes() -> dict[int, str]:
    codes, code, values = {}, 0, iter(_DC_VALUES)
    for length, count in enumerate(_DC_BITS, start=1):
        for _ in range(count):
            codes[next(values)] = f"{code:0{length}b}"
            code += 1
        code <<= 1
    return codes


_DC_CODES = _dc_codes()


def _difference(value: int) -> str:
    size = abs(value).bit_length()
    return _DC_CODES[size] + (f"{value if value > 0 else value + 2**size - 1:0{size}b}" if size else "")


def _segment(marker: int, content: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content


def _packed(bits: str) -> bytes:
    bits += "1" * (-len(bits) % 8)
    return int(bits, 2).to_bytes(len(bits) // 8).replace(b"\xff", b"\xff\0") if bits else b""


class _Component(NamedTuple):
    id: int
    across: int
    down: int


def _scan(
    draw: random.Random,
    components: list[_Component],
    grid: tuple[int, int],
    every: int,
    progressive: bool,
    blocks: dict[int, int] | None,
) -> bytes:
    """One scan of blocks of one value each. blocks: of a scan of one component, how many it has."""
    before, marker, content, bits = {c.id: 0 for c in components}, 0, b"", ""
    units = grid[0] * grid[1] if blocks is None else blocks[components[0].id]
    for unit in range(units):
        if every and unit and unit % every == 0:
            content += _packed(bits) + bytes([0xFF, 0xD0 + marker % 8])
            marker, bits, before = marker + 1, "", dict.fromkeys(before, 0)
        for component in components:
            for _ in range(component.across * component.down if blocks is None else 1):
                value = draw.randrange(-60, 60)
                bits += _difference(value - before[component.id]) + ("" if progressive else "0")
                before[component.id] = value
    last = 0 if progressive else 63
    head = bytes([len(components)]) + b"".join(bytes([c.id, 0]) for c in components) + bytes([0, last, 0])
    return _segment(0xDA, head) + content + _packed(bits)


_SAMPLINGS = [
    [(1, 1)] * 3, [(2, 1), (1, 1), (1, 1)], [(2, 2), (1, 1), (1, 1)],
    [(1, 2), (1, 1), (1, 1)], [(4, 1), (1, 1), (1, 1)],
    [(4, 2), (1, 1), (1, 1)], [(1, 4), (1, 1), (1, 1)], [(2, 4), (1, 1), (1, 1)], [(4, 2), (2, 1), (2, 1)],
    [(2, 2), (2, 1), (2, 1)], [(2, 2), (1, 2), (1, 2)], [(2, 2), (2, 2), (2, 2)], [(2, 1), (2, 1), (2, 1)],
    [(1, 2), (1, 2), (1, 2)], [(2, 2), (2, 1), (1, 2)], [(1, 1), (2, 1), (2, 1)], [(1, 1), (1, 1), (2, 2)],
    [(3, 1), (1, 1), (1, 1)], [(3, 2), (1, 1), (1, 1)], [(3, 1), (2, 1), (1, 1)], [(4, 1), (2, 1), (2, 1)],
    [(1, 3), (1, 1), (1, 1)], [(2, 1), (1, 1), (2, 1)],
]  # fmt: skip
"""Of Y, Cb and Cr, across and down. At most 10 blocks may come in a turn."""


def jpeg(draw: random.Random) -> Made:
    width, height = _size_px(draw)
    count = draw.choice([3, 3, 3, 3, 3, 3, 1, 1, 4, 4, 2])
    sampling = list(draw.choice(_SAMPLINGS))
    if count == 1:
        sampling = [draw.choice([(1, 1), (1, 1), (2, 2), (2, 1), (1, 2), (4, 4), (3, 1)])]
    elif count == 4:
        sampling = draw.choice([[(1, 1)] * 4, [(2, 2), (1, 1), (1, 1), (2, 2)], [(1, 1)] * 4, [(2, 1)] * 4])
    elif count == 2:
        sampling = [(1, 1)] * 2
    ids = draw.choice([[1, 2, 3, 4], [1, 2, 3, 4], [0, 1, 2, 3], list(b"RGBA"), list(b"CMYK")])
    components = [_Component(ids[i], *sampling[i]) for i in range(count)]
    across, down = max(c.across for c in components), max(c.down for c in components)
    grid = (_parts(width, 8 * across), _parts(height, 8 * down))
    blocks = {
        c.id: _parts(_parts(width * c.across, across), 8) * _parts(_parts(height * c.down, down), 8) for c in components
    }
    progressive = draw.random() < 0.3
    frame = 0xC2 if progressive else draw.choice([0xC0, 0xC0, 0xC1])
    every = draw.choice([0, 0, 0, 1, 3])
    apart = count == 1 or draw.random() < 0.25 or sum(c.across * c.down for c in components) > 10

    wide = draw.random() < 0.1 and frame != 0xC0
    table = struct.pack(">64H", *[16] * 64) if wide else bytes([16] * 64)
    tables = [
        _segment(0xDB, bytes([0x10 * wide]) + table),
        _segment(0xC4, bytes([0x00]) + _DC_BITS + _DC_VALUES),
        _segment(0xC4, bytes([0x10]) + _AC_BITS + bytes([0])),
    ]
    if every:
        tables.append(_segment(0xDD, struct.pack(">H", every)))
    tables.append(
        _segment(
            frame,
            struct.pack(">BHHB", 8, height, width, count)
            + b"".join(bytes([c.id, 16 * c.across + c.down, 0]) for c in components),
        )
    )
    optional = {
        "JFIF": _segment(0xE0, b"JFIF\0" + bytes([1, draw.choice([1, 2]), draw.choice([0, 1]), 0, 72, 0, 72, 0, 0])),
        "JFXX": _segment(0xE0, b"JFXX\0\x13" + _blob(draw)),
        "EXIF": _segment(0xE1, b"Exif\0\0" + exif(draw)),
        "XMP": _segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + _blob(draw)),
        "ICC": _segment(0xE2, b"ICC_PROFILE\0\x01\x01" + draw.randbytes(140)),
        "MPF": _segment(0xE2, b"MPF\0" + exif(draw)),
        "APP13": _segment(0xED, b"Photoshop 3.0\x008BIM" + _blob(draw)),
        "Adobe": _segment(0xEE, b"Adobe" + struct.pack(">HHHB", 100, 0, 0, draw.choice([0, 1, 2, 3]))),
        "COM": _segment(0xFE, _blob(draw)),
        "blob": _segment(draw.randrange(0xE0, 0xF0), _blob(draw)),
        "fill": b"\xff" * draw.choice([1, 2, 3]),
    }
    names = draw.choices(list(optional), k=draw.choice([0, 1, 2, 3, 4]))
    head = [optional[name] for name in names]
    late = []
    if draw.random() < 0.1:
        late = [head.pop()] if head else []
    if draw.random() < 0.1:
        draw.shuffle(tables)
    draws = [[c] for c in components] if apart else [components]
    scans = [_scan(draw, part, grid, every, progressive, blocks if len(part) == 1 else None) for part in draws]
    content = b"\xff\xd8" + b"".join([*head, *tables, *late, *scans]) + b"\xff\xd9" * (draw.random() < 0.97)
    content += draw.choice([b"", b"", b"", b"\0", b"after the end" * 9, b"\xff\xd8\xff\xe1"])
    sampled = ",".join(f"{c.across}x{c.down}" for c in components)
    kind = f"JPEG {width}x{height} {frame:X} {sampled} ids {ids[:count]} restart {every}{' apart' * apart} "
    return Made(kind + " ".join(names), content)
