"""Cuts a corpus of web-sized JPEGs out of real photos: about 0.7 megapixels, of mixed shapes.

Every picture is decided by its number alone, so that a corpus begins with every smaller one of the
same photos.

    python -m benchmarks.corpus [--count 4504] [--photos FOLDER]

Without FOLDER, photos are those of three of Debian's packages where apt-get and dpkg can bring
them, else scikit-image's. Keeps all in benchmarks/.cache/, makes nothing twice, and prints the
folder.
"""

from __future__ import annotations

import argparse
import random
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from hashlib import blake2b
from importlib.util import find_spec
from pathlib import Path

from PIL import Image

CACHE = Path(__file__).parent / ".cache"
PACKAGES = ("mate-backgrounds", "gnome-backgrounds", "plasma-workspace-wallpapers")
SUFFIXES = (".jpg", ".png", ".webp")
SEED = 7
ASPECTS = (1, 4 / 3, 3 / 4, 16 / 9, 9 / 16, 3 / 2, 2 / 3, 2.2)
MEGAPIXELS = (0.12, 0.25, 0.5, 0.8, 1.2, 2.0)
# The smallest square has this side: a photo that holds it can be cut.
LEAST_SIDE = int((MEGAPIXELS[0] * 1e6) ** 0.5)


@dataclass(frozen=True, kw_only=True)
class Cut:
    """One picture of the corpus: which part of its photo, scaled to which size, saved how."""

    number: int
    box: tuple[int, int, int, int]
    size: tuple[int, int]
    quality: int
    subsampling: int


def main() -> None:
    """Makes the corpus, unless it is there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=4504)
    parser.add_argument("--photos", type=Path)
    arguments = parser.parse_args()
    print(make_corpus(arguments.count, arguments.photos))


def make_corpus(count: int, folder: Path | None = None) -> Path:
    """Returns the folder of the corpus of `count` JPEGs, which is made if it is not there."""
    folder = (find_photos() if folder is None else folder).resolve()
    photos = sorted(usable_photos(folder))
    if not photos:
        raise SystemExit(f"{folder}: no JPEG, PNG or WebP of {LEAST_SIDE} pixels a side or more")
    names = "\n".join(f"{path.relative_to(folder)} {size}" for path, size in photos)
    corpus = CACHE / f"jpegs-{count}-{blake2b(names.encode(), digest_size=4).hexdigest()}"
    if not corpus.exists():
        begun = corpus.with_suffix(".begun")
        shutil.rmtree(begun, ignore_errors=True)
        begun.mkdir(parents=True)
        cut_all(photos, count, begun)
        begun.rename(corpus)
    return corpus


def usable_photos(folder: Path) -> Iterator[tuple[Path, tuple[int, int]]]:
    """Photos with their widths and heights, of headers alone; links would be some of them twice."""
    Image.MAX_IMAGE_PIXELS = None
    for path in folder.rglob("*"):
        if path.suffix.lower() in SUFFIXES and path.is_file() and not path.is_symlink():
            with Image.open(path) as photo:
                if min(photo.size) >= LEAST_SIDE:
                    yield path, photo.size


def cut_all(photos: Sequence[tuple[Path, tuple[int, int]]], count: int, corpus: Path) -> None:
    """Cuts all pictures, each photo's together, so that it is decoded once."""
    cuts: dict[Path, list[Cut]] = defaultdict(list)
    for number in range(count):
        path, cut = choose(photos, number)
        cuts[path].append(cut)
    # The largest first, so that no process is left with one of them at the end.
    jobs = sorted(cuts, key=lambda path: path.stat().st_size, reverse=True)
    with ProcessPoolExecutor() as pool:
        for _ in pool.map(cut_photo, jobs, [cuts[path] for path in jobs], [corpus] * len(jobs)):
            pass


def choose(photos: Sequence[tuple[Path, tuple[int, int]]], number: int) -> tuple[Path, Cut]:
    """The photo that a picture is cut from, and how: at random until it fits."""
    rng = random.Random(f"{SEED} {number}")
    while True:
        path, (photo_width, photo_height) = rng.choice(photos)
        aspect = rng.choice(ASPECTS)
        height = int((rng.choice(MEGAPIXELS) * 1e6 / aspect) ** 0.5)
        width = int(height * aspect)
        if width <= photo_width and height <= photo_height:
            break
    scale = rng.uniform(max(width / photo_width, height / photo_height), 1.0)
    taken_width = min(int(width / scale), photo_width)
    taken_height = min(int(height / scale), photo_height)
    left = rng.randint(0, photo_width - taken_width)
    top = rng.randint(0, photo_height - taken_height)
    return path, Cut(
        number=number,
        box=(left, top, left + taken_width, top + taken_height),
        size=(width, height),
        quality=rng.choice((75, 85, 90)),
        subsampling=rng.choice((0, 2)),
    )


def cut_photo(path: Path, cuts: list[Cut], corpus: Path) -> None:
    """Writes one photo's pictures."""
    Image.MAX_IMAGE_PIXELS = None
    with Image.open(path) as photo:
        pixels = photo.convert("RGB")
    for cut in cuts:
        picture = pixels.resize(cut.size, Image.Resampling.LANCZOS, cut.box, reducing_gap=2.0)
        file = corpus / f"{cut.number:06d}.jpg"
        picture.save(file, quality=cut.quality, subsampling=cut.subsampling)


def find_photos() -> Path:
    """The folder of Debian's photos, which are fetched once, or of scikit-image's."""
    photos = CACHE / "debian"
    if not photos.exists():
        try:
            fetch_packages(photos)
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"scikit-image's photos, without Debian's: {error}", file=sys.stderr)
            spec = find_spec("skimage")
            assert spec is not None and spec.origin is not None
            return Path(spec.origin).parent / "data"
    return photos


def fetch_packages(photos: Path) -> None:
    """Downloads and unpacks the packages; nothing is installed."""
    begun = photos.with_suffix(".begun")
    shutil.rmtree(begun, ignore_errors=True)
    begun.mkdir(parents=True)
    subprocess.run(["apt-get", "--quiet", "download", *PACKAGES], cwd=begun, check=True, stdout=2)
    for package in sorted(begun.glob("*.deb")):
        subprocess.run(["dpkg", "-x", package.name, "."], cwd=begun, check=True)
        package.unlink()
    begun.rename(photos)


if __name__ == "__main__":
    main()
