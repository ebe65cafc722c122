"""The splits of a data folder: where they are, and which to train on and to judge by where nobody says.

A name that is passed is looked for where COCO and VOC themselves have it, and only then among all that the folder
holds, in whatever layout (`readers.layouts`).
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from pipelines.annotations import HELD_OUT_SHARE, Annotations
from pipelines.readers.layouts import coco, voc, yolo
from pipelines.readers.layouts.other_tools import UNPACK, tool_of, what_is_there, why_no_coco
from pipelines.readers.layouts.source import TRAIN_NAMES, VAL_NAMES, Form, Source, is_split_name
from pipelines.readers.reading import read_source
from ssd.errors import InputError
from ssd.views import BOXES, ObjectParts

_MOST_NAMED = 12
_OF_LABELS = "labels/"
"""Before the name of a split whose labels lie beside COCO's JSON of that name."""
_NO_DATA = {"__MACOSX"}


class SplitFlags(NamedTuple):
    """What a user says of one split; '' where nothing is said."""

    split: str = ""
    annotations: str = ""
    """The annotation file, a path as it is or in the data folder."""
    images: str = ""
    """The image folder, the same."""
    role: Literal["", "train", "val"] = ""
    """What the split is for, where a file that is named states several."""

    @property
    def names_one(self) -> bool:
        return bool(self.split or self.annotations)


def find_sources(data_folder: Path) -> dict[str, Source]:
    """All splits of a data folder, by name. Raises InputError where it is no folder."""
    if os.path.isfile(data_folder):
        tool = tool_of(data_folder)
        is_archive = tool is not None and tool.remedy == UNPACK
        remedy = "unpack it and pass the folder" if is_archive else "pass the folder that it lies in"
        raise InputError(f"{data_folder}: {'an archive' if is_archive else 'a file'}, not a data folder; {remedy}")
    if not os.path.isdir(data_folder):
        raise InputError(f"{data_folder}: no such data folder; pass the folder that holds the images and annotations")
    return _look_into(data_folder)[1]


def _sources_in(root: Path) -> dict[str, Source]:
    if voc.is_voc(root) and (found := voc.sources(root)):
        return found
    found = _named_by_folders(coco.sources(root))
    if found and not all(map(_is_to_judge_by, found)):
        return found
    others = voc.sources(root) or yolo.sources(root)
    if not others:
        return found or coco.sources(root, whatever_holds_them=True)
    if found and all(map(_is_to_judge_by, others)):
        return found
    # Evaluators of COCO's metrics want its JSON of the split to judge by beside labels of another form for all.
    named = {f"{_OF_LABELS}{name}" if name in found else name: source for name, source in others.items()}
    return {**found, **{name: source._replace(split=name) for name, source in named.items()}}


def find_split(data_folder: Path, flags: SplitFlags) -> Source:
    """The split of a name, or of an annotation file that is named. Raises InputError that lists what is there."""
    if flags.annotations:
        source = _of_named_file(data_folder, flags)
    else:
        source = find_named(data_folder, flags.split)
    if flags.images:
        folder = _path(data_folder, flags.images)
        if not os.path.isdir(folder):
            raise InputError(f"{folder}: no such image folder; pass --train-images and --val-images with folders")
        source = source._replace(image_folder=folder, other_image_folders=())
    return source


def find_named(data_folder: Path, split: str) -> Source:
    """split: a name, or one with :train or :val behind it for a part. Raises InputError that lists what is there."""
    if source := voc.standard_source(data_folder, split) or coco.standard_source(data_folder, split):
        return source
    if voc.names_years(split):
        root = _root_of(data_folder)
        if source := voc.source_of_years((data_folder, data_folder / "VOCdevkit", root, root.parent), split):
            return source
    found = find_sources(data_folder)
    by_name = {**{source.split: source for source in found.values()}, **found}  # also as their files call them
    if split in by_name:
        return by_name[split]
    whole, _, part = split.rpartition(":")
    if part in ("train", "val") and whole in by_name:
        return by_name[whole]._replace(part=part)
    raise InputError(f"{data_folder}: no split {split!r} is there; {_pass_names(data_folder, found)}")


def find_both(data_folder: Path, train: SplitFlags, val: SplitFlags) -> tuple[Source, Source]:
    """The splits to train on and to judge by; where no name is given, those that the names in the folder tell.

    Of a single split, a share is held out to judge by. Raises InputError where the names do not tell.
    """
    if not (train.names_one or val.names_one):
        names = TRAIN_NAMES[0], VAL_NAMES[0]
        if all(coco.standard_source(data_folder, name) for name in names):
            train, val = train._replace(split=names[0]), val._replace(split=names[1])
    if train.names_one and val.names_one:
        return find_split(data_folder, train), find_split(data_folder, val)
    # A split to judge by that is stated and not there is none. One to train on is refused when it is read.
    found = {
        name: source
        for name, source in find_sources(data_folder).items()
        if not source.lacking or name.lower() in TRAIN_NAMES
    }
    if train.names_one:
        train_source = find_split(data_folder, train)
        others = [name for name, source in found.items() if source.file != train_source.file]
        name = _first(others, VAL_NAMES)
        return (train_source, find_split(data_folder, val._replace(split=name))) if name else _parts(train_source)
    if val.names_one:
        val_source = find_split(data_folder, val)
        others = [name for name, source in found.items() if source.file != val_source.file]
        name = others[0] if len(others) == 1 else _first(others, TRAIN_NAMES)
        if not name:
            raise InputError(
                f"{data_folder}: no split to train on beside {val_source.name!r}; {_pass_names(data_folder, found)}"
            )
        return find_split(data_folder, train._replace(split=name)), val_source
    if len(found) == 1:
        (name,) = found
        _require_no_images_of_another(data_folder, name, found[name].form)
        return _parts(find_split(data_folder, train._replace(split=name)))
    train_name = _first(list(found), TRAIN_NAMES)
    others = [name for name in found if name != train_name]
    forms = {found[train_name].form} if train_name else set(Form)
    alike = {name.removeprefix(_OF_LABELS): name for name in others if found[name].form in forms}
    val_name = alike.get(_first(list(alike), VAL_NAMES)) or _first(others, VAL_NAMES)
    if not (train_name and val_name):
        missing = "to judge by" if train_name else "to train on"
        untold = f"its splits' names do not tell which one is {missing}; " if found else ""
        raise InputError(f"{data_folder}: {untold}{_pass_names(data_folder, found)}")
    return (
        find_split(data_folder, train._replace(split=train_name)),
        find_split(data_folder, val._replace(split=val_name)),
    )


def _require_no_images_of_another(data_folder: Path, only: str, form: Form) -> None:
    """Raises InputError where a folder is named as another split than the only one that was found: then that split's
    annotations lack, and nothing is to be held out."""
    root = _root_of(data_folder)
    if only.lower() not in (*TRAIN_NAMES, *VAL_NAMES):
        return
    for name in TRAIN_NAMES if only.lower() in VAL_NAMES else VAL_NAMES:
        for folder in (root / name, root / "images" / name):
            if os.path.isdir(folder) and form is not Form.COCO:
                files = "label files" if form is Form.YOLO else "XML files"
                raise InputError(
                    f"{folder}: no {files} of its images were found; add them, take the folder away, or pass {only!r} "
                    "as both splits"
                )
            if os.path.isdir(folder):
                for file in coco.files_of_split(root, name):
                    if reason := why_no_coco(file):
                        raise InputError(f"{file}: {reason}")
                raise InputError(
                    f"{root / 'annotations' / f'instances_{name}.json'}: no such annotation file, but {folder} is; "
                    f"put it there, name it by a flag, or pass {only!r} as both splits"
                )


def held_out_text(source: Source) -> str:
    """What to say of a split that is a part of what there is, or ''."""
    if not source.part:
        return ""
    flag = "--train-split" if source.part == "train" else "--val-split"
    part = "held out to judge by" if source.part == "val" else "held out to judge by, the others train"
    return (
        f"{source.file}: no other split is there to judge by, so {HELD_OUT_SHARE:.0%} of the images of "
        f"{source.split!r}, drawn by their names, are {part} ({flag} {source.split} takes all)"
    )


def read_annotations(data_folder: Path, split: str, parts: ObjectParts = BOXES) -> Annotations:
    """Reads and checks one split; every image exists, every number is in range.

    Raises InputError, one line that names the file, the entry and the remedy, for what cannot be mended.
    """
    return read_source(find_named(data_folder, split), parts)


def _pass_names(data_folder: Path, found: dict[str, Source]) -> str:
    if not found:
        files, remedy = what_is_there(_root_of(data_folder))
        return f"no annotations were found: no COCO JSON, no VOC XML and no YOLO labels, but {files}; {remedy}"
    shown = [f"{name!r} ({source.form}, {_short(source)})" for name, source in list(found.items())[:_MOST_NAMED]]
    more = f" and {len(found) - len(shown)} more" if len(found) > len(shown) else ""
    return f"pass --train-split and --val-split with one of {', '.join(shown)}{more}"


def _short(source: Source) -> str:
    """The last two parts of the path of what the split is read from, and for a folder of XML files what they are."""
    return "/".join([*source.file.parts[-2:], *(["*.xml"] if source.file == source.label_folder else [])])


def _of_named_file(data_folder: Path, flags: SplitFlags) -> Source:
    file = _path(data_folder, flags.annotations)
    if not file.exists():
        raise InputError(f"{file}: no such annotation file; pass --train-annotations and --val-annotations with files")
    for name, source in find_sources(data_folder).items():
        places = () if source.lacking else (source.file, source.label_folder or source.file)
        if os.path.realpath(file) in map(os.path.realpath, places):
            return source._replace(split=flags.split or name)
    if not (file.is_file() and file.suffix.lower() == ".json"):
        return _of_list_or_yaml(data_folder, file, flags)
    beside = file.parent if data_folder not in file.parents else data_folder
    return coco.source_of_file(beside, file, flags.split or coco.split_of(beside, file))


def _of_list_or_yaml(data_folder: Path, file: Path, flags: SplitFlags) -> Source:
    root = _root_of(data_folder)
    found = (voc.sources_of_list(root, file) or yolo.sources_of_file(root, file)) if file.is_file() else {}
    (name,) = found if len(found) == 1 else [flags.split]
    if source := found.get(name or _first(list(found), VAL_NAMES if flags.role == "val" else TRAIN_NAMES)):
        return source._replace(split=flags.split or source.split)
    if found:
        raise InputError(f"{file}: {_pass_names(data_folder, found)}")
    raise InputError(
        f"{file}: neither COCO's JSON, nor a list of images, data.yaml or split of {data_folder}; pass such a file"
    )


def _path(data_folder: Path, text: str) -> Path:
    inside = data_folder / text
    return inside if inside.exists() or not Path(text).exists() else Path(text)


def _first(splits: Sequence[str], names: Sequence[str]) -> str:
    """The split that has the first of the names, in whatever case; '' for none."""
    by_name = {split.lower(): split for split in splits}
    return next((by_name[name] for name in names if name in by_name), "")


def _named_by_folders(found: dict[str, Source]) -> dict[str, Source]:
    """Splits whose folders alone say what they are for are called as these: 'train/export' becomes 'train'. Not where
    any name says it too, nor where a folder has several splits: then nobody knows which one is meant."""
    folders = {name: name.rpartition("/")[0] for name in found}
    telling = [folder.lower() for folder in folders.values() if is_split_name(folder)]
    if any(is_split_name(name.rpartition("/")[2]) for name in found) or len(set(telling)) < len(telling):
        return found
    return {folders[name] if is_split_name(folders[name]) else name: source for name, source in found.items()}


def _parts(source: Source) -> tuple[Source, Source]:
    return source._replace(part="train"), source._replace(part="val")


def _root_of(data_folder: Path) -> Path:
    """The folder that is the data set: the one that was passed, or one in it, where an archive was unpacked."""
    return _look_into(data_folder)[0] if os.path.isdir(data_folder) else data_folder


def _look_into(data_folder: Path) -> tuple[Path, dict[str, Source]]:
    """`_root_of`, and its splits by name."""
    root = _behind_lone_folders(data_folder)
    found = _sources_in(root)
    if _tells_both(found):
        return root, found
    # Notes and scripts may lie beside the one folder that has it all, and that may be called anything.
    folders = _folders_in(root)
    places = [(source.file, *source.file.parents) for source in found.values()]
    folders = [folder for folder in folders if len(folders) <= _MOST_FOLDERS and all(folder in each for each in places)]
    inner = {folder: of for folder in folders if (of := _sources_in(folder))}
    if len(inner) == 1:
        ((folder, of),) = inner.items()
        if _tells_both(of) or not found:
            return folder, of
    return root, found


def _tells_both(found: dict[str, Source]) -> bool:
    return bool(_first(list(found), TRAIN_NAMES) and _first(list(found), VAL_NAMES))


def _behind_lone_folders(folder: Path) -> Path:
    """An archive often holds one folder with everything in it."""
    while True:
        try:
            entries = list(os.scandir(folder))
        except OSError:
            return folder
        inner = [entry for entry in entries if not entry.name.startswith(".") and entry.name not in _NO_DATA]
        folders = _folders_in(folder)
        is_wrapper = len(folders) == 1 and not any(_is_data(entry.name) for entry in inner if not _is_folder(entry))
        if not is_wrapper or folders[0].name.lower() in (*TRAIN_NAMES, *VAL_NAMES, *_FOLDERS_OF_A_SET):
            return folder
        folder = folders[0]


def _folders_in(folder: Path) -> list[Path]:
    """In order of the alphabet."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        return []
    return [
        folder / entry.name
        for entry in entries
        if not entry.name.startswith(".") and entry.name not in _NO_DATA and _is_folder(entry)
    ]


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:  # images are not asked: on some network disks each question takes its time
        return not entry.name.lower().endswith(_DATA_SUFFIXES) and entry.is_dir()
    except OSError:  # a loop of links
        return False


_MOST_FOLDERS = 8
"""That may be a data set beside others: a folder with more of them is one itself."""
_FOLDERS_OF_A_SET = ("annotations", "images", "labels", "data", "jpegimages", "imagesets", "obj_train_data")
_DATA_SUFFIXES = (".json", ".xml", ".yaml", ".yml", ".txt", ".jpg", ".jpeg", ".png", ".webp", ".names", ".data")


def _is_data(name: str) -> bool:
    return name.lower().endswith(_DATA_SUFFIXES) and not name.lower().startswith(("readme", "license"))


def _is_to_judge_by(split: str) -> bool:
    return split.lower() in VAL_NAMES
