"""Which masks belong to which photo, by their names."""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence

from inpaint_dist.data.photo_sources import Source, stem

_MASK_SUFFIX = re.compile(r"[_-]mask[_-]?\d*$", re.IGNORECASE)


def pair_by_name(photos: Sequence[Source], masks: Sequence[Source]) -> list[tuple[int, ...]]:
    """For each photo the numbers of its masks: those of its own name first, then `NAME_mask`, `NAME_mask001`, ….

    Names are paths without extension, relative to the places that were given. Where the masks lie in other folders than
    the photos, the file names alone decide, as long as no two photos share one.
    """
    by_path, by_file = _by_name(masks, whole=True), _by_name(masks, whole=False)
    shared = Counter(stem(photo.path).rpartition("/")[2] for photo in photos)
    pairs: list[tuple[int, ...]] = []
    for photo in photos:
        path = stem(photo.path)
        file = path.rpartition("/")[2]
        pairs.append(tuple(by_path.get(path) or (by_file.get(file, ()) if shared[file] == 1 else ())))
    return pairs


def _by_name(masks: Sequence[Source], *, whole: bool) -> dict[str, list[int]]:
    exact: dict[str, list[int]] = defaultdict(list)
    suffixed: dict[str, list[int]] = defaultdict(list)
    for number in sorted(range(len(masks)), key=lambda number: masks[number].path):
        name = stem(masks[number].path)
        name = name if whole else name.rpartition("/")[2]
        exact[name].append(number)
        plain = _MASK_SUFFIX.sub("", name)
        if plain != name:
            suffixed[plain].append(number)
    return {name: exact.get(name, []) + suffixed.get(name, []) for name in {*exact, *suffixed}}
