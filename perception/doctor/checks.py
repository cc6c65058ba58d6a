"""From what was counted of one source to findings: pictures, boxes, label maps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np

from perception.data.formats.boxes import TURNED
from perception.data.formats.coco import BRUSH
from perception.doctor import class_checks, depth_checks
from perception.doctor.accumulators import SourceState
from perception.doctor.data_plan import Plan
from perception.doctor.findings import Finding, percent, plain
from perception.doctor.statistics import SMALL, BoxStatistics, DepthStatistics, MapStatistics
from perception.files.palettes import UNLIKE
from perception.ops.image import letterbox_frame

_HALF_LABELLED = 0.2
"""Share of pictures without annotations from which on the doctor asks what they are."""


def findings(state: SourceState, plan: Plan) -> list[Finding]:
    """All findings about one source alone."""
    if state.source is None:
        return state.findings
    found = [*state.findings, *state.troubles.findings(state.where, state.looked)]
    found += [*_problems(state), *_half_labelled(state), *_pictures(state), *_shapes(state, plan)]
    for task, statistics in state.tasks.items():
        if isinstance(statistics, BoxStatistics):
            found += _boxes(state, plan, task, statistics)
        elif isinstance(statistics, MapStatistics):
            found += _maps(state, plan, task, statistics)
            found += [*class_checks.findings(state, plan, task), *_label_ids(state, task)]
        elif isinstance(statistics, DepthStatistics):
            found += depth_checks.findings(state, plan, task, statistics)
    return found


def _problems(state: SourceState) -> Iterator[Finding]:
    """What the readers skipped or repaired when they were opened."""
    assert state.source is not None
    boxes = sum(int(s.boxes.sum()) for s in state.tasks.values() if isinstance(s, BoxStatistics))
    for kind, count in state.source.problems.items():
        share = count / max(1, count + boxes)
        what = f"{plain(kind, 120).capitalize()}: {count:,}."
        if "missing" in kind:
            mend = "Restore the files, or take their records out of the annotations."
            yield Finding("error", "missing_picture", state.where, what, mend, count, tuple(state.said[:5]))
        elif "box" in kind and share > 0.3 and count >= 10 and len(state.chosen) == state.pictures:
            what += f" That is {percent(share, 1)} of the boxes: probably they are in another form than this format's."
            mend = "Corners where width and height are meant, or the other way round? Pixels of another size?"
            yield Finding("error", "misread_boxes", state.where, what, mend, count)
        elif kind == TURNED:
            what = f"{what} It is looser than the thing in it."
            yield Finding("note", "turned_boxes", state.where, what, "", count)
        elif kind == BRUSH:
            what += f" That is {percent(share, 1)} of the annotations: neither trained nor counted as objects."
            mend = "Did CVAT's brush paint single objects here? Then give this reader crowds: objects."
            yield Finding("warning", "brushed_objects", state.where, what, mend, count)
        elif kind == UNLIKE:
            what = f"{what} The index is read, not the colour: does it stand for another class in each?"
            mend = "If the colours are the classes, give label_maps their list: colours: {name: [R, G, B]}."
            yield Finding("warning", "unlike_palettes", state.where, what, mend, count)
        elif "stand for nothing" in kind:
            yield Finding("note", "idle_categories", state.where, what, "", count)
        else:
            yield Finding("warning", "reader_problems", state.where, what, _mend_of(kind), count)


def _half_labelled(state: SourceState) -> Iterator[Finding]:
    """Pictures that the label files know and say nothing of, many enough to ask what that means."""
    assert state.source is not None
    for reader in state.source.readers:
        count = getattr(reader, "unannotated", 0)
        total = len(reader.images)
        if count > 2 and count >= _HALF_LABELLED * total:
            what = f"{count:,} of {total:,} pictures have no annotation ({percent(count, total)}): background, or not "
            what += "labelled yet? They are trained as background."
            mend = "If nobody has, give this reader unlabelled: skip; if they show nothing, unlabelled: empty."
            yield Finding("warning", "half_labelled", state.where, what, mend, count)


def _mend_of(kind: str) -> str:
    if "left out" in kind:
        return "Label them, or take them as pictures that show nothing: unlabelled: empty."
    if "skipped" in kind or "clipped" in kind:
        return "Look at some of them: the labels and the pictures may not belong together."
    if "without" in kind:
        return "They are not used. Complete them, or correct the folders and the suffix."
    return "Look whether this is meant."


def _pictures(state: SourceState) -> Iterator[Finding]:
    if state.given_up:
        rest = len(state.chosen) - state.looked
        what = f"After so many failures, {rest:,} pictures were not examined any more."
        mend = "Mend what stops the reading first; then run the doctor again."
        yield Finding("error", "given_up", state.where, what, mend, rest)
    if state.beside:
        what = f"{state.beside:,} picture files lie beside those of this source and are in no source of the recipe."
        yield Finding("note", "unlisted_pictures", state.where, what, "", state.beside)
    turned = state.traits.get("turned by EXIF", 0)
    if turned:
        what = f"{turned:,} of {state.looked:,} pictures carry an EXIF rotation; they are read as viewers show them."
        mend = "Look at the samples: boxes and maps must be for the upright picture, too."
        yield Finding("warning", "turned_pictures", state.where, what, mend, turned)
    for trait, count in (state.traits - Counter({"turned by EXIF": turned})).items():
        how = {"gray": "gray; they are read as RGB", "16 bit": "of 16 bit; they are rescaled to 8"}
        said = how.get(trait, f"{plain(trait, 60)}: a wrong extension; they are read by their content")
        what = f"{count:,} of {state.looked:,} pictures are {said}."
        yield Finding("note", "unusual_pictures", state.where, what, "", count)


def _shapes(state: SourceState, plan: Plan) -> Iterator[Finding]:
    """How the pictures fit into the network's input."""
    total = sum(state.sizes.values())
    if not total or not plan.size_known:
        return
    frames = [(letterbox_frame(size, plan.data.size), count) for size, count in state.sizes.items()]
    used = sum(f.place[2] * f.place[3] * n for f, n in frames) / (total * plan.data.size[0] * plan.data.size[1])
    larger = sum(max(f.scale) * n for f, n in frames) / total
    height, width = state.sizes.most_common(1)[0][0]
    room = f"data.size {list(plan.data.size)} (height, width)"
    tiny = sum(count for size, count in state.sizes.items() if min(size) < 32)
    if tiny:
        what = f"{tiny:,} pictures are under 32 pixels wide or high."
        yield Finding("warning", "tiny_pictures", state.where, what, "Look whether they are pictures at all.", tiny)
    if used < 0.6:
        what = f"Only {percent(used, 1)} of the network's input is picture, the rest padding: {width} x {height} is "
        what += f"not the shape of {room}."
        mend = "Choose a data.size of the pictures' shape; its order is height, width."
        yield Finding("warning", "wasted_input", state.where, what, mend)
    if larger > 2:
        what = f"The pictures ({width} x {height}) are enlarged {larger:.1f} times to {room}."
        mend = "A smaller data.size shows the network as much, and is faster."
        yield Finding("warning", "enlarged_pictures", state.where, what, mend)


def _boxes(state: SourceState, plan: Plan, task: str, found: BoxStatistics) -> Iterator[Finding]:
    count = int(found.boxes.sum())
    if not count:
        what = f"None of the {found.pictures:,} pictures labelled for '{task}' has a box."
        mend = "Are these the right annotations, and the right rename?"
        yield Finding("warning", "no_boxes", state.where, what, mend, found.pictures)
    elif found.most_corner <= 1.5:
        what = f"All {count:,} boxes of '{task}' lie within {found.most_corner:.2g} pixels of the corner: they are "
        what += "fractions of the picture's size, not pixels."
        mend = "Multiply them by the pictures' width and height."
        yield Finding("error", "normalised_boxes", state.where, what, mend, count)
    else:
        yield from _odd_boxes(state, task, found, count)
        yield from _small_boxes(state, plan, task, found, count)


def _odd_boxes(state: SourceState, task: str, found: BoxStatistics, count: int) -> Iterator[Finding]:
    asked = any(True for _ in _half_labelled(state))
    for kind, number, total, least, what, mend in (
        ("mostly_empty", found.empty, found.pictures, 0.8, "pictures have no box", "Are boxes missing?"),
        ("whole_picture_boxes", found.whole, count, 0.1, "boxes cover the whole picture", "Are they of objects?"),
        ("slim_boxes", found.slim, count, 0.05, "boxes are over 20 times as long as wide", "Are x and y mixed up?"),
    ):
        if number > least * total and number > 2 and not (asked and kind == "mostly_empty"):
            text = f"{number:,} of {total:,} {what} ({percent(number, total)}, '{task}')."
            yield Finding("warning", kind, state.where, text, mend, number)


def _small_boxes(state: SourceState, plan: Plan, task: str, found: BoxStatistics, count: int) -> Iterator[Finding]:
    small = int(found.small.sum())
    if small <= 0.3 * count or not plan.size_known:
        return
    often = [k for k in np.argsort(-found.small)[:4] if found.small[k]]
    shares = [f"{plain(plan.classes[task][k], 40)} {percent(int(found.small[k]), int(found.boxes[k]))}" for k in often]
    what = f"{small:,} of {count:,} boxes of '{task}' ({percent(small, count)}) are under {SMALL:g} pixels (root of "
    what += f"the area) at the network's input of {plan.data.size[1]} x {plan.data.size[0]}: {', '.join(shares)}."
    mend = "Enlarge data.size, add a finer stride to the task, or do without these classes."
    yield Finding("warning", "small_boxes", state.where, what, mend, small)


def _maps(state: SourceState, plan: Plan, task: str, found: MapStatistics) -> Iterator[Finding]:
    present = np.flatnonzero(found.pixels)
    void = found.void / max(1, found.void + found.known)
    if (
        len(present) == 1
        and found.pixels[present[0]] == found.known
        and len(plan.classes[task]) > 1
        and found.pictures > 1
    ):
        what = f"All label maps of '{task}' hold one class only, '{plain(plan.classes[task][present[0]], 60)}'"
        what += f", and void ({percent(void, 1)})." if found.void else "."
        mend = "Is a value meant as another class? Give the reader values: {0: ..., 255: ...}."
        yield Finding("warning", "one_class_maps", state.where, what, mend, found.pictures)
    elif void > 0.5 and found.empty < found.pictures:
        what = f"{percent(void, 1)} of the pixels of '{task}' are void."
        mend = "Check the list of classes, rename and ignore; 255 is always void."
        yield Finding("warning", "mostly_void", state.where, what, mend)
    if found.changes > 200 and found.thin > 0.2 * found.changes:
        share = percent(found.thin, found.changes)
        what = f"At {share} of the borders in the label maps of '{task}' lies a pixel or two of a third class, as "
        what += "after resizing with interpolation, or JPEG."
        mend = "Make the maps again from the originals, resized by nearest neighbour and stored as PNG."
        yield Finding("warning", "interpolated_maps", state.where, what, mend)


def _label_ids(state: SourceState, task: str) -> Iterator[Finding]:
    """Files named after Cityscapes' label ids, read with a list of its training classes: some maps pass silently."""
    assert state.source is not None
    for reader in state.source.readers:
        config, names = getattr(reader, "config", None), getattr(reader, "names", None)
        suffix = str(getattr(config, "suffix", ""))
        training = isinstance(names, dict) and [names.get(k) for k in range(3)] == ["road", "sidewalk", "building"]
        if task in reader.tasks and "labelids" in suffix.lower() and training:
            what = f"The suffix {plain(suffix, 60)!r} names Cityscapes' label ids (0 to 33), but the list of classes "
            what += "begins with road, as that of the training ids does: in label ids road is 7, not 0."
            mend = "Use format: cityscapes, or files *_labelTrainIds.png."
            yield Finding("error", "label_ids", state.where, what, mend)
