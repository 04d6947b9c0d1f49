"""The ImageNet study: the paper's numbers, the folder and what feeds on it, and runs that stop, go on and share."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor, nn
from torchvision.datasets import ImageFolder

from fop_theory import counts
from fop_torch import cli, data, imagefolder, plan
from fop_torch.convnets import resnet18
from fop_torch.results import Store, run_key
from fop_torch.studies import vision
from fop_torch.studies.imagenet import loader
from fop_torch.studies.imagenet import train as imagenet
from fop_torch.studies.imagenet.train import Config
from fop_torch.training import Batches, InterruptedRunError, Session

PAPER = Config("FOP", 0)
CLASSES = ("n01440764", "n01443537")
#: Training and test images of a class in the folder that these tests write.
TRAIN, TEST = 12, 3
TINY = Config("FOP", 0, 1e-3, 0.01, batch=8, iterations=7, drops=(5,), images=24, classes=2, side=32)


def write_folder(root: Path) -> Path:
    """A folder as ImageNet's: cuttings of scikit-learn's photographs, of many shapes; one is grey."""
    rng = np.random.default_rng(0)
    for name, photograph in zip(CLASSES, load_sample_images().images, strict=True):
        for part, count in (("train", TRAIN), ("val", TEST)):
            folder = root / "imagenet" / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                height, width = rng.integers(60, 120, 2)
                top, left = rng.integers(0, 300, 2)
                image = Image.fromarray(photograph[top : top + height, left : left + width])
                image = image.convert("L") if number == 1 else image
                image.save(folder / f"{name}_{number}.JPEG", quality=90)
    return root / "imagenet"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("data"))


@pytest.fixture(autouse=True)
def _given(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("FOP_DATA", str(folder.parent))
    monkeypatch.setenv("FOP_OFFLINE", "1")
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def session(config: Config, folder: Path, **options: object) -> Session:
    return Session("imagenet", config, folder, "code", device="cpu", **options)  # type: ignore[arg-type]


def run(config: Config, folder: Path, records: tuple = (), **options: object) -> Session:
    found = session(config, folder, **options)
    imagenet.train(config, found, records)
    return found


def small(classes: int, *, projections: int) -> nn.Module:
    """ResNet-18's kinds of layers, at a hundredth of its size: where a run goes on, or is shared, no other matters."""
    layers: list[nn.Module] = []
    for inputs, outputs, kernel, stride in ((3, 8, 7, 2), (8, 8, 3, 1), (8, 16, 1, 2)):
        layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        layers += [layer, nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, classes))


def curves(found: Session) -> list[tuple]:
    """All but the time that it took."""
    return [row for row in found.rows if row[2] != "seconds"]


# ---------------------------------------------------------------------------------------
# The paper's numbers


def test_the_paper_s_settings() -> None:
    """Section 4.2: 60 epochs, batch 256, 0.1 divided by 10 at the 25th and the 50th; Section 4.1: Adam with 1e-4."""
    assert (PAPER.batch, PAPER.classes, PAPER.side, PAPER.images) == (256, 1000, 299, 1_281_167)
    assert (PAPER.momentum, PAPER.hyper_lr, PAPER.weight_decay) == (0.9, 1e-4, 1e-4)
    epoch = Batches(1_281_167, 256, 0).per_epoch
    assert PAPER.iterations == 60 * epoch == 300_240
    rates = [vision.rate(PAPER, step) for step in (0, 25 * epoch - 1, 25 * epoch, 50 * epoch - 1, 50 * epoch)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001])


def test_the_runs() -> None:
    paper = imagenet.runs("paper")
    five = ("momentum", "S-HD", "PP-HD", "FOP-norm", "FOP")
    assert paper == [replace(PAPER, method=method, seed=seed) for seed in range(3) for method in five]
    laptop = imagenet.runs("laptop")
    assert [(c.method, c.seed) for c in laptop] == [(m, seed) for seed in range(3) for m in (*five, "flipped")]
    # As the paper's, but for the sizes: the rate goes with the batch, and falls at the same parts of the run.
    for config in (each for each in laptop if each.method == "FOP"):
        assert config.lr / config.batch == PAPER.lr / PAPER.batch
        assert [drop / config.iterations for drop in config.drops] == [25 / 60, 50 / 60]
        sizes = {
            name: getattr(PAPER, name) for name in ("lr", "batch", "iterations", "drops", "images", "classes", "side")
        }
        assert replace(config, **sizes, seed=0) == PAPER
    assert not any(c.stand_in for c in paper + laptop)
    assert all(c.stand_in for c in imagenet.runs("smoke"))


@pytest.mark.parametrize("profile", ["laptop", "paper"])
def test_a_control_is_named_when_its_run_is_recorded(profile: str) -> None:
    before = imagenet.runs(profile)
    followed = next(c for c in before if c.method == "FOP" and c.seed == 1)
    key = run_key("imagenet", followed)
    after = imagenet.runs(profile, [SimpleNamespace(key=key)])  # type: ignore[list-item]
    assert set(after) - set(before) == {replace(followed, method="matched", gains=key)}


@pytest.mark.parametrize(
    ("projections", "total", "layers", "rows"), [(3, 11_689_512, 21, 196), (4, 11_693_736, 22, 197)]
)
def test_what_figure_2_counts(projections: int, total: int, layers: int, rows: int) -> None:
    """What the optimizer holds: only with four projections 22 rates, and 197 rows for the convolutions."""
    with torch.device("meta"):
        model = resnet18(projections=projections)
    assert sum(p.numel() for p in model.parameters()) == total

    def factors(method: str) -> list[Tensor]:
        found = vision.optimizer(model, replace(PAPER, method=method))
        return [found.state[p]["M"] for p in model.parameters() if "M" in found.state.get(p, {})]

    network = counts.resnet18(projections)
    assert [M.numel() for M in factors("S-HD")] == [1] * counts.scalar_rates(network) == [1] * layers
    matrices, numbers = ([M for M in factors("FOP") if (M.dim() == 2) is square] for square in (True, False))
    assert sum(len(M) for M in matrices) == counts.rows_of_spatial_factors(network) == rows
    assert [M.numel() for M in numbers] == [1]  # the linear layer's
    assert sum(M.numel() for M in factors("PP-HD")) == sum(layer.weights for layer in network)


def test_the_network_is_the_one_that_is_counted() -> None:
    with torch.device("meta"):
        expected = {name: p.shape for name, p in resnet18(projections=4).named_parameters()}
    model, _, inputs, targets = imagenet.setup(PAPER, "meta")
    assert {name: p.shape for name, p in model.named_parameters()} == expected
    assert (inputs, targets) == ((256, 3, 299, 299), (256,))


def test_a_step_of_the_paper_counted_without_a_gpu() -> None:
    """FLOPs of one step against the layers' own numbers, and the 3,701 entries of M; see `plan.count`."""
    found = plan.count(imagenet.STUDY, PAPER)
    # Sides of the maps: 299 is no multiple of 32, so they are not those of any size that `counts.resnet18` takes.
    sides = {160: 150, 80: 75, 40: 38, 20: 19, 10: 10, 1: 1}
    layers = [replace(each, pixels=sides[round(each.pixels**0.5)] ** 2) for each in counts.resnet18(4, side=320)]
    products = [2 * layer.weights * layer.pixels for layer in layers]
    # Forward, and backward for weights and inputs; the images need no gradient.
    assert found.learn.flops == 256 * (3 * sum(products) - products[0])
    assert counts.entries_of_spatial_factors(layers) == 3_701
    assert found.memory["M"] == 4 * (3_701 + 1)  # and the linear layer's number
    assert found.memory["parameters"] == 4 * 11_693_736


def test_plan_tells_the_hours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imagenet, "MAIN", ("momentum",))
    words = ["plan", "imagenet", "--profile", "paper", "--device", "h100", "--precision", "bf16"]
    told = CliRunner().invoke(cli.main, words).output
    step = plan.count(imagenet.STUDY, replace(PAPER, method="momentum"))
    hours = plan.duration(3 * 300_240 * max(plan.seconds(step, plan.DEVICES["h100"], "bf16").values()))
    assert hours.endswith(" h")
    assert f"3 runs take about {hours} on one H100 SXM in bf16" in told
    assert "fits" in told


# ---------------------------------------------------------------------------------------
# The folder


def test_the_folder_is_read_as_torchvision_reads_it(folder: Path) -> None:
    found = imagefolder.read(folder)
    assert found.classes == CLASSES
    for files, part, count in ((found.train, "train", 2 * TRAIN), (found.test, "val", 2 * TEST)):
        expected = ImageFolder(str(folder / part))
        assert len(files) == len(expected.samples) == count
        assert [(str(files.path(i)), int(files.labels[i])) for i in range(count)] == expected.samples


def test_the_digest_is_that_of_names_and_sizes(tmp_path: Path) -> None:
    root = write_folder(tmp_path)
    first = imagefolder.read(root).digest
    imagefolder.read.cache_clear()
    one, two = sorted((root / "train" / CLASSES[0]).iterdir())[:2]
    content = one.read_bytes()
    one.write_bytes(content[:-1])
    cut = imagefolder.read(root).digest
    imagefolder.read.cache_clear()
    one.write_bytes(content)
    assert imagefolder.read(root).digest == first != cut
    imagefolder.read.cache_clear()
    two.rename(two.with_name("another.JPEG"))
    assert imagefolder.read(root).digest not in (first, cut)


def test_a_missing_folder_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOP_DATA", str(tmp_path))
    with pytest.raises(data.UnavailableError, match=rf"^imagenet: expected {tmp_path}/imagenet/train .*Remedy: "):
        run(PAPER, tmp_path)
    monkeypatch.delenv("FOP_DATA")
    with pytest.raises(data.UnavailableError, match="FOP_DATA is not set"):
        run(PAPER, tmp_path)


def test_a_folder_that_is_not_the_one_is_told(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(data.UnavailableError, match=r"expected 1,281,167 training images, found 24; is it unpacked"):
        run(PAPER, tmp_path)
    with pytest.raises(data.UnavailableError, match=r"expected 1,000 classes, found 2"):
        run(replace(PAPER, images=24), tmp_path)
    root = write_folder(tmp_path)
    (root / "val" / CLASSES[1]).rename(root / "val" / "n02119789")
    with pytest.raises(data.UnavailableError, match=r"train has 2 classes and val 2, and 2 are in one alone, such as"):
        imagefolder.read(root)
    for image in (root / "val").rglob("*.JPEG"):  # as the archive of the validation images unpacks
        image.rename(root / "val" / image.name)
    for each in (root / "val").iterdir():
        if each.is_dir():
            each.rmdir()
    with pytest.raises(data.UnavailableError, match="val: expected a folder of images for every class"):
        imagefolder.read(root)


def test_a_broken_image_is_named(tmp_path: Path) -> None:
    root = write_folder(tmp_path)
    broken = root / "train" / CLASSES[0] / f"{CLASSES[0]}_0.JPEG"
    broken.write_bytes(broken.read_bytes()[:200])
    images = imagefolder.Decoded(imagefolder.read(root).train, imagefolder.for_training(32), 0)
    with pytest.raises(OSError, match=rf"{broken}: not an image that can be read .*; put it there again"):
        images[0, 0]


# ---------------------------------------------------------------------------------------
# What it feeds


def feed(folder: Path, where: Path, seed: int = 0, workers: int = 0) -> tuple:
    return imagefolder.feed(
        imagefolder.read(folder), session(TINY, where), side=32, batch=8, iterations=7, seed=seed, workers=workers
    )


def same(some: tuple[Tensor, Tensor], others: tuple[Tensor, Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(some, others, strict=True))


def test_order_and_pixels_do_not_depend_on_who_reads(folder: Path, tmp_path: Path) -> None:
    (alone, tested), (helped, tested_too) = (feed(folder, tmp_path, workers=workers) for workers in (0, 2))
    whole = [alone(step) for step in range(7)]
    assert all(same(helped(step), whole[step]) for step in range(7))
    assert all(map(same, tested(), tested_too()))
    # Begun in the middle of an epoch, and gone back.
    elsewhere, _ = feed(folder, tmp_path)
    assert all(same(elsewhere(step), whole[step]) for step in (4, 5, 2))
    another, _ = feed(folder, tmp_path, seed=1)
    assert not same(another(0), whole[0])


def test_an_image_is_cropped_anew_in_each_epoch(folder: Path, tmp_path: Path) -> None:
    """By seed, epoch and index alone: three steps are an epoch here."""
    batch, _ = feed(folder, tmp_path)
    order = Batches(24, 8, 0)
    images = imagefolder.Decoded(imagefolder.read(folder).train, imagefolder.for_training(32), 0)
    mean, deviation = (255 * torch.tensor(each).view(3, 1, 1) for each in (imagefolder.MEAN, imagefolder.DEVIATION))
    for step in (1, 5):
        inputs, targets = batch(step)
        assert inputs.is_contiguous(memory_format=torch.channels_last)
        for place, index in enumerate(order[step].tolist()):
            pixels, label = images[step // 3, index]
            torch.testing.assert_close(inputs[place], (pixels - mean) / deviation, rtol=0, atol=1e-5)
            assert targets[place] == label == index // TRAIN
            assert not torch.equal(pixels, images[step // 3 + 1, index][0])
    files = imagefolder.read(folder).train
    keys = [(epoch, index) for epoch in range(2) for index in range(3)]
    drawn = [imagefolder.Decoded(files, lambda image: torch.rand(1), seed)[key][0] for seed in range(2) for key in keys]
    assert len(set(map(float, drawn))) == 12


def test_a_test_image_is_the_centre(folder: Path, tmp_path: Path) -> None:
    """Against Pillow's own scaling: of a square of 36 pixels the 32 in the middle, at the shape of the original."""
    _, tested = feed(folder, tmp_path)
    ((inputs, targets),) = tested()
    assert targets.tolist() == [0] * TEST + [1] * TEST
    for index, (path, _) in enumerate(ImageFolder(str(folder / "val")).samples):
        with Image.open(path) as opened:
            image = opened.convert("RGB")
        short = min(image.size)
        width, height = (int(37 * each / short) for each in image.size)
        scaled = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
        top, left = round((height - 32) / 2), round((width - 32) / 2)
        expected = scaled[top : top + 32, left : left + 32] / 255
        found = inputs[index].permute(1, 2, 0).numpy() * imagefolder.DEVIATION + imagefolder.MEAN
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_nothing_is_decoded_in_vain(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that goes on in the middle of an epoch opens its own batches' files, and leaves torch's generator alone."""
    opened = []
    original = Image.open

    def noted(path: Path) -> Image.Image:
        opened.append(path)
        return original(path)

    monkeypatch.setattr(Image, "open", noted)
    torch.manual_seed(7)
    before = torch.get_rng_state()
    batch, _ = feed(folder, tmp_path)
    batch(4)
    batch(5)
    files, order = imagefolder.read(folder).train, Batches(24, 8, 0)
    assert opened == [files.path(index) for step in (4, 5) for index in order[step].tolist()]
    assert torch.equal(torch.get_rng_state(), before)


def test_the_rate_of_the_loader_is_by_the_processor_s_own_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Photographs about as large and as heavy as ImageNet's; five of them in the two seconds of a clock that jumps."""
    opened, ticks, original = [], iter((10.0, 12.0)), Image.open

    def noted(path: Path) -> Image.Image:
        image = original(path)
        if isinstance(path, Path):  # scikit-learn opens its own as streams
            opened.append((image.size, path.stat().st_size))
        return image

    monkeypatch.setattr(Image, "open", noted)
    monkeypatch.setattr(loader.time, "process_time", lambda: next(ticks))
    assert loader.rate(5) == 2.5
    assert len(opened) == 1 + 5
    assert {size for size, _ in opened} == {(500, 375)}
    assert 80_000 < np.mean([weight for _, weight in opened]) < 120_000


def test_some_classes_of_the_small_set() -> None:
    rng = np.random.default_rng(0)
    pixels, labels = rng.integers(0, 256, (12, 3, 8, 8), dtype=np.uint8), np.arange(12) % 6
    split = torch.from_numpy(pixels), torch.from_numpy(labels)
    images = data.Images("imagenet_small", "FOP_DATA", "digest", split, split, tuple("abcdef"))
    found = imagenet.reduced(images, 3, 4)
    assert found.classes == ("a", "c", "e")
    assert found.train[1].tolist() == [0, 1, 2, 0, 1, 2]
    for place, index in enumerate((0, 2, 4, 6, 8, 10)):
        means = pixels[index].reshape(3, 4, 2, 4, 2).mean((2, 4))
        assert np.abs(found.train[0][place].numpy() - means).max() <= 0.5
    assert torch.equal(imagenet.reduced(images, 6, 8).train[0], split[0])


# ---------------------------------------------------------------------------------------
# Runs


def test_a_stopped_run_goes_on_with_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three steps are an epoch: it stops in the middle of the second, and of the third."""
    monkeypatch.setattr(imagenet, "resnet18", small)
    whole = run(TINY, tmp_path / "whole")
    for stop in (4, 3):
        with pytest.raises(InterruptedRunError):
            run(TINY, tmp_path / "cut", every=0.0, stop_after=stop)
    cut = run(TINY, tmp_path / "cut", every=0.0)
    assert curves(cut) == curves(whole)
    assert whole.rows[-1][0] == 7
    assert whole.facts["data"] == {
        "name": "imagenet", "source": "FOP_DATA", "digest": imagefolder.read(imagefolder.find()).digest,
    }  # fmt: skip


def test_bfloat16(tmp_path: Path) -> None:
    """What `--precision` asks for reaches the network, FOP steps in float32, and the record says which it was."""
    seen = {}

    def note(module: nn.Module, _: object, output: Tensor) -> None:
        seen[precision] = output.dtype

    original = imagenet.resnet18

    def watched(*args: int, **kwargs: int) -> nn.Module:
        net = original(*args, **kwargs)
        net.conv1.register_forward_hook(note)  # type: ignore[union-attr]
        return net

    losses = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(imagenet, "resnet18", watched)
        for precision in ("32-true", "bf16-mixed"):
            found = run(replace(TINY, iterations=2), tmp_path / precision, precision=precision)
            assert found.facts["precision"] == precision
            losses[precision] = next(value for _, _, name, value in found.rows if name == "train_loss")
    assert seen == {"32-true": torch.float32, "bf16-mixed": torch.bfloat16}
    assert losses["32-true"] != losses["bf16-mixed"]
    assert losses["bf16-mixed"] == pytest.approx(losses["32-true"], rel=0.05)


def test_photographs_take_the_small_set_s_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FOP_DATA")
    config = replace(next(c for c in imagenet.runs("smoke") if c.method == "FOP"), iterations=4)
    found = run(config, tmp_path)
    assert found.facts["data"]["source"].startswith("stand-in")
    assert [row[0] for row in found.rows if row[2] == "test_accuracy"] == [0, 4]
    assert {row[1] for row in found.rows if row[2] == "gain"} == {str(part) for part in range(1, 23)}
    with pytest.raises(data.UnavailableError):
        run(replace(config, stand_in=False), tmp_path)


SHARED = Config("FOP", 0, 1e-3, 0.01, batch=16, iterations=4, images=24, classes=2, side=64)
SCRIPT = """
import sys, time
from pathlib import Path
from fop_torch import sweep
from fop_torch.results import Store, run_key
from fop_torch.studies import find
from fop_torch.studies.imagenet import train as imagenet
from tests.torch.test_imagenet import SHARED, small

def runs(profile, records=()):
    return [SHARED, *imagenet._matched(SHARED, records)]

def slowly(*args, **kwargs):
    time.sleep(1.0)
    return save(*args, **kwargs)

save, Store.save = Store.save, slowly
imagenet.resnet18 = small
imagenet.STUDY = imagenet.replace(imagenet.STUDY, runs=runs)
root = Path(sys.argv[1])
sweep.sweep(find("imagenet"), "smoke", store=Store(root / "results"), scratch=root / "scratch", device="cpu")
"""


class Halves(nn.Module):
    """What two processes compute, in one: each half of a batch is normalised by its own mean and deviation.

    Batch normalisation sees what is in its process: 2 of 8 images are not 1 of 16, and their losses differ. Averages
    for the test are the first process's, since the others take over its buffers before each pass.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.norms = [each for each in net.modules() if isinstance(each, nn.BatchNorm2d)]

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return self.net(x)
        first, second = x.chunk(2)
        found = [self.net(first)]
        for each in self.norms:
            each.momentum = 0.0
        found.append(self.net(second))
        for each in self.norms:
            each.momentum = 0.1
        return torch.cat(found)


def test_two_processes_train_as_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By torchrun on gloo, through the sweep: the run, and then its control, which only its record names."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT, encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    ended = subprocess.run([*command, str(tmp_path)], env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    together = {record.config["method"]: record for record in Store(tmp_path / "results").load("imagenet", "smoke")}
    assert {record.facts["processes"] for record in together.values()} == {2}

    monkeypatch.setattr(imagenet, "resnet18", lambda *args, **kwargs: Halves(small(*args, **kwargs)))
    followed = together["FOP"]
    for config in (SHARED, replace(SHARED, method="matched", gains=followed.key)):
        alone = curves(run(config, tmp_path / "alone", (followed,)))
        rows = together[config.method].metrics
        rows = [tuple(row) for row in rows[rows["name"] != "seconds"].itertuples(index=False)]
        assert [row[:3] for row in rows] == [row[:3] for row in alone]
        found, expected = (np.array([row[3] for row in each]) for each in (rows, alone))
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
