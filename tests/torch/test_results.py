"""Records: written whole or not at all, known by their config, and refused when they were tampered with."""

from __future__ import annotations

import ast
import errno
import json
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fop_torch import results
from fop_torch.results import ResultsError, Store, code_digest, run_key, write_whole

ROWS = [(0, "", "loss", 2.5), (10, "", "loss", 1.25), (10, "1", "gain", 1 / 3)]


@dataclass(frozen=True)
class Config:
    seed: int = 0
    lr: float = 0.1
    name: str = "momentum"


def saved(root: Path, config: Config | None = None, **more):
    return Store(root).save("toy", "paper", "run", config or Config(), "finished", {"seed": 0}, ROWS, **more)


def test_a_record_comes_back_as_it_was(tmp_path) -> None:
    record = saved(tmp_path)
    found = Store(tmp_path).load("toy", "paper")
    assert [each.key for each in found] == [record.key] == [run_key("toy", Config())]
    assert found[0].config == {"seed": 0, "lr": 0.1, "name": "momentum"}
    assert [tuple(row) for row in found[0].metrics.itertuples(index=False)] == ROWS
    assert found[0].curve("loss").to_dict() == {0: 2.5, 10: 1.25}
    assert found[0].curve("gain", "1").to_dict() == {10: 1 / 3}
    assert found[0].curve("gain").empty
    assert Store(tmp_path).find("toy", "paper", record.key) == record
    assert Store(tmp_path).find("toy", "paper", "0" * 12) is None


@given(st.integers(0, 99), st.floats(1e-6, 1), st.sampled_from(["momentum", "FOP"]))
def test_the_key_is_the_config(seed, lr, name) -> None:
    config = Config(seed, lr, name)
    assert run_key("toy", config) == run_key("toy", Config(seed, lr, name))
    others = [replace(config, seed=seed + 1), replace(config, lr=lr * 2), replace(config, name="Adam")]
    assert len({run_key("toy", each) for each in [config, *others]}) == 4
    assert run_key("toy", config) != run_key("other", config)


def test_nothing_is_overwritten_silently(tmp_path) -> None:
    before = saved(tmp_path).path.read_bytes()
    with pytest.raises(ResultsError, match=r"recorded already; `fop run --again`"):
        saved(tmp_path)
    assert before == saved(tmp_path, again=True).path.read_bytes()


def test_the_same_rows_give_the_same_bytes(tmp_path) -> None:
    first = saved(tmp_path / "a").path.with_suffix(".parquet").read_bytes()
    assert first == saved(tmp_path / "b").path.with_suffix(".parquet").read_bytes()


@pytest.mark.parametrize("keep", [0, 10, -1], ids=["empty", "cut", "last byte"])
def test_truncated_curves_are_refused(tmp_path, keep) -> None:
    good = saved(tmp_path, Config(seed=1))
    record = saved(tmp_path)
    path = record.path.with_suffix(".parquet")
    path.write_bytes(path.read_bytes()[:keep])
    bad = Store(tmp_path).find("toy", "paper", record.key)
    with pytest.raises(ResultsError, match=rf"{path.name}: its sha256 is"):
        _ = bad.metrics
    assert len(Store(tmp_path).find("toy", "paper", good.key).metrics) == len(ROWS)


def test_other_curves_are_refused(tmp_path) -> None:
    record = saved(tmp_path)
    pd.DataFrame(ROWS[:2], columns=list(results.COLUMNS)).to_parquet(record.path.with_suffix(".parquet"))
    with pytest.raises(ResultsError, match="was changed or cut off"):
        _ = Store(tmp_path).load("toy", "paper")[0].metrics


def test_missing_curves_are_named(tmp_path) -> None:
    record = saved(tmp_path)
    record.path.with_suffix(".parquet").unlink()
    with pytest.raises(ResultsError, match="missing, though"):
        _ = Store(tmp_path).load("toy", "paper")[0].metrics


@pytest.mark.parametrize("text", ["", '{"key": "a"', "[]", '{"key": "a"}'])
def test_a_broken_record_is_refused(tmp_path, text) -> None:
    path = saved(tmp_path).path
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ResultsError, match=rf"{path.name}: not a record of a run"):
        Store(tmp_path).load("toy", "paper")


def test_a_full_disk_changes_nothing(tmp_path, monkeypatch) -> None:
    good = saved(tmp_path, Config(seed=1))

    def full(self, *args, **kwargs):
        Path(args[0]).write_bytes(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pd.DataFrame, "to_parquet", full)
    with pytest.raises(ResultsError, match=r"No space left on device.*nothing was changed"):
        saved(tmp_path)
    names = sorted(path.name for path in good.path.parent.iterdir())
    assert names == sorted([good.path.name, good.path.with_suffix(".parquet").name])


def test_a_failure_between_the_two_files_is_no_record(tmp_path, monkeypatch) -> None:
    def refuse(path, text):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(results, "_write_text", refuse)
    with pytest.raises(ResultsError):
        saved(tmp_path)
    assert Store(tmp_path).load("toy", "paper") == []
    monkeypatch.undo()
    assert len(saved(tmp_path).metrics) == len(ROWS)


def test_written_whole_or_not_at_all(tmp_path) -> None:
    path = tmp_path / "file"
    path.write_text("old", encoding="utf-8")

    def half(partial: Path) -> None:
        partial.write_text("ne", encoding="utf-8")
        raise OSError("the cable")

    with pytest.raises(ResultsError, match="the cable"):
        write_whole(path, half)
    assert path.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_number_that_is_none_is_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        run_key("toy", Config(lr=float("nan")))


def test_the_code_digest_sees_what_a_run_depends_on(tmp_path, monkeypatch) -> None:
    package = tmp_path / "digestpackage"
    package.mkdir()
    for name, text in {
        "__init__": "",
        "used": "X = 1",
        "study": "from digestpackage import used",
        "unused": "Y = 1",
    }.items():
        (package / f"{name}.py").write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(results, "PACKAGE", package)
    before = code_digest("digestpackage.study")
    (package / "unused.py").write_text("Y = 2", encoding="utf-8")
    assert code_digest("digestpackage.study") == before
    (package / "used.py").write_text("X = 2", encoding="utf-8")
    assert code_digest("digestpackage.study") != before


def test_only_code_counts_in_its_digest() -> None:
    def bare(text: str) -> str:
        return results._bare(ast.parse(text))

    code = "class A:\n    def f(self, x=1):\n        return x + 1\n"
    told = (
        '"""A module."""\n# First\nclass A:\n    """A class."""\n\n'
        '    def f(\n        self, x=1\n    ):\n        """A method."""\n        return (x + 1)  # one more\n'
    )
    assert bare(told) == bare(code)
    for other in (code.replace("x + 1", "x + 2"), code.replace("x=1", "x"), code.replace("f(", "g("), code + "A()\n"):
        assert bare(other) != bare(code)
    # A text that does something is no docstring.
    assert bare("x = 'a'") != bare("x = 'b'")
    assert bare("f()\n'a'") != bare("f()")


def test_the_mnist_study_depends_on_the_optimizer_and_not_on_figures() -> None:
    seen = []
    original = Path.read_bytes

    def note(self):
        seen.append(self.name)
        return original(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "read_bytes", note)
        code_digest("fop_torch.studies.mnist.train")
    assert {"fop.py", "bucket.py", "preconditioners.py", "training.py", "data.py", "models.py"} <= set(seen)
    assert not {"figures.py", "summary.py", "cli.py", "sweep.py"} & set(seen)


def test_folders(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("FOP_RESULTS", str(tmp_path / "r"))
    monkeypatch.setenv("FOP_SCRATCH", str(tmp_path / "s"))
    assert results.store().root == tmp_path / "r"
    assert results.scratch() == tmp_path / "s"
    monkeypatch.delenv("FOP_RESULTS")
    monkeypatch.delenv("FOP_SCRATCH")
    assert results.store().root.parts[-2:] == ("book", "results")
    assert json.loads((results.store().root / "benchmarks" / "cost.json").read_text(encoding="utf-8"))
