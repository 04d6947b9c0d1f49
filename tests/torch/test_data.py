"""The studies' images: found where they should be, checked, never replaced in silence."""

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
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torchvision.datasets import CIFAR10, MNIST

from fop_torch import data

REAL = Path(os.environ.get("FOP_DATA") or "missing")
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
ANIMALS = ("cat", "dog", "owl")


@pytest.fixture(autouse=True)
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No data, no cache, no network: what a test needs of them it makes itself."""
    monkeypatch.delenv("FOP_DATA", raising=False)
    monkeypatch.setenv("FOP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("FOP_OFFLINE", "1")
    return tmp_path


def pixels(count: int, *shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def write(root: Path, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """Put files into the folder, and say that they are the right ones."""
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
        monkeypatch.setitem(data.SHA256, name, hashlib.sha256(content).hexdigest())


def idx(array: np.ndarray) -> bytes:
    heading = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    return gzip.compress(heading + array.tobytes(), mtime=0)


def mnist_files() -> dict[str, bytes]:
    return {
        "mnist/MNIST/raw/train-images-idx3-ubyte.gz": idx(pixels(6, 28, 28)),
        "mnist/MNIST/raw/train-labels-idx1-ubyte.gz": idx(np.arange(6, dtype=np.uint8)),
        "mnist/MNIST/raw/t10k-images-idx3-ubyte.gz": idx(pixels(4, 28, 28, seed=1)),
        "mnist/MNIST/raw/t10k-labels-idx1-ubyte.gz": idx(np.arange(4, dtype=np.uint8)),
    }


def parquet(images: np.ndarray, labels: list[int], classes: tuple[str, ...], kind: str = "PNG") -> bytes:
    """The columns and the heading that the `datasets` library writes; images `[n, h, w, 3]` or `[n, h, w]`."""
    rows = []
    for number, image in enumerate(images):
        held = io.BytesIO()
        Image.fromarray(image).save(held, kind, **({"lossless": True} if kind == "WEBP" else {}))
        rows.append({"bytes": held.getvalue(), "path": f"{number}.{kind.lower()}"})
    table = pa.table({"image": rows, "label": pa.array(labels, pa.int64())})
    file = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({"class_names": json.dumps(classes)}), file)
    return file.getvalue()


def cifar10_files(kind: str = "PNG") -> dict[str, bytes]:
    return {
        "cifar10/train.parquet": parquet(pixels(10, 32, 32, 3), list(range(10)), CLASSES, kind),
        "cifar10/test.parquet": parquet(pixels(2, 32, 32, 3, seed=1), [1, 0], CLASSES, kind),
    }


def imagenet_files() -> dict[str, bytes]:
    grey = pixels(3, 64, 64)
    return {
        "imagenet_small/train.parquet": parquet(grey, [2, 0, 1], ANIMALS),
        "imagenet_small/val.parquet": parquet(pixels(1, 64, 64, 3, seed=1), [1], ANIMALS),
    }


FILES: dict[str, Callable[[], dict[str, bytes]]] = {
    "mnist": mnist_files, "cifar10": cifar10_files, "imagenet_small": imagenet_files,
}  # fmt: skip


@pytest.fixture
def given(empty: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small folder `FOP_DATA` with all three sets."""
    root = empty / "data"
    for files in FILES.values():
        write(root, files(), monkeypatch)
    monkeypatch.setenv("FOP_DATA", str(root))
    return root


def check_form(images: data.Images, shape: tuple[int, ...]) -> None:
    """What every set has in common."""
    for found, labels in (images.train, images.test):
        assert found.dtype is torch.uint8
        assert labels.dtype is torch.int64
        assert found.is_contiguous()
        assert found.shape == (len(labels), *shape)
        assert labels.min() >= 0
        assert labels.max() < len(images.classes)


# The folder in FOP_DATA


def test_mnist_is_read_from_the_folder(given: Path) -> None:
    images = data.load("mnist")
    check_form(images, (1, 28, 28))
    assert (images.name, images.source, images.stand_in) == ("mnist", "FOP_DATA", False)
    assert torch.equal(images.train[0][:, 0], torch.from_numpy(pixels(6, 28, 28)))
    assert torch.equal(images.test[0][:, 0], torch.from_numpy(pixels(4, 28, 28, seed=1)))
    assert images.train[1].tolist() == list(range(6))
    assert images.classes == tuple("0123456789")


def test_cifar10_is_read_from_the_folder(given: Path) -> None:
    images = data.load("cifar10")
    check_form(images, (3, 32, 32))
    assert images.source == "FOP_DATA"
    assert torch.equal(images.train[0].permute(0, 2, 3, 1), torch.from_numpy(pixels(10, 32, 32, 3)))
    assert images.test[1].tolist() == [1, 0]
    assert images.classes == CLASSES


def test_many_images_keep_their_order(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads decode a thousand at a time."""
    many = pixels(2500, 2, 2, 3)
    files = {
        "cifar10/train.parquet": parquet(many, [0] * len(many), CLASSES),
        "cifar10/test.parquet": cifar10_files()["cifar10/test.parquet"],
    }
    write(empty, files, monkeypatch)
    monkeypatch.setenv("FOP_DATA", str(empty))
    assert torch.equal(data.load("cifar10").train[0].permute(0, 2, 3, 1), torch.from_numpy(many))


def test_grey_images_get_three_channels(given: Path) -> None:
    images = data.load("imagenet_small")
    check_form(images, (3, 64, 64))
    grey = torch.from_numpy(pixels(3, 64, 64))
    assert all(torch.equal(images.train[0][:, channel], grey) for channel in range(3))
    assert images.train[1].tolist() == [2, 0, 1]
    assert images.classes == ANIMALS


@pytest.mark.parametrize("name", data.NAMES)
def test_a_folder_that_cannot_be_written_to_does(name: str, given: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the data's nor the cache's: a file stands where the cache's folder would."""
    held = {file: file.read_bytes() for file in given.rglob("*") if file.is_file()}
    for folder in (given, *given.rglob("*")):
        folder.chmod(folder.stat().st_mode & ~0o222)
    (given.parent / "cache").write_text("a file")
    try:
        assert len(data.load(name).train[0])
        assert data.where(name) == f"FOP_DATA, {given / name}"
    finally:
        for folder in (given, *given.rglob("*")):
            folder.chmod(folder.stat().st_mode | 0o200)
    assert {file: file.read_bytes() for file in given.rglob("*") if file.is_file()} == held


@pytest.mark.parametrize("damage", ["truncated", "one bit", "empty"])
@pytest.mark.parametrize("file", [file for files in FILES.values() for file in files()])
def test_a_damaged_file_is_named_with_its_digest(file: str, damage: str, given: Path) -> None:
    """Even where a stand-in would do: what is there but wrong is an error."""
    good = (given / file).read_bytes()
    flipped = bytes([*good[:-1], good[-1] ^ 1])
    bad = {"truncated": good[:-20], "one bit": flipped, "empty": b""}[damage]
    name = file.split("/")[0]
    data.load(name)  # what is in the cache by now is no excuse
    (given / file).write_bytes(bad)
    with pytest.raises(ValueError, match="sha256") as caught:
        data.load(name, stand_in=True)
    message = str(caught.value)
    assert str(given / file) in message
    assert hashlib.sha256(bad).hexdigest() in message
    assert hashlib.sha256(good).hexdigest() in message
    assert data.where(name) == f"error: {message}"


@pytest.mark.parametrize("file", [file for files in FILES.values() for file in files()])
def test_a_missing_file_is_named(file: str, given: Path) -> None:
    (given / file).unlink()
    with pytest.raises(FileNotFoundError, match="missing") as caught:
        data.load(file.split("/")[0], stand_in=True)
    assert str(given / file) in str(caught.value)


def test_fop_data_that_names_no_folder_is_an_error(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOP_DATA", str(empty / "nowhere"))
    with pytest.raises(NotADirectoryError, match=r"FOP_DATA: expected a folder, got '.*nowhere'"):
        data.load("mnist", stand_in=True)
    assert data.where("mnist").startswith("error: FOP_DATA")


@pytest.mark.parametrize("name", ["fashion", "", None])
def test_an_unknown_name_is_an_error(name: str) -> None:
    with pytest.raises(ValueError, match=f"expected one of mnist, cifar10, imagenet_small, got {name!r}"):
        data.load(name)
    assert data.where(name).startswith("error: name")


@pytest.mark.parametrize("name", data.NAMES)
def test_a_set_that_the_folder_lacks_is_looked_for_elsewhere(
    name: str, empty: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("FOP_DATA", str(empty))
    assert data.load(name, stand_in=True).stand_in
    assert f"FOP_DATA ({empty}) has no folder {name}" in caplog.text


# What is known of the images


def test_the_digest_knows_the_images_not_their_files(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = set()
    for kind in ("PNG", "WEBP", "BMP"):
        write(empty / kind, cifar10_files(kind), monkeypatch)
        monkeypatch.setenv("FOP_DATA", str(empty / kind))
        found.add(data.load("cifar10").digest)
    assert len(found) == 1
    assert len(list((empty / "cache" / "decoded").iterdir())) == 3  # each was decoded, none taken for another


@pytest.mark.parametrize("change", ["a pixel", "a label", "a test label", "the order", "the shape"])
def test_the_digest_knows_every_pixel_and_label(change: str) -> None:
    def parts() -> tuple[data.Split, data.Split]:
        images, labels = torch.from_numpy(pixels(6, 1, 4, 4)), torch.arange(6)
        return (images[:4].clone(), labels[:4].clone()), (images[4:].clone(), labels[4:].clone())

    train, test = parts()
    before = data.digest(train, test)
    assert before == data.digest(*parts())
    assert len(before) == 16
    assert int(before, 16)
    if change == "a pixel":
        train[0][3, 0, 1, 2] ^= 1
    elif change == "a label":
        train[1][0] = 9
    elif change == "a test label":
        test[1][1] = 9
    elif change == "the order":
        train = train[0].flip(0), train[1].flip(0)
    else:
        train = train[0].view(4, 1, 2, 8), train[1]
    assert data.digest(train, test) != before


def test_images_move_to_a_device(given: Path) -> None:
    images = data.load("mnist")
    moved = images.to("meta")
    assert {tensor.device.type for tensor in (*moved.train, *moved.test)} == {"meta"}
    assert (moved.name, moved.source, moved.digest) == (images.name, images.source, images.digest)
    assert images.train[0].device.type == "cpu"


# The cache of decoded images


def only(folder: Path) -> Path:
    (found,) = folder.iterdir()
    return found


def decodings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows with every call that decodes images."""
    calls: list[int] = []
    decode = data._decoded
    monkeypatch.setattr(data, "_decoded", lambda encoded: (calls.append(len(encoded)), decode(encoded))[1])
    return calls


def test_images_are_decoded_once(given: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = decodings(monkeypatch)
    first, second = data.load("cifar10"), data.load("cifar10")
    assert calls == [10, 2]
    assert second.digest == first.digest == data.digest(second.train, second.test)
    assert all(
        torch.equal(a, b) for a, b in zip((*first.train, *first.test), (*second.train, *second.test), strict=True)
    )
    second.train[0].zero_()  # memory of its own


@pytest.mark.parametrize("damage", ["truncated", "empty", "a pixel", "other images", "text", "heading"])
def test_a_damaged_cache_is_made_anew(
    damage: str, given: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    right = data.load("cifar10")
    file = only(given.parent / "cache" / "decoded")
    good = file.read_bytes()
    if damage == "other images":  # a sound file, but the digest in it is not its own
        with np.load(file) as held:
            np.savez(file, **{**held, "train": held["train"] ^ 1})
    else:
        middle = len(good) // 2
        file.write_bytes({
            "truncated": good[:middle],
            "empty": b"",
            "a pixel": bytes([*good[:middle], good[middle] ^ 1, *good[middle + 1 :]]),
            "text": b"no archive",
            "heading": good.replace(b"fortran_order", b"fortran_ordre"),
        }[damage])  # fmt: skip
    calls = decodings(monkeypatch)
    found = data.load("cifar10")
    assert calls == [10, 2]
    assert found.digest == right.digest
    assert torch.equal(found.train[0], right.train[0])
    assert "made anew" in caplog.text
    assert only(file.parent) == file
    data.load("cifar10")
    assert calls == [10, 2]


def test_a_full_disk_costs_only_the_cache(
    given: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(file: io.BufferedWriter, **arrays: object) -> None:
        file.write(b"some")
        raise OSError(28, "No space left on device")

    caplog.set_level(logging.INFO)
    monkeypatch.setattr(np, "savez", full)
    assert len(data.load("cifar10").train[0]) == 10
    assert "No space left on device" in caplog.text
    assert list((given.parent / "cache" / "decoded").iterdir()) == []


# The official downloads


@pytest.fixture
def server(empty: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, list[str]]]:
    """A mirror on this machine: the folder that it serves, and the requests that it got."""
    asked: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *words: object) -> None:
            asked.append(f"{self.command} {self.path}")

    root = empty / "mirror"
    root.mkdir()
    serving = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=root))
    thread = threading.Thread(target=serving.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    address = f"http://127.0.0.1:{serving.server_port}/"
    monkeypatch.setattr(MNIST, "mirrors", [f"{address}away/", address])
    monkeypatch.setattr(CIFAR10, "url", f"{address}{CIFAR10.filename}")
    monkeypatch.delenv("FOP_OFFLINE")
    yield root, asked
    serving.shutdown()
    thread.join()
    serving.server_close()


def offer_mnist(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = mnist_files()
    for name, content in files.items():
        (root / Path(name).name).write_bytes(content)
        monkeypatch.setitem(data.SHA256, name, hashlib.sha256(content).hexdigest())
    md5 = [(Path(name).name, hashlib.md5(content).hexdigest()) for name, content in files.items()]
    monkeypatch.setattr(MNIST, "resources", md5)


def offer_cifar10(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The archive as Toronto packs it: channels first, batches out of order, and other files between them."""
    images, labels = pixels(10, 32, 32, 3), list(range(10))
    batches = {
        f"data_batch_{number + 1}": (images[2 * number : 2 * number + 2], labels[2 * number : 2 * number + 2])
        for number in range(5)
    }
    batches["test_batch"] = pixels(2, 32, 32, 3, seed=1), [1, 0]
    with tarfile.open(root / CIFAR10.filename, "w:gz") as archive:
        for name in ("data_batch_4", "readme.html", "test_batch", *(f"data_batch_{i}" for i in (3, 2, 5, 1))):
            content = b"not a batch"
            if name in batches:
                part, kinds = batches[name]
                flat = part.transpose(0, 3, 1, 2).reshape(len(part), -1)
                content = pickle.dumps({"data": flat, "labels": kinds}, protocol=2)
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    content = (root / CIFAR10.filename).read_bytes()
    monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5(content).hexdigest())


OFFERS = {"mnist": offer_mnist, "cifar10": offer_cifar10}


@pytest.mark.parametrize("name", OFFERS)
def test_the_official_files_are_downloaded_once(
    name: str, server: tuple[Path, list[str]], given: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, asked = server
    expected = data.load(name).digest
    assert not asked
    OFFERS[name](root, monkeypatch)
    monkeypatch.delenv("FOP_DATA")
    assert data.where(name).startswith("download, to come from http://127.0.0.1")
    assert not asked
    images = data.load(name)
    assert (images.source, images.digest) == ("download", expected)  # the same images in other files
    assert images.classes == (CLASSES if name == "cifar10" else tuple("0123456789"))
    assert socket.getdefaulttimeout() is None
    count = len(asked)
    assert count
    monkeypatch.setenv("FOP_OFFLINE", "1")
    assert data.load(name, stand_in=True).digest == expected
    assert data.where(name) == f"download, kept in {given.parent / 'cache' / name}"
    assert len(asked) == count


@pytest.mark.parametrize("name", OFFERS)
def test_a_wrong_download_is_named_and_not_kept(
    name: str, server: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, _ = server
    OFFERS[name](root, monkeypatch)
    file = root / (CIFAR10.filename if name == "cifar10" else MNIST.resources[0][0])
    good = hashlib.md5(file.read_bytes()).hexdigest()
    file.write_bytes(b"<html>please log in</html>")
    with pytest.raises(data.UnavailableError) as caught:
        data.load(name)
    message = str(caught.value)
    assert all(word in message for word in (file.name, hashlib.md5(file.read_bytes()).hexdigest(), good, "FOP_DATA"))
    assert not list((root.parent / "cache").rglob(file.name))


def test_a_damaged_download_is_fetched_again(server: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a kill in the middle of it."""
    root, _ = server
    offer_mnist(root, monkeypatch)
    expected = data.load("mnist").digest
    kept = root.parent / "cache" / "mnist" / "MNIST" / "raw" / "train-images-idx3-ubyte.gz"
    kept.write_bytes(kept.read_bytes()[:100])
    monkeypatch.setenv("FOP_OFFLINE", "1")
    with pytest.raises(data.UnavailableError, match="FOP_OFFLINE is set"):
        data.load("mnist")
    monkeypatch.delenv("FOP_OFFLINE")
    assert data.load("mnist").digest == expected


def test_a_server_that_says_nothing_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FOP_OFFLINE")
    monkeypatch.setattr(data, "PATIENCE", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(MNIST, "mirrors", [f"http://127.0.0.1:{silent.getsockname()[1]}/"])
        start = time.perf_counter()
        with pytest.raises(data.UnavailableError, match="timed out"):
            data.load("mnist")
        assert time.perf_counter() - start < 5
    assert socket.getdefaulttimeout() is None


def test_a_cache_that_cannot_be_written_to_is_named(
    server: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, _ = server
    offer_mnist(root, monkeypatch)
    (root.parent / "cache").write_text("a file")
    with pytest.raises(data.UnavailableError, match="cache"):
        data.load("mnist")


@pytest.mark.parametrize("name", data.NAMES)
def test_without_data_the_error_says_what_was_tried(name: str) -> None:
    with pytest.raises(
        data.UnavailableError, match=f"no folder {name} in FOP_DATA .not set., and no download"
    ) as caught:
        data.load(name)
    assert "Remedy: let FOP_DATA name a folder" in str(caught.value)
    if name == "imagenet_small":
        assert data.SHA256["imagenet_small/val.parquet"] in str(caught.value)
    else:
        assert "FOP_OFFLINE is set" in str(caught.value)
    assert data.where(name).startswith("missing: not in FOP_DATA")


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_offline_no_connection_is_tried(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(*words: object, **options: object) -> None:
        pytest.fail("a connection was tried")

    monkeypatch.setattr(socket, "create_connection", connect)
    monkeypatch.setattr(socket, "getaddrinfo", connect)
    assert data.load(name, stand_in=True).stand_in


# The stand-ins

STAND_INS = {
    "mnist": ((1, 28, 28), 10, "digits"),
    "cifar10": ((3, 32, 32), 10, "photographs"),
    "imagenet_small": ((3, 64, 64), 50, "photographs"),
}


@pytest.mark.parametrize("name", STAND_INS)
def test_a_stand_in_has_the_form_and_says_what_it_is(name: str) -> None:
    shape, classes, what = STAND_INS[name]
    images = data.load(name, stand_in=True)
    check_form(images, shape)
    assert images.stand_in
    assert images.source.startswith("stand-in: scikit-learn's")
    assert what in images.source
    assert len(images.classes) == classes
    assert images.train[1].unique().tolist() == list(range(classes))
    for found, _ in (images.train, images.test):
        assert found.min() < 20
        assert found.max() > 235
    again = data.load(name, stand_in=True)
    assert images.digest == again.digest == data.digest(images.train, images.test)


def test_the_scaled_digits_are_the_digits() -> None:
    """Every seventh new pixel lies in the middle of four old ones; every sixth image is for the test."""
    from sklearn.datasets import load_digits

    images, found = data.load("mnist", stand_in=True), load_digits()
    assert images.test[1].tolist() == found.target[::6].tolist()
    assert images.train[1].tolist() == [int(kind) for i, kind in enumerate(found.target) if i % 6]
    means = torch.nn.functional.avg_pool2d(torch.tensor(found.images[::6])[:, None], 2) * 255 / 16
    assert (images.test[0][..., 3::7, 3::7] - means).abs().max() <= 0.501  # they are rounded
    assert len(images.train[0]) + len(images.test[0]) == 1797


@pytest.mark.parametrize("name", ["cifar10", "imagenet_small"])
def test_the_patches_can_be_learned_and_the_test_is_new(name: str) -> None:
    """The nearest training patch, by its mean colour, knows the class better than the commonest class does."""
    images = data.load(name, stand_in=True)
    train, test = (part[0].double().mean((2, 3)) for part in (images.train, images.test))
    guess = images.train[1][torch.cdist(test, train).argmin(1)]
    right = (guess == images.test[1]).double().mean()
    assert right > 2 * images.test[1].bincount().max() / len(test)
    seen = {patch.numpy().tobytes() for patch in images.train[0]}
    assert not any(patch.numpy().tobytes() in seen for patch in images.test[0])


# The real data

real = pytest.mark.skipif(not REAL.is_dir(), reason="FOP_DATA names no folder")
KNOWN = {
    "mnist": (60_000, 10_000, [5, 0, 4, 1, 9, 2], [7, 2, 1, 0, 4, 1], "ca41cec67f1ead17"),
    "cifar10": (50_000, 10_000, [6, 9, 9, 4, 1, 1], [3, 8, 8, 0, 6, 6], "7c5086b4bab7c76f"),
    "imagenet_small": (25_000, 2_500, [0] * 6, [0] * 6, ""),  # decoders of JPEG round differently: no digest
}


@real
@pytest.mark.parametrize("name", KNOWN)
def test_the_real_images(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if not (REAL / name).is_dir():
        pytest.skip(f"FOP_DATA has no {name}")
    monkeypatch.setenv("FOP_DATA", str(REAL))
    train, test, first, first_test, expected = KNOWN[name]
    images = data.load(name)
    check_form(images, {"mnist": (1, 28, 28), "cifar10": (3, 32, 32), "imagenet_small": (3, 64, 64)}[name])
    assert (len(images.train[0]), len(images.test[0])) == (train, test)
    assert images.train[1][:6].tolist() == first
    assert images.test[1][:6].tolist() == first_test
    assert set(images.test[1].tolist()) == set(range(len(images.classes)))
    assert expected in ("", images.digest)
    assert data.where(name) == f"FOP_DATA, {REAL / name}"
