"""Which map belongs to which picture: files of one name, or names that fit two patterns."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from perception.files.folders import existing_folder, files_under, list_pictures
from perception.files.maps import MAP_SUFFIXES
from perception.files.strict_json import shown
from perception.types import ConfigError, DataError

_LOSSY = (".jpg", ".jpeg")

Key = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Names:
    """How a reader's config names what belongs together.

    images, maps: folders, relative to the data root
    suffix:       of a map's stem after that of its picture
    image, map:   patterns instead: the texts that "*" stands for are those of the pair. A pattern without "/" is of the
                  file's name in any folder, "*" stands for no "/". Where all that are given end in "*", names count
                  without their extensions
    key:          what the recipe calls ``map``
    what:         one map in words, for messages
    """

    images: str
    maps: str
    suffix: str
    image: str | None
    map: str | None
    key: str
    what: str

    def check(self, where: str) -> None:
        """Raise ConfigError where the patterns cannot make pairs."""
        for key, pattern in (("image", self.image), (self.key, self.map)):
            if pattern is not None and ("*" not in pattern or "**" in pattern or pattern.startswith("/")):
                raise ConfigError(
                    f"{where}: {key} is {pattern!r}. Expected the names with '*' for what differs between pictures, "
                    "for example '*_sat.jpg'."
                )
        stars = {pattern.count("*") for pattern in (self.image, self.map) if pattern is not None}
        if len(stars) > 1:
            raise ConfigError(
                f"{where}: image is {self.image!r} and {self.key} {self.map!r}. Expected as many '*' in both."
            )
        if self.map is not None and self.suffix:
            raise ConfigError(f"{where}: both {self.key} and suffix say how a {self.what} is called. Keep one of them.")


def pair(root: Path, names: Names, problems: Counter[str]) -> dict[Path, Path]:
    """Picture -> its map.

    Pictures without a partner are not labelled; they and partners without a picture are counted in ``problems``. Where
    one folder holds both, a map is no picture. Links may lead anywhere under ``root``. Raises DataError where nothing
    fits together.
    """
    images = existing_folder(root, names.images, "pictures")
    maps = existing_folder(root, names.maps, f"{names.what}s")
    bare = all(pattern is None or pattern.endswith("*") for pattern in (names.image, names.map))
    of_picture, of_map = _keys(names.image, "", bare), _keys(names.map, names.suffix, bare)
    found, beside = list_pictures(images, root=root), files_under(maps, MAP_SUFFIXES, root)
    pictures = {path: key for path, name in found.items() if (key := of_picture(name)) is not None}
    files = {path: key for path, name in beside.items() if (key := of_map(name)) is not None}
    pictures, files = _apart(pictures, files, images, maps, names)
    partners, stems = _by_key(files, prefer_lossless=True), _by_key(pictures)
    pairs = {picture: partners[key] for key, picture in stems.items() if key in partners}
    if not pairs:
        raise DataError(_no_pairs(names, len(stems), images, maps, files))
    for kind, number in (
        (f"pictures without a {names.what}", len(stems) - len(pairs)),
        (f"{names.what}s without a picture", len(partners) - len(pairs)),
    ):
        if number:
            problems[kind] += number
    return pairs


def _keys(pattern: str | None, suffix: str, bare: bool) -> Callable[[str], Key | None]:
    """A function: path under a folder -> what its partner has in common with it; None where it is none.

    bare: match the pattern with names without their extensions
    """
    expression = re.compile("([^/]*)".join(map(re.escape, (pattern or "").split("*"))), re.DOTALL)
    whole = "/" in (pattern or "")

    def key(path: str) -> Key | None:
        head, _, name = path.rpartition("/")
        above = (head,) if head else ()
        if pattern is None:
            stem = name[: name.rfind(".")]
            return (*above, stem.removesuffix(suffix)) if stem.endswith(suffix) else None
        whole_name = path if whole else name
        found = expression.fullmatch(whole_name[: whole_name.rfind(".")] if bare else whole_name)
        return None if found is None else (*(() if whole else above), *found.groups())

    return key


def _apart(
    pictures: dict[Path, Key], files: dict[Path, Key], images: Path, maps: Path, names: Names
) -> tuple[dict[Path, Key], dict[Path, Key]]:
    """Pictures and maps, each file in one of the two."""
    both = pictures.keys() & files.keys()
    if not both:
        return pictures, files
    if names.map is not None or names.suffix or (images != maps and not images.is_relative_to(maps)):
        return _without(pictures, both), files
    if names.image is not None or images != maps:
        return pictures, _without(files, both)
    jpegs = {path for path in both if path.suffix.lower() in _LOSSY}  # a.jpg with a.png
    if not jpegs or jpegs == files.keys():
        raise DataError(
            f"{images} holds pictures and {names.what}s, and nothing says which is which. Give patterns, for "
            f"example image: '*_image.png', {names.key}: '*_{names.key}.png', or a suffix."
        )
    return _without(pictures, both - jpegs), _without(files, jpegs)


def _without(keys: dict[Path, Key], paths: Collection[Path]) -> dict[Path, Key]:
    return {path: key for path, key in keys.items() if path not in paths}


def _by_key(keys: dict[Path, Key], prefer_lossless: bool = False) -> dict[Key, Path]:
    """Raises DataError for two files of one key; ``prefer_lossless`` passes over a JPEG beside a map."""
    lossy = {path for path in keys if prefer_lossless and path.suffix.lower() in _LOSSY}
    found: dict[Key, Path] = {}
    for path, key in sorted(keys.items(), key=lambda item: item[0] in lossy):
        if key in found and path in lossy and found[key] not in lossy:
            continue
        if key in found:
            raise DataError(f"{path} and {found[key]} differ only in their extension. Keep one of them.")
        found[key] = path
    return dict(sorted(found.items()))


def _no_pairs(names: Names, count: int, images: Path, maps: Path, files: Collection[Path]) -> str:
    ways = (
        f"image {names.image!r}, {names.key} {names.map!r}" if names.image or names.map else f"suffix {names.suffix!r}"
    )
    others = Counter(path.suffix.lower() for path in sorted(maps.rglob("*"))[:5000] if path.is_file())
    unread = [(end, number) for end, number in others.most_common() if end and end not in MAP_SUFFIXES]
    hint = "Correct the folders or the suffix, or give patterns: image: '*_sat.jpg', "
    hint += f"{names.key}: '*_{names.key}.png'."
    if unread and not files:
        end, number = unread[0]
        hint = f"{number} files there end in {shown(end)}, which is not read: convert them to PNG or .npy."
    elif files:
        hint = f"The first is {shown(next(iter(files)).name, 120)}. {hint}"
    return (
        f"None of the {count} pictures under {images} has a {names.what} of the same name under {maps} "
        f"({len(files)} files, {ways}). {hint}"
    )
