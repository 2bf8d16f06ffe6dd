"""Data files that lie on purpose: sizes that are not there, bombs, and what no decoder should meet."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Iterator

import numpy as np

from tests.torture.mutants import Mutant, json_texts

_HUGE = 1 << 38
_GOOD = "{'descr': '<f4', 'fortran_order': False, 'shape': (4, 3), }"


def npy(header: str, data: bytes = bytes(48), version: int = 1, length: int | None = None) -> bytes:
    """A .npy file with that text as its header."""
    text = header.encode("latin-1") + b"\n"
    size = len(text) if length is None else length
    return (
        b"\x93NUMPY"
        + bytes([version, 0])
        + size.to_bytes(2 if version == 1 else 4, "little")
        + text
        + data
    )


def npy_forged() -> Iterator[tuple[str, bytes]]:
    shapes = (f"({_HUGE},)", f"({_HUGE}, {_HUGE})", "(4, -3)", "(True, 3)", "4", "(2**40,)", "(,)")
    shapes += (
        "(" + "1, " * 70 + ")",
        "(4, 3.0)",
        "('4',)",
        "(0, 3)",
        "(4, 0)",
        "()",
        "(10**30, 1)",
    )
    for shape in (
        *shapes,
        "(" * 3000 + ")" * 3000,
        f"({'9' * 5000}, 3)",
        "(4, 3" + ", 1" * 7 + ")",
    ):
        yield f"shape {shape[:20]}", npy(_GOOD.replace("(4, 3)", shape))
    for kind in ("O", "|O", "<f16", "<c8", "V8", ">f4", "<U999999999", "<M8[s]", "<f0", "|S0", "f"):
        yield f"type {kind}", npy(_GOOD.replace("<f4", kind))
    yield "records", npy(_GOOD.replace("'<f4'", "[('a', '<f4'), ('b', 'O')]"))
    for code in (
        "__import__('os').system('true')",
        "exec('x')",
        "lambda: 0",
        "{'descr': open}",
        "",
    ):
        yield f"code {code[:12]}", npy(code)
    yield "deep", npy("[" * 9000)
    yield "deep and closed", npy("[" * 4000 + "]" * 4000)
    yield "negated for ever", npy("-" * 9000 + "1")
    yield "two keys", npy(_GOOD[:-1] + "'shape': (1,), }")
    yield "more keys", npy(_GOOD[:-1] + "'zz': 0, }")
    for version in (0, 2, 3, 4, 255):
        yield f"version {version}", npy(_GOOD, version=version)
    for length in (0, 1, 9_999, 65_535):
        yield f"header of {length}", npy(_GOOD, length=length)
    yield "a header of 1 GiB", npy(_GOOD, version=2, length=1 << 30)
    yield "a true header of 1 MiB", npy(_GOOD + " " * (1 << 20), version=2)


def npz_of(members: list[tuple[str, bytes]], mode: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", mode) as archive:
        for name, content in members:
            archive.writestr(zipfile.ZipInfo(name), content, mode)
    return out.getvalue()


def npz_forged(quick: bool) -> Iterator[tuple[str, bytes]]:
    labels = io.BytesIO()
    np.save(labels, np.array([0, 1, 0, 1]))
    y = ("y.npy", labels.getvalue())
    good = ("x.npy", npy(_GOOD))
    for name, content in npy_forged():
        yield f"x: {name}", npz_of([("x.npy", content), y])
        yield f"y: {name}", npz_of([good, ("y.npy", content)], zipfile.ZIP_STORED)
    yield "a member again", _twice([good, y])
    yield "../x.npy", npz_of([("../x.npy", good[1]), y])
    yield "many members", npz_of([good, y, *((f"m{n}.npy", b"") for n in range(20_000))], 0)
    for method in (12, 14):
        yield f"method {method}", npz_of([good, y], method)
    whole = npz_of([good, y], zipfile.ZIP_STORED)
    place = whole.index(b"PK\x01\x02")
    for offset, value in (
        (8, 1),
        (10, 99),
        (20, 0),
        (24, (1 << 32) - 1),
        (24, 1 << 30),
        (42, 1 << 31),
    ):
        width = 2 if offset < 20 else 4
        changed = bytearray(whole)
        changed[place + offset : place + offset + width] = value.to_bytes(width, "little")
        yield f"directory {offset} = {value}", bytes(changed)
    for mebibytes in (64,) if quick else (64, 900):
        yield f"a bomb of {mebibytes} MiB", _bomb(mebibytes << 20, y)


def _twice(members: list[tuple[str, bytes]]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in members:
            archive.writestr(zipfile.ZipInfo(name), content)
        archive.filelist[1].filename = archive.filelist[0].filename
    return out.getvalue()


def _bomb(size: int, y: tuple[str, bytes]) -> bytes:
    """x of that many zero bytes, in a thousandth of it."""
    header = npy(_GOOD.replace("(4, 3)", f"(4, {size // 16})"), b"")
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    checksum, parts = zlib.crc32(header), [packer.compress(header)]
    zeros = bytes(1 << 20)
    for _ in range(size >> 20):
        checksum = zlib.crc32(zeros, checksum)
        parts.append(packer.compress(zeros))
    packed = b"".join([*parts, packer.flush()])
    length = size + len(header)
    sizes = struct.pack("<III", checksum, len(packed), length)
    name = b"x.npy"
    local = b"PK\x03\x04" + struct.pack("<HHHHH", 20, 0, 8, 0, 33) + sizes
    local += struct.pack("<HH", len(name), 0) + name + packed
    other = npz_of([y], zipfile.ZIP_STORED)
    directory = other.index(b"PK\x01\x02")
    end = other.index(b"PK\x05\x06")
    second = bytearray(other[directory:end])
    second[42:46] = struct.pack("<I", len(local))
    first = b"PK\x01\x02" + struct.pack("<HHHHHH", 20, 20, 0, 8, 0, 33) + sizes
    first += struct.pack("<HHHHHII", len(name), 0, 0, 0, 0, 0, 0) + name
    both = first + bytes(second)
    start = len(local) + directory
    last = b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 2, 2, len(both), start, 0)
    return local + other[:directory] + both + last


def table_forged(content: bytes, separator: bytes) -> Iterator[tuple[str, bytes]]:
    first, _, rest = content.partition(b"\n")
    rows = rest * 20
    yield "NUL", content.replace(separator, b"\0", 1)
    yield "a line of 3 MiB", content + b"1" * (3 << 20) + b"\n" + rest
    yield "one quoted field without an end", content + b'"' + b"x\n" * 400_000
    yield "100,000 columns", separator.join(b"c%d" % n for n in range(100_000)) + b"\n" + rest
    yield "a wide row", content + separator.join([b"1"] * 200_000) + b"\n"
    yield "only separators", separator * 400_000
    yield "only newlines", b"\n" * 400_000
    yield "carriage returns", content.replace(b"\n", b"\r")
    yield "quotes", content + b'"' * 100_001 + b"\n"
    for value in (
        b"1e999",
        b"-inf",
        b"nan",
        b"1" * 5000,
        b"0x1p3",
        b"1_000",
        "١٢".encode(),
        b"1e-999",
    ):
        yield f"a cell {value[:8]!r}", rows.replace(b"2", value) if first else rows
        yield f"every cell {value[:8]!r}", first + b"\n" + separator.join([value] * 3) + b"\n"
    yield (
        "200,000 classes",
        first
        + b"\n"
        + b"".join(separator.join([b"1", b"2", b"c%d" % n]) + b"\n" for n in range(100_000)),
    )
    for mark in ("utf-8-sig", "utf-16", "utf-16-le", "utf-32", "cp037"):
        yield mark, content.decode("utf-8", "replace").encode(mark, "replace")
    yield "control characters", content.replace(b"1", b"\x1b[2J\x07\x00")
    yield "direction marks", content.replace(b"1", "‮⁦1".encode())
    yield "a long header", b"x" * 900_000 + separator + content


def jsonl_forged(content: bytes) -> Iterator[tuple[str, bytes]]:
    line = content.split(b"\n")[0].decode()
    for name, text in json_texts(line):
        yield name, text
        yield f"{name}, between others", content * 20 + text + b"\n" + content
    for value in (
        "null",
        "1e999",
        "[[[]]]",
        '"' + "x" * 2_000_000 + '"',
        '{"a": 1}',
        "true",
        '"\\u0000"',
    ):
        yield f"text {value[:8]}", f'{{"text": {value}, "label": 1}}\n'.encode() * 4
        yield f"label {value[:8]}", f'{{"text": "a", "label": {value}}}\n'.encode() * 4
    messages = '{"messages": [{"role": "user", "content": "a"}, {"role": "x", "content": null}]}\n'
    yield "messages", messages.encode() * 4


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, rows: bytes, depth: int = 1, more: bytes = b"") -> bytes:
    head = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0))
    body = _chunk(b"IDAT", rows)
    return b"\x89PNG\r\n\x1a\n" + head + more + body + _chunk(b"IEND", b"")


def image_forged(kind: str, content: bytes, quick: bool) -> Iterator[tuple[str, bytes]]:
    zeros = zlib.compress(bytes(4 << 20), 9)
    if kind == "png":
        for width, height in (
            ((1 << 31) - 1, 1),
            (60_000, 60_000),
            (8000, 8000),
            (1, 1 << 30),
            (0, 9),
        ):
            yield f"{width} x {height}", png(width, height, zeros)
        yield "a bomb in a text", png(8, 8, zeros, more=_chunk(b"zTXt", b"a\0\0" + zeros * 8))
        profile = _chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(100 << 20), 9))
        yield "a bomb in a profile", png(8, 8, zeros, more=profile)
        yield "many chunks", png(8, 8, zeros, more=_chunk(b"tEXt", b"a\0b") * 50_000)
    if kind == "gif":
        for size in (b"\xff\xff\xff\xff", b"\x00\x00\x00\x00", b"\xff\xff\x01\x00"):
            yield f"screen {size!r}", content[:6] + size + content[10:]
        place = content.index(b"\x2c", 13)
        for frame in (b"\xff\xff" * 4, b"\0\0\0\0\xff\xff\xff\xff", b"\xff\xff\xff\xff\1\0\1\0"):
            yield f"frame {frame!r}", content[: place + 1] + frame + content[place + 9 :]
    if kind == "bmp":
        for at, value in (
            (18, 1 << 30),
            (22, -(1 << 30)),
            (18, -1),
            (10, 1 << 31),
            (28, 999),
            (30, 4),
        ):
            changed = content[:at] + struct.pack("<q", value)[:4] + content[at + 4 :]
            yield f"bmp {at} = {value}", changed
    if kind == "ppm":
        for head in (
            b"P6 99999999 99999999 255\n",
            b"P6 4 4 99999999999\n",
            b"P3 9 9 255\n",
            b"P6 9",
        ):
            yield f"ppm {head!r}", head + bytes(48)
        yield "a comment without an end", b"P6 #" + b"x" * 1_000_000
        yield "a number of a mebibyte", b"P3 2 2 255 " + b"9" * 1_000_000
    if kind == "webp":
        canvas = b"VP8X" + struct.pack("<I", 10) + b"\x02\0\0\0" + b"\xfe\x3f\0" * 2
        anim = b"ANIM" + struct.pack("<IIH", 6, 0, 0)
        frame = content[12:]
        body = b"\0\0\0\0\0\0" + b"\xfe\x3f\0" * 2 + b"\0\0\0\0" + frame
        anmf = b"ANMF" + struct.pack("<I", len(body)) + body
        whole = b"WEBP" + canvas + anim + anmf
        yield "animated, 16383 x 16383", b"RIFF" + struct.pack("<I", len(whole)) + whole
        whole = b"WEBP" + canvas + anim + anmf * 2000
        yield "2000 frames", b"RIFF" + struct.pack("<I", len(whole)) + whole
    if kind == "jpg":
        yield from _jpeg_forged(content, quick)
    if kind == "tif":
        yield from _tiff_forged()


def _jpeg_forged(content: bytes, quick: bool) -> Iterator[tuple[str, bytes]]:
    for marker in (b"\xff\xc0", b"\xff\xc2"):
        place = content.find(marker)
        if place >= 0:
            for height, width in ((65_535, 65_535), (0, 8), (5000, 5000), (65_535, 1)):
                size = struct.pack(">HH", height, width)
                yield f"{width} x {height}", content[: place + 5] + size + content[place + 9 :]
    from PIL import Image

    out = io.BytesIO()
    Image.new("RGB", (499, 499) if quick else (4990, 4990), (9, 90, 200)).save(
        out, "JPEG", progressive=True, quality=30
    )
    whole = out.getvalue()
    last = whole.rindex(b"\xff\xda")
    scan = whole[last:-2]
    yield "3000 scans", whole[:-2] + scan * 3000 + whole[-2:]
    yield "a comment without an end", content[:2] + b"\xff\xfe\xff\xff" * 30_000 + content[2:]


def _tiff_forged() -> Iterator[tuple[str, bytes]]:
    """Tags: width, height, bits, compression, photometric, strip offsets, samples, rows, strip sizes."""
    for width, height in ((1 << 30, 1 << 30), (1 << 20, 1), (5000, 5000), (0, 0), (4, 4)):
        for packing in (1, 5, 7, 8, 32_773, 34_925, 50_000, 3, 99):
            for length in (8, (1 << 31) - 1):
                tags = [(256, width), (257, height), (258, 8), (259, packing), (262, 1), (273, 8)]
                tags += [(277, 1), (278, height), (279, length)]
                body = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
                directory = struct.pack("<H", len(tags)) + body + bytes(4)
                data = b"II*\0" + struct.pack("<I", 16) + bytes(8) + directory
                yield f"tiff {width} x {height}, {packing}, {length} bytes", data
    loop = b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", 0) + struct.pack("<I", 8)
    yield "a directory that follows itself", loop
    counted = struct.pack("<HHHII", 1, 256, 4, (1 << 32) - 1, 8) + bytes(4)
    yield "four billion values", b"II*\0" + struct.pack("<I", 8) + counted


def wav(
    data: bytes = bytes(1600), *, tag: int = 1, channels: int = 1, rate: int = 8000, bits: int = 16,
    promised: int | None = None, before: bytes = b"",
) -> bytes:  # fmt: skip
    frame = channels * bits // 8
    second = rate * frame % (1 << 32)
    fmt = struct.pack("<HHIIHH", tag, channels, rate, second, frame % (1 << 16), bits)
    length = len(data) if promised is None else promised
    body = b"WAVE" + before + b"fmt " + struct.pack("<I", len(fmt)) + fmt
    body += b"data" + struct.pack("<I", length % (1 << 32)) + data
    return b"RIFF" + struct.pack("<I", len(body)) + body


def audio_forged(kind: str, content: bytes, quick: bool) -> Iterator[tuple[str, bytes]]:
    if kind == "wav":
        for tag in (0, 2, 3, 6, 7, 0x11, 0x31, 0x50, 0x55, 0x161, 0xFFFE, 0xFFFF):
            for bits in (0, 4, 8, 16, 24, 32, 64, 65_535):
                yield f"wav tag {tag}, {bits} bits", wav(tag=tag, bits=bits)
        for channels in (0, 2, 255, 1024, 65_535):
            yield f"{channels} channels", wav(channels=channels)
        for rate in (0, 1, 999, 768_000, (1 << 32) - 1):
            yield f"{rate} a second", wav(rate=rate)
        for promised in (0, 1599, 1601, 1 << 31, (1 << 32) - 1):
            yield f"{promised} bytes said", wav(promised=promised)
        yield "no end of chunks", wav(before=b"JUNK\0\0\0\0" * 60_000)
        yield "a chunk of 4 GiB", wav(before=b"JUNK\xff\xff\xff\xff")
        yield "RF64", b"RF64" + b"\xff" * 4 + content[8:]
        yield "infinite", wav(struct.pack("<f", float("inf")) * 400, tag=3, bits=32)
        yield "not a number", wav(struct.pack("<d", float("nan")) * 200, tag=3, bits=64)
        yield "a long silence", wav(bytes(8 << 20), bits=8, rate=1000, channels=2)
    if kind == "flac":
        for at, word in ((18, b"\xff" * 8), (18, b"\0" * 8), (10, b"\xff" * 6), (21, b"\x0f\xff")):
            yield f"flac {at} = {word!r}", content[:at] + word + content[at + len(word) :]
        yield "a picture of 16 MiB", content[:4] + b"\x06\xff\xff\xff" + bytes(8) + content[4:]
    if kind == "ogg":
        yield "many streams", content + content.replace(b"OggS", b"OggT") + content * 30
    if kind != "wav" and not quick:
        yield "a long silence", _silence(kind)


def _silence(kind: str) -> bytes:
    """Ten minutes that take almost no room."""
    import soundfile

    out = io.BytesIO()
    with soundfile.SoundFile(out, "w", 16_000, 2, format=kind.upper()) as file:
        for _ in range(599):  # its library cannot take much at a time
            file.write(np.zeros((16_000, 2), np.float32))
    return out.getvalue()


def parquet_forged(quick: bool) -> Iterator[tuple[str, bytes]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    def written(table: pa.Table, **options: object) -> bytes:
        out = io.BytesIO()
        pq.write_table(table, out, **options)
        return out.getvalue()

    rows = 200_000 if quick else 30_000_000
    same = pa.array(np.zeros(rows, np.float32))
    label = pa.array(np.zeros(rows, np.int8))
    yield "equal rows", written(pa.table({"a": same, "label": label}), compression="zstd")
    text = pa.DictionaryArray.from_arrays(np.zeros(100_000, np.int32), pa.array(["x" * 900_000]))
    yield (
        "one long text again and again",
        written(pa.table({"text": text, "label": label[:100_000]})),
    )
    yield "two columns of one name", written(pa.table([same[:4], same[:4]], names=["a", "a"]))
    wide = {f"c{n}": same[:2] for n in range(2000)}
    yield "2000 columns", written(pa.table(wide))
    nested = pa.array([[[[[1.0]]]]] * 4)
    yield "lists of lists", written(pa.table({"a": nested, "label": label[:4]}))
    odd = {"a": pa.array([float("nan"), float("inf"), None, 1e38]), "label": pa.array([1, 0, 1, 0])}
    yield "odd numbers", written(pa.table(odd))
    yield "no rows", written(pa.table({"a": same[:0], "label": label[:0]}))
    yield "bytes", written(pa.table({"text": pa.array([b"\xff\0"] * 4), "label": label[:4]}))
    yield (
        "dates",
        written(pa.table({"a": pa.array([0] * 4, pa.timestamp("ns")), "label": label[:4]})),
    )


def forged(pairs: Iterator[tuple[str, bytes]]) -> Iterator[Mutant]:
    return (Mutant(name, content) for name, content in pairs)
