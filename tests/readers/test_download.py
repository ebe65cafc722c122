"""Fetching a data set from a server of our own: whole, resumed, or refused with a reason."""

import hashlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import main
from pipelines.download import COCO_2017, VOC_2007_2012, Archive, download
from ssd.errors import InputError

ROOT = Path(__file__).parents[2]


@dataclass
class Server:
    """What a test lets the server do, and what it was asked for."""

    files: dict[str, bytes] = field(default_factory=dict)
    url: str = ""
    gives_parts: bool = True
    """Whether it heeds a Range."""
    break_after: list[int] = field(default_factory=list)
    """Bytes after which the next answers, one after the other, end early."""
    hold_after: int | None = None
    """Bytes after which an answer waits for `release`."""
    release: threading.Event = field(default_factory=threading.Event)
    starts: list[int] = field(default_factory=list)
    """The first byte of each request."""


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *arguments: Any) -> None:
            pass

        def do_GET(self) -> None:
            wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
            state.starts.append(int(wanted[1]) if wanted else 0)
            content = state.files.get(self.path.lstrip("/"))
            if content is None:
                self.send_error(404)
                return
            start = state.starts[-1] if state.gives_parts else 0
            self.send_response(206 if state.gives_parts and wanted else 200)
            if state.gives_parts and wanted:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            end = start + state.break_after.pop(0) if state.break_after else len(content)
            if state.hold_after is not None:
                self.wfile.write(content[start : state.hold_after])
                self.wfile.flush()
                state.release.wait(60)
                start = state.hold_after
            self.wfile.write(content[start:end])

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    running.daemon_threads = True
    thread = threading.Thread(target=running.serve_forever, daemon=True)
    thread.start()
    state.url = f"http://127.0.0.1:{running.server_port}"
    yield state
    state.release.set()
    running.shutdown()
    running.server_close()


def zipped(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return stream.getvalue()


def archive_of(path: str, content: bytes, *parts: str) -> Archive:
    return Archive(path, len(content), hashlib.sha1(content).hexdigest(), 2 * len(content), parts)


IMAGES = {f"val2017/{number:012}.jpg": os.urandom(30_000) for number in range(40)}
JSON = {f"annotations/{kind}_val2017.json": b"{}" * 500 for kind in ("instances", "captions")}


@pytest.fixture
def archives(server: Server) -> tuple[Archive, ...]:
    """Two, of 1.2 MB and of 2 kB, on the server."""
    server.files = {"zips/val2017.zip": zipped(IMAGES), "annotations/annotations.zip": zipped(JSON)}
    parts = {"zips/val2017.zip": "val2017", "annotations/annotations.zip": "annotations/instances_val2017.json"}
    return tuple(archive_of(path, content, parts[path]) for path, content in server.files.items())


def assert_whole(folder: Path) -> None:
    """The images, and of the annotations those that are wanted; nothing else."""
    found = {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    assert found == {**IMAGES, "annotations/instances_val2017.json": JSON["annotations/instances_val2017.json"]}
    assert {path.name for path in folder.iterdir()} == {"val2017", "annotations"}


def refused(folder: Path, url: str, archives: tuple[Archive, ...]) -> str:
    with pytest.raises(InputError) as refusal:
        download(folder, url, archives)
    assert "\n" not in str(refusal.value)
    assert not [path for path in folder.iterdir() if not path.name.startswith(".")]
    return str(refusal.value)


def test_everything_is_fetched_once(server: Server, archives: tuple[Archive, ...], tmp_path: Path) -> None:
    folder = tmp_path / "new" / "coco"
    assert download(folder, server.url, archives) == ["val2017.zip", "annotations.zip"]
    assert_whole(folder)
    assert server.starts == [0, 0]
    assert download(folder, server.url, archives) == []
    assert server.starts == [0, 0]


def test_what_is_there_is_left_alone(server: Server, archives: tuple[Archive, ...], tmp_path: Path) -> None:
    (tmp_path / "val2017").mkdir()
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "mine.json").write_text("mine")
    assert download(tmp_path, server.url, archives) == ["annotations.zip"]
    assert not list((tmp_path / "val2017").iterdir())
    assert {path.name for path in (tmp_path / "annotations").iterdir()} == {"mine.json", "instances_val2017.json"}


@pytest.mark.parametrize("gives_parts", [True, False])
def test_a_download_goes_on_where_it_was(
    gives_parts: bool, server: Server, archives: tuple[Archive, ...], tmp_path: Path
) -> None:
    server.gives_parts = gives_parts
    (tmp_path / ".val2017.zip.part").write_bytes(server.files["zips/val2017.zip"][:500_000])
    download(tmp_path, server.url, archives)
    assert_whole(tmp_path)
    assert server.starts == [500_000, 0]


def test_a_lost_connection_is_made_again(server: Server, archives: tuple[Archive, ...], tmp_path: Path) -> None:
    server.break_after = [100_000, 1, 300_000]
    download(tmp_path, server.url, archives)
    assert_whole(tmp_path)
    assert server.starts == [0, 100_000, 100_001, 400_001, 0]


def test_a_connection_lost_for_good(server: Server, archives: tuple[Archive, ...], tmp_path: Path) -> None:
    server.break_after = [100_000, 0]
    message = refused(tmp_path, server.url, archives)
    assert f"{server.url}/zips/val2017.zip" in message and "100000 bytes" in message and "run the same" in message
    download(tmp_path, server.url, archives)
    assert_whole(tmp_path)
    assert server.starts == [0, 100_000, 100_000, 0]


def test_no_server(tmp_path: Path, archives: tuple[Archive, ...]) -> None:
    assert "http://127.0.0.1:9/zips/val2017.zip" in refused(tmp_path, "http://127.0.0.1:9", archives)


KILLED = """
import sys
import tarfile
from pathlib import Path
from pipelines.download import Archive, download
download(Path(sys.argv[1]), sys.argv[2], (Archive(sys.argv[3], int(sys.argv[4]), sys.argv[5], 0, ("val2017",)),))
"""


def test_a_killed_download_goes_on(server: Server, archives: tuple[Archive, ...], tmp_path: Path) -> None:
    archive, part = archives[0], tmp_path / ".val2017.zip.part"
    server.hold_after = 700_000
    arguments = [str(tmp_path), server.url, archive.path, str(archive.size_bytes), archive.digest]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", KILLED, *arguments], env=environment) as process:
        deadline = time.monotonic() + 60
        while not (part.exists() and part.stat().st_size > 0) and time.monotonic() < deadline:
            time.sleep(0.02)
        # Another download at the same time would spoil it.
        assert "another download" in refused(tmp_path, server.url, (archive,))
        process.send_signal(signal.SIGKILL)
    present = part.stat().st_size
    assert 0 < present <= 700_000
    server.hold_after = None
    server.release.set()
    download(tmp_path, server.url, archives)
    assert_whole(tmp_path)
    assert server.starts == [0, present, 0]


def test_a_kill_while_unpacking(server: Server, archives: tuple[Archive, ...], tmp_path: Path) -> None:
    content = server.files["zips/val2017.zip"]
    (tmp_path / ".val2017.zip.part").write_bytes(content)
    (tmp_path / ".val2017.zip.unpacked" / "val2017").mkdir(parents=True)
    (tmp_path / ".val2017.zip.unpacked" / "val2017" / "half.jpg").write_bytes(b"half")
    download(tmp_path, server.url, archives)
    assert_whole(tmp_path)
    assert server.starts == [0]  # the annotations


def test_a_wrong_checksum(server: Server, archives: tuple[Archive, ...], tmp_path: Path) -> None:
    content = server.files["zips/val2017.zip"]
    server.files["zips/val2017.zip"] = content[:70_000] + bytes([content[70_000] ^ 1]) + content[70_001:]
    message = refused(tmp_path, server.url, archives)
    assert message.startswith("val2017.zip: damaged") and archives[0].digest in message
    assert not list(tmp_path.iterdir())  # so that the next attempt fetches it anew
    server.files["zips/val2017.zip"] = content
    download(tmp_path, server.url, archives)
    assert_whole(tmp_path)


def test_another_size(server: Server, archives: tuple[Archive, ...], tmp_path: Path) -> None:
    server.files["zips/val2017.zip"] += b"?"
    message = refused(tmp_path, server.url, archives)
    assert f"has {archives[0].size_bytes + 1} bytes instead of {archives[0].size_bytes}" in message


def test_not_found(server: Server, archives: tuple[Archive, ...], tmp_path: Path) -> None:
    del server.files["zips/val2017.zip"]
    message = refused(tmp_path, server.url, archives)
    assert f"{server.url}/zips/val2017.zip" in message and "404" in message and "--url" in message


def test_too_small_a_disk_is_told_before_anything_is_fetched(
    server: Server, archives: tuple[Archive, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The images need their archive and twice as much unpacked, and then only the unpacked beside the annotations.
    needed = 3 * archives[0].size_bytes
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=needed - 1))
    assert f"--data {tmp_path}: " in refused(tmp_path, server.url, archives)
    assert server.starts == []
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=needed))
    download(tmp_path, server.url, archives)
    assert_whole(tmp_path)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a disk that is always full")
def test_a_disk_that_fills_up(server: Server, archives: tuple[Archive, ...], tmp_path: Path) -> None:
    (tmp_path / ".val2017.zip.part").symlink_to("/dev/full")
    message = refused(tmp_path, server.url, archives)
    assert "No space left" in message and "make room" in message
    (tmp_path / ".val2017.zip.part").unlink()
    download(tmp_path, server.url, archives)
    assert_whole(tmp_path)


def test_an_archive_cannot_write_elsewhere(server: Server, tmp_path: Path) -> None:
    content = zipped({"val2017/../../evil.txt": b"evil", "../evil.txt": b"evil", "val2017/1.jpg": b"1"})
    server.files = {"val2017.zip": content}
    download(tmp_path / "coco", server.url, (archive_of("val2017.zip", content, "val2017"),))
    written = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert written == {"coco/val2017/1.jpg", "coco/val2017/evil.txt"}  # zipfile leaves out the dots


# --- the command ---


def test_the_command(
    server: Server,
    archives: tuple[Archive, ...],
    tmp_path: Path,
    refusal: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("pipelines.download.COCO_2017", archives)
    assert main.main(["download", "--data", str(tmp_path / "coco"), "--url", server.url]) == 0
    assert capfd.readouterr().out == f"{tmp_path / 'coco'}: fetched val2017.zip, annotations.zip\n"
    assert_whole(tmp_path / "coco")
    assert main.main(["download", "--data", str(tmp_path / "coco"), "--url", server.url]) == 0
    assert capfd.readouterr().out == f"{tmp_path / 'coco'}: COCO 2017 is there already\n"
    (tmp_path / "file").touch()
    assert "not a folder" in refusal("download", "--data", tmp_path / "file")


def test_what_is_fetched_is_what_is_trained_on(tmp_path: Path) -> None:
    """The parts lie where the default splits are looked for."""
    from pipelines.readers.splits import SplitFlags, find_both

    for part in (part for archive in COCO_2017 for part in archive.parts):
        (tmp_path / part).parent.mkdir(exist_ok=True)
        (tmp_path / part).write_text(json.dumps({})) if part.endswith(".json") else (tmp_path / part).mkdir()
    train, val = find_both(tmp_path, SplitFlags(), SplitFlags())
    assert (train.image_folder, val.image_folder) == (tmp_path / "train2017", tmp_path / "val2017")
    assert all(re.fullmatch(r"[0-9a-f]{40}", archive.digest) for archive in COCO_2017)
    assert COCO_2017[0].name == "annotations_trainval2017.zip"


def tarred(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def voc_archives(server: Server) -> tuple[tuple[Archive, ...], dict[str, bytes]]:
    """Two that share their folders, as those of 2007, and what is to be there of them."""
    folder, archives, wanted = "VOC2007", [], {}
    for split, number in (("trainval", "000005"), ("test", "000001")):
        files = {
            f"ImageSets/Main/{split}.txt": number.encode(),
            f"JPEGImages/{number}.jpg": os.urandom(3000),
            f"Annotations/{number}.xml": b"<annotation/>",
        }
        wanted |= {f"{folder}/{name}": content for name, content in files.items()}
        content = tarred({f"VOCdevkit/{folder}/{name}": each for name, each in {**files, "other.m": b"%"}.items()})
        path = f"voc2007/VOC{split}.tar"
        server.files[path] = content
        parts = tuple(f"{folder}/{part}" for part in ("Annotations", "ImageSets", "JPEGImages"))
        md5 = hashlib.md5(content).hexdigest()
        last = f"{folder}/ImageSets/Main/{split}.txt"
        archives.append(Archive(path, len(content), md5, len(content), parts, "VOCdevkit/", last))
    return tuple(archives), wanted


def test_archives_of_voc_are_put_into_one_tree(server: Server, tmp_path: Path) -> None:
    archives, wanted = voc_archives(server)
    # Killed while files were put in their places: the list, which says that all is there, is the last of them.
    early = tmp_path / "VOC2007" / "JPEGImages" / "000005.jpg"
    early.parent.mkdir(parents=True)
    early.write_bytes(wanted["VOC2007/JPEGImages/000005.jpg"])
    assert download(tmp_path, server.url, archives) == ["VOCtrainval.tar", "VOCtest.tar"]
    found = {str(file.relative_to(tmp_path)): file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    assert found == wanted
    assert download(tmp_path, server.url, archives) == []


def test_a_damaged_archive_of_voc_is_refused(server: Server, tmp_path: Path) -> None:
    archives, _ = voc_archives(server)
    server.files[archives[0].path] = server.files[archives[0].path][:-1] + b"x"
    message = refused(tmp_path, server.url, archives)
    assert message.startswith("VOCtrainval.tar: damaged, its MD5 is") and archives[0].digest in message


def test_the_archives_of_voc() -> None:
    """Sizes and MD5 sums as published, paths as its server has them."""
    assert [(each.path, each.size_bytes, each.digest) for each in VOC_2007_2012] == [
        ("voc2007/VOCtrainval_06-Nov-2007.tar", 460_032_000, "c52e279531787c972589f7e41ab4ae64"),
        ("voc2007/VOCtest_06-Nov-2007.tar", 451_020_800, "b6e924de25625d8de591ea690078ad9f"),
        ("voc2012/VOCtrainval_11-May-2012.tar", 1_999_639_040, "6cd6e144f989b92b3379bac3b3de84fd"),
    ]


def test_the_command_fetches_either(server: Server, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main.main(["download", "--dataset", "voc", "--data", str(tmp_path / "voc"), "--url", server.url]) == 2
    said = capfd.readouterr().err.replace("\n", " ")
    assert f"{server.url}/voc2007/VOCtrainval_06-Nov-2007.tar: the server says 404" in said
    for archive in VOC_2007_2012:
        file = tmp_path / "there" / archive.last
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    assert main.main(["download", "--dataset", "voc", "--data", str(tmp_path / "there")]) == 0
    assert "PASCAL VOC is there already" in capfd.readouterr().out
