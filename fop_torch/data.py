"""The images that the studies train on: the real ones, or a stand-in that says so.

`load` looks in this order, and an `Images` says in `source` what it found:

1. the folder that the environment variable `FOP_DATA` names;
2. the official download, kept in the cache folder (`FOP_CACHE`, else `~/.cache/fop`); only what is already there if
   `FOP_OFFLINE` is set;
3. for a caller that asks for it, a stand-in: real images that ship inside scikit-learn.

Every file is held against its checksum before it is read; one that is there but wrong is an error, never passed over.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import logging
import os
import pickle
import socket
import tarfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from http.client import HTTPException
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fop_torch.results import ResultsError, write_whole

logger = logging.getLogger(__name__)

#: The sets, by name.
NAMES = ("mnist", "cifar10", "imagenet_small")
#: sha256 of every file that is read from `FOP_DATA`, by its path in there: training images first.
SHA256 = {
    "mnist/MNIST/raw/train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "mnist/MNIST/raw/train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    "mnist/MNIST/raw/t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "mnist/MNIST/raw/t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
    "cifar10/train.parquet": "82fb29747460527fb2a9a01d4afca0e022879f9825f68139a8ead78a3c3d3a0a",
    "cifar10/test.parquet": "d55d55ef1ec36f98798c0c2d898a80b5717adca1dd611921642b432f677a4eb1",
    "imagenet_small/train.parquet": "b49152de68518dbf3a3f2291f4187230a6915fdb1754f86391a4d9949d3008ab",
    "imagenet_small/val.parquet": "d3fe513e9b37e805d4f7ddcb43853f1b6cd3b562a5cbe453bd85c77e59b2fa36",
}
#: Seconds that a server may keep us waiting for its next bytes.
PATIENCE = 5.0

Split = tuple[Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class Images:
    """Labelled images, and where they are from.

    Attributes:
        name: A member of `NAMES`.
        source: `"FOP_DATA"`, `"download"`, or `"stand-in: ..."` with the images' own name.
        digest: The first 16 hexadecimal digits of the sha256 of pixels and labels: the same images, the same digest,
            whatever files they came in.
        train: Pixels, uint8 `[n, channels, height, width]` from 0 to 255, and labels, int64 `[n]`.
        test: Likewise.
        classes: The name of each label.
    """

    name: str
    source: str
    digest: str
    train: Split
    test: Split
    classes: tuple[str, ...]

    @property
    def stand_in(self) -> bool:
        """Are these other images than the name says?"""
        return self.source.startswith("stand-in")

    def to(self, device: torch.device | str) -> Images:
        """The same images on another device."""
        (pixels, labels), (test_pixels, test_labels) = self.train, self.test
        return replace(
            self,
            train=(pixels.to(device), labels.to(device)),
            test=(test_pixels.to(device), test_labels.to(device)),
        )


class UnavailableError(FileNotFoundError):
    """The images are not to be had; the message says what was tried and the remedy."""


def load(name: str, *, stand_in: bool = False) -> Images:
    """The images called `name`, on the CPU.

    Args:
        name: A member of `NAMES`.
        stand_in: May other images take their place where these are missing? `source` then says which.

    Raises:
        ValueError: `name` is unknown, or a file's checksum is wrong.
        OSError: `FOP_DATA` names no folder, or a file of the set is missing there or can't be read.
        UnavailableError: The images are neither in `FOP_DATA` nor to be had from their source.
    """
    if name not in NAMES:
        raise ValueError(f"name: expected one of {', '.join(NAMES)}, got {name!r}")
    if folder := _given(name):
        return _read_given(name, folder)
    try:
        return _read_download(name, _download(name))
    except UnavailableError as error:
        if not stand_in:
            raise UnavailableError(
                f"{name}: no folder {name} in FOP_DATA ({os.environ.get('FOP_DATA') or 'not set'}), and no download "
                f"({error}). Remedy: let FOP_DATA name a folder that has it, or put the files into {_cache() / name}"
            ) from error
        logger.info("%s: a stand-in takes its place, since there is no download (%s)", name, error)
    return _digits() if name == "mnist" else _photographs(name)


def where(name: str) -> str:
    """What `load` would take, in words; nothing is decoded, no network is asked, and nothing is raised."""
    try:
        if name not in NAMES:
            raise ValueError(f"name: expected one of {', '.join(NAMES)}, got {name!r}")
        if folder := _given(name):
            for file in _files(name):
                _verified(folder.parent, file)
            return f"FOP_DATA, {folder}"
        if name == "imagenet_small":
            return "missing: not in FOP_DATA, and there is no download; the smoke profile takes a stand-in"
        folder, remote = _cache() / name, _remote(name)
        if _complete(folder, remote):
            return f"download, kept in {folder}"
        if os.environ.get("FOP_OFFLINE"):
            return "missing: not in FOP_DATA, and FOP_OFFLINE forbids a download; the smoke profile takes a stand-in"
        return f"download, to come from {remote[0].addresses[0]} into {folder}"
    except Exception as error:
        return f"error: {error}"


def digest(train: Split, test: Split) -> str:
    """The first 16 hexadecimal digits of the sha256 of shapes, pixels and labels."""
    found = hashlib.sha256()
    for tensor in (*train, *test):
        found.update(str((tensor.dtype, *tensor.shape)).encode())
        found.update(tensor.contiguous().numpy().data)
    return found.hexdigest()[:16]


def _cache() -> Path:
    return Path(os.environ.get("FOP_CACHE") or "~/.cache/fop").expanduser()


# The folder in FOP_DATA


def _given(name: str) -> Path | None:
    root = os.environ.get("FOP_DATA")
    if not root:
        return None
    if not Path(root).is_dir():
        raise NotADirectoryError(f"FOP_DATA: expected a folder, got {root!r}; correct it, or unset it")
    folder = Path(root) / name
    if not folder.is_dir():
        logger.warning("FOP_DATA (%s) has no folder %s: looking for a download", root, name)
        return None
    return folder


def _files(name: str) -> list[str]:
    return [file for file in SHA256 if file.startswith(f"{name}/")]


def _verified(root: Path, file: str) -> bytes:
    """What the file holds, which is what it should hold: no more than 0.1 s for 100 MB."""
    if not (root / file).is_file():
        raise FileNotFoundError(f"{root / file}: missing; copy it there again")
    held = (root / file).read_bytes()
    found = hashlib.sha256(held).hexdigest()
    if found != SHA256[file]:
        raise ValueError(
            f"{root / file}: its sha256 is {found}, expected {SHA256[file]}; damaged, or another file: copy it again"
        )
    return held


def _read_given(name: str, folder: Path) -> Images:
    held = [_verified(folder.parent, file) for file in _files(name)]
    if name == "mnist":
        return _idx(held, "FOP_DATA")

    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import __version__ as pillow

    def decode() -> tuple[Split, Split]:
        tables = [pq.read_table(pa.BufferReader(each), columns=["image.bytes", "label"]).to_pydict() for each in held]
        train, test = ((_decoded(table["bytes"]), torch.tensor(table["label"])) for table in tables)
        return train, test

    # Pillow's version belongs to the key: decoders of JPEG round differently.
    key = "-".join([name, *(SHA256[file][:16] for file in _files(name)), f"pillow{pillow}"])
    classes = json.loads(pq.read_schema(pa.BufferReader(held[0])).metadata[b"class_names"])
    return Images(name, "FOP_DATA", *_remembered(key, decode), tuple(classes))


def _idx(held: list[bytes], source: str) -> Images:
    """MNIST from the bytes of its four files; after 16 bytes of heading come the images, after 8 the labels."""
    parts = [torch.frombuffer(bytearray(gzip.decompress(each)), dtype=torch.uint8) for each in held]
    train, test = ((parts[i][16:].view(-1, 1, 28, 28), parts[i + 1][8:].long()) for i in (0, 2))
    return Images("mnist", source, digest(train, test), train, test, tuple("0123456789"))


def _decoded(encoded: list[bytes]) -> Tensor:
    """Pixels `[n, 3, height, width]` of images in any of Pillow's formats."""
    from PIL import Image

    def some(chunk: list[bytes]) -> np.ndarray:
        return np.stack([np.asarray(Image.open(io.BytesIO(each)).convert("RGB")) for each in chunk])

    chunks = [
        encoded[i : i + 1000] for i in range(0, len(encoded), 1000)
    ]  # a thread for each image costs what it gains
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return torch.from_numpy(np.concatenate(list(pool.map(some, chunks)))).permute(0, 3, 1, 2).contiguous()


def _remembered(key: str, decode: Callable[[], tuple[Split, Split]]) -> tuple[str, Split, Split]:
    """Digest and images from the cache folder, or from `decode`, and then kept there."""
    file = _cache() / "decoded" / f"{key}.npz"
    try:
        with file.open("rb") as opened, np.load(opened) as held:
            pixels, labels, test_pixels, test_labels = (torch.from_numpy(held[part]) for part in _PARTS)
            expected = str(held["digest"])
        train, test = (pixels, labels), (test_pixels, test_labels)
        found = digest(train, test)
        if found == expected:
            return found, train, test
        logger.warning("%s: its images have digest %s, expected %s: made anew", file, found, expected)
    except FileNotFoundError:
        pass
    except Exception as error:  # damaged bytes make numpy raise almost anything; whatever it is, the remedy is the same
        logger.warning("%s: can't be read (%s): made anew", file, error)
    train, test = decode()
    found = digest(train, test)
    arrays = {part: each.numpy() for part, each in zip(_PARTS, (*train, *test), strict=True)}

    def write(partial: Path) -> None:
        with partial.open("wb") as opened:
            np.savez(opened, allow_pickle=False, digest=np.array(found), **arrays)

    try:
        write_whole(file, write)
    except (ResultsError, OSError) as error:  # the images are here all the same
        logger.info("%s: not kept (%s)", file, error)
    return found, train, test


_PARTS = ("train", "train_labels", "test", "test_labels")


# The official downloads


@dataclass(frozen=True)
class _Remote:
    addresses: tuple[str, ...]
    file: str
    md5: str


def _remote(name: str) -> list[_Remote]:
    from torchvision.datasets import CIFAR10, MNIST

    if name == "mnist":
        md5 = dict(MNIST.resources)
        names = [Path(file).name for file in _files(name)]
        return [
            _Remote(tuple(f"{mirror}{each}" for mirror in MNIST.mirrors), f"MNIST/raw/{each}", md5[each])
            for each in names
        ]
    return [_Remote((CIFAR10.url,), CIFAR10.filename, CIFAR10.tgz_md5)]


def _complete(folder: Path, remote: Iterable[_Remote]) -> bool:
    from torchvision.datasets.utils import check_integrity

    return all(check_integrity(folder / each.file, each.md5) for each in remote)


def _download(name: str) -> Path:
    """The folder with the set's official files, whole; downloads those that are missing or damaged."""
    if name == "imagenet_small":
        files = ", ".join(f"{Path(file).name} with sha256 {SHA256[file]}" for file in _files(name))
        raise UnavailableError(f"this extract of Tiny-ImageNet has none; in FOP_DATA/{name} belong {files}")
    from filelock import FileLock

    folder, remote = _cache() / name, _remote(name)
    if _complete(folder, remote):
        return folder
    if os.environ.get("FOP_OFFLINE"):
        raise UnavailableError(f"FOP_OFFLINE is set, and {folder} does not have the files whole")
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(PATIENCE)  # torchvision sets none: a machine without a network would wait for minutes
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / "lock"):  # several runs start at once, and torchvision writes in place
            for each in remote:
                _fetch(folder, each)
    except UnavailableError:
        raise
    except OSError as error:
        raise UnavailableError(f"{folder}: {error}") from error
    finally:
        socket.setdefaulttimeout(before)
    return folder


def _fetch(folder: Path, remote: _Remote) -> None:
    from torchvision.datasets.utils import calculate_md5, download_url

    file, errors = folder / remote.file, []
    for address in remote.addresses:
        try:
            return download_url(address, str(file.parent), file.name, remote.md5)
        except (OSError, RuntimeError, HTTPException) as error:
            errors.append(f"{address}: {error}")
            if file.is_file():
                errors[-1] += f" What came has md5 {calculate_md5(file)}, expected {remote.md5}."
                file.unlink()
    raise UnavailableError("; ".join(errors))


def _read_download(name: str, folder: Path) -> Images:
    """The images from the official files, whose checksums have been held against torchvision's."""
    if name == "mnist":
        return _idx([(folder / each.file).read_bytes() for each in _remote(name)], "download")
    from torchvision.datasets import CIFAR10

    def unpack() -> tuple[Split, Split]:
        wanted = [file for file, _ in (*CIFAR10.train_list, *CIFAR10.test_list)]
        held = {}
        with tarfile.open(folder / CIFAR10.filename) as archive:
            for member in archive:  # in the archive's order: going back means unpacking it again
                content = archive.extractfile(member)
                if content and Path(member.name).name in wanted:
                    held[Path(member.name).name] = pickle.load(content, encoding="latin1")
        pixels = [torch.tensor(held[file]["data"]).view(-1, 3, 32, 32) for file in wanted]
        labels = [torch.tensor(held[file]["labels"]) for file in wanted]
        return (torch.cat(pixels[:-1]), torch.cat(labels[:-1])), (pixels[-1], labels[-1])

    return Images(name, "download", *_remembered(f"{name}-{CIFAR10.tgz_md5}", unpack), CIFAR10_CLASSES)


#: In the order of the labels.
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


# The stand-ins


def _digits() -> Images:
    """Scikit-learn's handwritten digits at MNIST's size; every sixth is for the test."""
    from sklearn.datasets import load_digits

    found = load_digits()
    small = torch.tensor(found.images, dtype=torch.float32)[:, None] * (255 / 16)  # theirs go from 0 to 16
    pixels = torch.nn.functional.interpolate(small, size=(28, 28), mode="bilinear").round().to(torch.uint8)
    labels, test = torch.tensor(found.target, dtype=torch.int64), torch.arange(len(small)) % 6 == 0
    splits = (pixels[~test], labels[~test]), (pixels[test], labels[test])
    source = f"stand-in: scikit-learn's digits, {len(small):,} images scaled from 8×8 to 28×28"
    return Images("mnist", source, digest(*splits), *splits, tuple("0123456789"))


def _photographs(name: str) -> Images:
    """Patches of scikit-learn's two photographs, as large and of as many classes as the set's own images.

    A patch's class is its photograph and, within that, its brightness: bands that hold equally many training patches.
    The third quarter of each photograph, from the left, is for the test: no test patch shares a pixel with a training
    patch. There some bands are rarer than among the training patches, and of the 25 narrow ones some don't occur.
    """
    from sklearn.datasets import load_sample_images

    side, bands = (32, 5) if name == "cifar10" else (64, 25)
    found = load_sample_images()
    splits: tuple[list[Split], list[Split]] = ([], [])
    photographs = [Path(file).stem for file in found.filenames]
    for number, photograph in enumerate(torch.tensor(np.stack(found.images)).permute(0, 3, 1, 2)):
        quarters = [
            quarter.unfold(1, side, 8).unfold(2, side, 8).permute(1, 2, 0, 3, 4).flatten(0, 1)
            for quarter in photograph.split(photograph.shape[2] // 4, dim=2)
        ]
        patches = torch.cat([*quarters[:2], quarters[3]]), quarters[2]
        brightness = [part.double().mean((1, 2, 3)) for part in patches]
        edges = brightness[0].quantile(torch.arange(1, bands, dtype=torch.float64) / bands)
        for split, part, values in zip(splits, patches, brightness, strict=True):
            split.append((part, number * bands + torch.bucketize(values, edges)))
    train, test = ((torch.cat([p for p, _ in split]), torch.cat([k for _, k in split])) for split in splits)
    source = f"stand-in: scikit-learn's photographs, {side}×{side} patches labelled by photograph and brightness"
    classes = tuple(f"{each}, brightness {band + 1} of {bands}" for each in photographs for band in range(bands))
    return Images(name, source, digest(train, test), train, test, classes)
