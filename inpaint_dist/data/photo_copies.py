"""Photos that are there twice, byte for byte."""

from collections import Counter
from collections.abc import Iterable, Sequence
from hashlib import sha256

from inpaint_dist.data.photo_sources import PhotoReader
from inpaint_dist.data.photos import PhotoError
from inpaint_dist.data.progress import Progress
from inpaint_dist.data.source_table import Sources


def without_copies(
    groups: Sequence[tuple[Sources, Iterable[int]]],
) -> tuple[list[list[int]], list[tuple[str, str]]]:
    """Photos less those whose bytes came before; only files of one size are read.

    Args:
        groups: sets of photos, each with the numbers of those that count; what comes first stays.

    Returns:
        For each set the numbers that stay; and of each that does not its name, and the reason.
    """
    numbered = [(sources, list(numbers)) for sources, numbers in groups]
    counts = Counter(sources.size(number) for sources, numbers in numbered for number in numbers)
    first: dict[bytes, str] = {}
    copies: list[tuple[str, str]] = []
    stay: list[list[int]] = [[] for _ in numbered]
    alike = sum(count for count in counts.values() if count > 1)
    with PhotoReader() as reader, Progress("duplicates", alike, "photo") as progress:
        for (sources, numbers), staying in zip(numbered, stay, strict=True):
            for number in numbers:
                if counts[sources.size(number)] == 1:
                    staying.append(number)
                    continue
                progress.update(progress.done + 1)
                source = sources[number]
                try:
                    digest = sha256(reader.read(source)).digest()
                except PhotoError:  # whoever packs it says so
                    staying.append(number)
                    continue
                if digest in first:
                    copies.append((source.name, f"the same bytes as {first[digest]}"))
                else:
                    first[digest] = source.name
                    staying.append(number)
    return stay, copies
