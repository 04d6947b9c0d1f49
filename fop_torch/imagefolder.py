"""ImageNet as a folder of JPEGs: too large for memory, so worker processes read, decode and crop while a device trains.

Which images a step sees is a function of seed and step, and how an image is cropped of seed, epoch and image: not of
how many processes read, nor of where a run was stopped. A run goes on in the middle of an epoch by asking for that
step; nothing before it is read.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fop_torch.data import UnavailableError
from fop_torch.training import Batches, Session

#: Mean and standard deviation of ImageNet's channels, from 0 to 1: what torchvision's networks are trained with.
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
#: The side of the part that a test sees over the shorter side of the whole image (Krizhevsky et al. 2012: 224 of 256).
CENTRE = 224 / 256
#: Images of the test set that go through the network together.
TESTED = 500

#: An epoch and the place of an image in its list.
Key = tuple[int, int]
Transform = Callable[[Image.Image], Tensor]


# ---------------------------------------------------------------------------------------
# The folder


@dataclass(frozen=True, eq=False)
class Files:
    """Labelled image files.

    Attributes:
        root: The folder that they are in.
        names: Their paths in there, encoded, `[n]`: one array, which worker processes share; each would end up with a
            copy of its own of a list of strings.
        labels: int64 `[n]`.
    """

    root: Path
    names: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.names)

    def path(self, index: int) -> Path:
        """Where an image is."""
        return self.root / os.fsdecode(bytes(self.names[index]))


@dataclass(frozen=True, eq=False)
class Folder:
    """A training and a test set.

    Attributes:
        train: The files of `train/`.
        test: The files of `val/`.
        classes: The name of each label: the folders' names, sorted.
        digest: The first 16 hexadecimal digits of the sha256 over the sorted list of relative paths and file sizes. It
            tells another set, a missing or a cut-off file; not changed pixels, since it reads none: to read 150 GB
            before each run would take longer than an epoch.
    """

    train: Files
    test: Files
    classes: tuple[str, ...]
    digest: str


def find() -> Path:
    """The subfolder `imagenet` of the folder that `FOP_DATA` names.

    Raises:
        UnavailableError: If there is none with `train` and `val`; the message says what to do.
    """
    root = os.environ.get("FOP_DATA")
    folder = Path(root or "FOP_DATA") / "imagenet"
    if not root or not all((folder / part).is_dir() for part in ("train", "val")):
        raise UnavailableError(
            f"imagenet: expected {folder / 'train'} and {folder / 'val'} (FOP_DATA is {root or 'not set'}), each with "
            "a folder of JPEGs for every class, such as train/n01440764/n01440764_10026.JPEG. Remedy: get the images "
            "of ILSVRC 2012 from https://image-net.org under their terms, unpack them so, and let FOP_DATA name the "
            "folder that has the folder imagenet. The profiles smoke and laptop need none of this"
        )
    return folder


@cache
def read(root: Path) -> Folder:
    """The images of `train/<class>/` and `val/<class>/`, as torchvision's `ImageFolder` lists them; none is opened.

    Raises:
        UnavailableError: If a class has no images, or the two have different classes.
    """
    (train, classes), (test, others) = (_listed(root, part) for part in ("train", "val"))
    if classes != others:
        odd = sorted(set(classes) ^ set(others))
        raise UnavailableError(
            f"{root}: train has {len(classes)} classes and val {len(others)}, and {len(odd)} are in one alone, such as "
            f"{odd[0]}; expected the same, each in a folder of its own"
        )
    found = hashlib.sha256()
    for name in sorted([*train.names, *test.names]):
        found.update(name + f" {os.stat(os.path.join(os.fsencode(root), name)).st_size}\n".encode())
    return Folder(train, test, classes, found.hexdigest()[:16])


def _listed(root: Path, part: str) -> tuple[Files, tuple[str, ...]]:
    from torchvision.datasets import ImageFolder

    try:
        found = ImageFolder(str(root / part))
    except FileNotFoundError as error:
        raise UnavailableError(f"{root / part}: expected a folder of images for every class ({error})") from error
    names = np.array([os.fsencode(os.path.relpath(path, root)) for path, _ in found.samples])
    return Files(root, names, np.array(found.targets)), tuple(found.classes)


# ---------------------------------------------------------------------------------------
# One image


def for_training(side: int) -> Transform:
    """A random part, scaled to `[3, side, side]` bytes, and mirrored half of the time (Szegedy et al. 2015)."""
    from torchvision.transforms import v2

    return v2.Compose([v2.RandomResizedCrop(side, antialias=True), v2.RandomHorizontalFlip(), v2.PILToTensor()])


def for_testing(side: int) -> Transform:
    """The centre of the image, scaled to `[3, side, side]` bytes."""
    from torchvision.transforms import v2

    return v2.Compose([v2.Resize(round(side / CENTRE), antialias=True), v2.CenterCrop(side), v2.PILToTensor()])


class Decoded(Dataset[tuple[Tensor, int]]):
    """Images and labels by epoch and place.

    Args:
        files: The images.
        transform: Makes bytes `[3, side, side]` of one; may draw from torch's generator.
        seed: Of these draws, together with epoch and place.
    """

    def __init__(self, files: Files, transform: Transform, seed: int) -> None:
        self._files, self._transform, self._seed = files, transform, seed

    def __getitem__(self, key: Key) -> tuple[Tensor, int]:
        """Pixels and label.

        Raises:
            OSError: If the file can't be read; the message names it.
        """
        epoch, index = key
        path = self._files.path(index)
        try:
            with Image.open(path) as opened:
                image = opened.convert("RGB")
        except OSError as error:
            raise OSError(f"{path}: not an image that can be read ({error}); put it there again") from error
        state = np.random.SeedSequence((self._seed, epoch, index)).generate_state(1, np.uint64)
        # Without workers this is the run's own process: its generator goes on as if nothing had been drawn.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(int(state[0]))
            return self._transform(image), int(self._files.labels[index])


# ---------------------------------------------------------------------------------------
# Batches


def processors() -> int:
    """Processors for each of the run's processes on this machine, at least 1."""
    mine = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, mine // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def load(
    images: Decoded, batches: Iterable[list[Key]], device: torch.device, workers: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Pixels `[n, 3, side, side]`, as bytes, and labels `[n]` of one batch after the other.

    Args:
        images: By key.
        batches: The keys of each.
        device: Where they go next: for a GPU they are put into memory from which it copies by itself.
        workers: Processes that decode; none: this one does.
    """
    # Of its own generator the loader draws a seed for its workers, which nothing here uses.
    return iter(
        DataLoader(
            images, batch_sampler=batches, num_workers=workers, pin_memory=device.type == "cuda",
            generator=torch.Generator(),
        )
    )  # fmt: skip


def feed(
    folder: Folder, session: Session, *, side: int, batch: int, iterations: int, seed: int, workers: int | None = None
) -> tuple[Callable[[int], tuple[Tensor, Tensor]], Callable[[], Iterator[tuple[Tensor, Tensor]]]]:
    """What `fop_torch.studies.vision.train` asks for, from a folder.

    Of a training batch each process of the run reads its share. Of the test set too, and then gives it to the others:
    all see all of it, in its order, and measure the same.

    Args:
        folder: The images.
        session: The run; what the images are goes into its facts.
        side: Pixels of a side of what the network sees.
        batch: Images a step.
        iterations: Steps of the run.
        seed: Of order and crops.
        workers: Processes that decode, for each process of the run; one a processor when left out.

    Returns:
        The batch of step 0, 1, 2, …, and what goes once through the test set.
    """
    session.facts["data"] = {"name": "imagenet", "source": "FOP_DATA", "digest": folder.digest}
    device, fabric = session.device, session.fabric
    workers = processors() if workers is None else workers
    order = Batches(len(folder.train), batch, seed)
    training = Decoded(folder.train, for_training(side), seed)
    testing = Decoded(folder.test, for_testing(side), seed)
    mean, deviation = (255 * torch.tensor(each, device=device).view(3, 1, 1) for each in (MEAN, DEVIATION))

    def numbers(pixels: Tensor) -> Tensor:
        return ((pixels.float() - mean) / deviation).contiguous(memory_format=torch.channels_last)

    def everybody_s(some: Tensor) -> Tensor:
        return torch.as_tensor(fabric.all_gather(some)).view(-1, *some.shape[1:])

    def keys(step: int) -> list[Key]:
        return [(step // order.per_epoch, index) for index in session.share(order[step]).tolist()]

    read_ahead = _Ahead(lambda step: load(training, map(keys, range(step, iterations)), device, workers))

    def batch_of(step: int) -> tuple[Tensor, Tensor]:
        pixels, labels = (each.to(device, non_blocking=True) for each in read_ahead[step])
        return numbers(pixels), labels

    def tested() -> Iterator[tuple[Tensor, Tensor]]:
        parts = torch.arange(len(folder.test)).split(TESTED)
        shares = [[(0, index) for index in session.share(_filled(part, fabric.world_size)).tolist()] for part in parts]
        for part, found in zip(parts, load(testing, shares, device, workers), strict=True):
            pixels, labels = (everybody_s(each.to(device, non_blocking=True))[: len(part)] for each in found)
            yield numbers(pixels), labels

    return batch_of, tested


class _Ahead:
    """Batches by step: those asked for one after the other come from one iterator, which may have begun on the next.

    Args:
        start: Batches from a step on.
    """

    def __init__(self, start: Callable[[int], Iterator[tuple[Tensor, Tensor]]]) -> None:
        self._start, self._next = start, -1

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        if step != self._next:
            self._batches = self._start(step)
        self._next = step + 1
        return next(self._batches)


def _filled(indices: Tensor, processes: int) -> Tensor:
    """The indices, and the last again until the processes divide their number."""
    return torch.cat([indices, indices[-1:].expand(-len(indices) % processes)])
