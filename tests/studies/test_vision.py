from __future__ import annotations

import io
import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from steppe import SAM
from steppe.lab import UserError
from steppe.lab.tasks.checks import check_fit
from steppe.lab.tasks.splits import batches, size
from steppe.lab.tasks.vision.data import CIFAR100_MEAN, CIFAR100_STD, Augmented, cifar_task, load_cifar
from steppe.lab.tasks.vision.models import resnet18, wide_resnet

TINY = {"train": 15, "test": 5}
NEEDS_DATASETS = "the hub's formats are read with the package datasets"


# Models


@pytest.mark.parametrize(
    ("make", "classes", "parameters"),
    [
        (resnet18, 100, 11_220_132),
        (resnet18, 10, 11_173_962),
        (wide_resnet, 100, 36_536_884),
        (wide_resnet, 10, 36_479_194),
    ],
)
def test_parameter_counts_are_those_of_the_papers(
    make: Callable[..., nn.Module], classes: int, parameters: int
) -> None:
    with torch.device("meta"):
        model = make(num_classes=classes)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    if classes == 100:
        assert f"{parameters:,}" in (make.__doc__ or "")


@pytest.mark.parametrize(
    ("make", "shapes"),
    [
        (
            resnet18,
            {
                "stem": (64, 32, 32),
                "stage1": (64, 32, 32),
                "stage2": (128, 16, 16),
                "stage3": (256, 8, 8),
                "stage4": (512, 4, 4),
                "head": (100,),
            },
        ),
        (
            wide_resnet,
            {
                "stem": (16, 32, 32),
                "stage1": (160, 32, 32),
                "stage2": (320, 16, 16),
                "stage3": (640, 8, 8),
                "head": (100,),
            },
        ),
    ],
)
def test_every_stage_has_its_shape(make: Callable[..., nn.Sequential], shapes: dict[str, tuple[int, ...]]) -> None:
    with torch.device("meta"):
        model, x = make(), torch.empty(2, 3, 32, 32)
    seen = {}
    for name, stage in model.named_children():
        x = stage(x)
        seen[name] = tuple(x.shape[1:])
    assert seen == shapes
    assert x.shape[0] == 2


@pytest.mark.parametrize(("make", "blocks"), [(resnet18, [2, 2, 2, 2]), (wide_resnet, [4, 4, 4])])
def test_layers_are_counted_as_the_papers_count_them(make: Callable[..., nn.Sequential], blocks: list[int]) -> None:
    with torch.device("meta"):
        model = make()
    stages = [stage for name, stage in model.named_children() if name.startswith("stage")]
    assert [len(stage) for stage in stages] == blocks
    modules = list(model.modules())
    convolutions = [module for module in modules if isinstance(module, nn.Conv2d)]
    assert all(module.bias is None for module in convolutions)
    assert len([module for module in convolutions if module.kernel_size == (3, 3)]) == 1 + 2 * sum(blocks)
    assert [module.stride for module in convolutions if module.kernel_size == (1, 1)][-2:] == [(2, 2), (2, 2)]
    assert not any(isinstance(module, nn.Dropout) for module in modules)


@pytest.mark.parametrize("make", [lambda: resnet18(7), lambda: wide_resnet(28, 10, 7), lambda: wide_resnet(10, 1, 7)])
def test_a_gradient_flows_to_every_parameter(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model = make()
    outputs = model(torch.randn(2, 3, 8, 8))
    assert outputs.shape == (2, 7)
    nn.functional.cross_entropy(outputs, torch.tensor([0, 6])).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("make", [resnet18, lambda: wide_resnet(10, 4)])
def test_initial_weights(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    for module in make().modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * module.kernel_size[0] * module.kernel_size[1]
            spread = (2 / fan_out) ** 0.5
            assert module.weight.std().item() == pytest.approx(spread, rel=0.2)
        elif isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all()
            assert (module.bias == 0).all()
        elif isinstance(module, nn.Linear):
            assert (module.bias == 0).all()


def test_the_blocks_are_the_formulas() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 64, 8, 8)
    relu = nn.functional.relu
    block = resnet18().get_submodule("stage2.0").eval()
    conv1, norm1, conv2, norm2 = (block.get_submodule(name) for name in ("conv1", "norm1", "conv2", "norm2"))
    expected = relu(norm2(conv2(relu(norm1(conv1(x))))) + block.get_submodule("shortcut")(x))
    torch.testing.assert_close(block(x), expected)

    wide = wide_resnet(16, 4)
    for name, changes in [("stage2.0", True), ("stage1.1", False)]:
        block = wide.get_submodule(name).eval()
        conv1, norm1, conv2, norm2 = (block.get_submodule(part) for part in ("conv1", "norm1", "conv2", "norm2"))
        active = relu(norm1(x))
        shortcut = block.get_submodule("shortcut")(active) if changes else x
        torch.testing.assert_close(block(x), conv2(relu(norm2(conv1(active)))) + shortcut)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: resnet18(0), "resnet18: num_classes must be a whole number of at least 1, got 0"),
        (lambda: wide_resnet(27), r"wide_resnet: depth must be 10, 16, 22, 28, \.\.\. \(6 n \+ 4\), got 27"),
        (lambda: wide_resnet(4), r"wide_resnet: depth must be 10, .* got 4"),
        (lambda: wide_resnet(28.0), "wide_resnet: depth must be a whole number of at least 1, got 28.0"),
        (lambda: wide_resnet(28, True), "wide_resnet: widen must be a whole number of at least 1, got True"),
        (lambda: wide_resnet(28, 10, -1), "wide_resnet: num_classes must be a whole number of at least 1, got -1"),
    ],
)
def test_wrong_sizes_are_refused(make: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()


# Reading


def tiny(split: str) -> tuple[Tensor, Tensor]:
    """A few noisy images of classes 0 to 9, sorted by class as an image folder is."""
    generator = torch.Generator().manual_seed(list(TINY).index(split))
    x = torch.randint(256, (TINY[split], 3, 32, 32), generator=generator, dtype=torch.uint8)
    return x, torch.arange(TINY[split]) * 10 // TINY[split]


def png(x: Tensor) -> bytes:
    pillow = pytest.importorskip("PIL.Image", reason="images are written with Pillow")
    file = io.BytesIO()
    pillow.frombytes("RGB", (32, 32), bytes(x.permute(1, 2, 0).flatten().tolist())).save(file, format="PNG")
    return file.getvalue()


def pickled(
    folder: Path, name: str = "cifar100", protocol: int = 2, python2: bool = True, by_columns: bool = False
) -> Path:
    """Write what the archives of CIFAR hold."""
    np = pytest.importorskip("numpy", reason="the pickles hold numpy arrays")
    key = "fine_labels" if name == "cifar100" else "labels"
    for split in TINY:
        x, y = tiny(split)
        files = ["train"] if split == "train" else ["test"]
        if name == "cifar10":
            files = [f"data_batch_{number}" for number in range(1, 6)] if split == "train" else ["test_batch"]
        for file, part, labels in zip(files, x.chunk(len(files)), y.chunk(len(files)), strict=True):
            data = np.array(part.flatten(1).tolist(), dtype=np.uint8)
            data = np.asfortranarray(data) if by_columns else data
            content = {"data": data, key: labels.tolist(), "filenames": ["a.png"] * len(part)}
            if python2:
                write_as_python2(folder / file, content)
            else:
                (folder / file).write_bytes(pickle.dumps(content, protocol=protocol))
    if name == "cifar100":
        (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": ["apple"]}, protocol=2))
    return folder


def write_as_python2(path: Path, content: dict[str, Any]) -> None:
    """Pickle as Python 2 did: texts and raw data are byte strings, and numpy has its old name."""

    def text(value: bytes) -> bytes:
        return b"T" + len(value).to_bytes(4, "little") + value

    def number(value: int) -> bytes:
        return b"J" + value.to_bytes(4, "little", signed=True)

    def encoded(value: object) -> bytes:
        if isinstance(value, str):
            return text(value.encode())
        if isinstance(value, int):
            return number(value)
        if isinstance(value, list):
            return b"](" + b"".join(map(encoded, value)) + b"e"
        assert hasattr(value, "tobytes")
        order = "F" if value.flags["F_CONTIGUOUS"] and not value.flags["C_CONTIGUOUS"] else "C"
        made = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00t" + text(b"b") + b"tR"
        kind = (
            b"cnumpy\ndtype\n("
            + text(b"u1")
            + b"K\x00K\x01tR(K\x03"
            + text(b"|")
            + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        )
        shape = b"(" + b"".join(map(number, value.shape)) + b"t"
        flag = b"\x88" if order == "F" else b"\x89"
        return made + b"(K\x01" + shape + kind + flag + text(value.tobytes(order=order)) + b"tb"

    items = b"".join(encoded(key) + encoded(value) for key, value in content.items())
    path.write_bytes(b"\x80\x02}(" + items + b"u.")


def parquet(folder: Path, plain: bool = False) -> Path:
    """Write parquet files with encoded images, with or without the notes that `datasets` leaves in them."""
    pytest.importorskip("datasets", reason=NEEDS_DATASETS)
    pq = pytest.importorskip("pyarrow.parquet", reason=NEEDS_DATASETS)
    for split in TINY:
        path = folder / "cifar100" / f"{split}-00000-of-00001.parquet"
        path.parent.mkdir(exist_ok=True, parents=True)
        if plain:
            pa = pytest.importorskip("pyarrow", reason=NEEDS_DATASETS)
            x, y = tiny(split)
            cells = [{"bytes": png(image), "path": None} for image in x]
            pq.write_table(pa.table({"img": cells, "fine_label": y.tolist(), "coarse_label": [0] * len(y)}), path)
        else:
            saved()[split].to_parquet(path)
    return folder


def saved() -> Any:
    """The splits as the hub gives them."""
    datasets = pytest.importorskip("datasets", reason=NEEDS_DATASETS)
    features = datasets.Features({"img": datasets.Image(), "fine_label": datasets.ClassLabel(num_classes=100)})
    made = {}
    for split in TINY:
        x, y = tiny(split)
        columns = {"img": [{"bytes": png(image), "path": None} for image in x], "fine_label": y.tolist()}
        made[split] = datasets.Dataset.from_dict(columns, features=features)
    return datasets.DatasetDict(made)


def save_to_disk(folder: Path) -> Path:
    saved().save_to_disk(str(folder))
    return folder


def images(folder: Path) -> Path:
    for split in TINY:
        for number in range(10):
            (folder / split / str(number)).mkdir(parents=True)
        for index, (x, label) in enumerate(zip(*tiny(split), strict=True)):
            (folder / split / str(int(label)) / f"{index:04}.png").write_bytes(png(x))
    return folder


def inside(folder: Path) -> Path:
    """The folder above the one that the archive is unpacked to."""
    (folder / "cifar-100-python").mkdir()
    pickled(folder / "cifar-100-python")
    return folder


@pytest.fixture(autouse=True)
def offline(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the tests off the network and out of the user's cache."""
    try:
        import datasets
        import huggingface_hub.constants
    except ImportError:
        return
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.mark.parametrize(
    "write",
    [
        pytest.param(pickled, id="pickles"),
        pytest.param(inside, id="pickles-inside"),
        pytest.param(lambda folder: pickled(folder, by_columns=True), id="pickles-by-columns"),
        *(
            pytest.param(lambda folder, protocol=protocol: pickled(folder, protocol=protocol, python2=False), id=f"pickles-{protocol}")
            for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1)
        ),
        pytest.param(lambda folder: pickled(folder, protocol=5, python2=False, by_columns=True), id="pickles-5-by-columns"),
        pytest.param(parquet, id="parquet"),
        pytest.param(lambda folder: parquet(folder, plain=True), id="parquet-plain"),
        pytest.param(lambda folder: parquet(folder / "data [1]*"), id="parquet-odd-name"),
        pytest.param(save_to_disk, id="save_to_disk"),
        pytest.param(images, id="images"),
    ],
)  # fmt: skip
def test_all_formats_give_the_same_tensors(write: Callable[[Path], Path], tmp_path: Path) -> None:
    x, y, test_x, test_y = load_cifar("cifar100", write(tmp_path))
    assert x.dtype == test_x.dtype == torch.uint8
    assert y.dtype == test_y.dtype == torch.int64
    assert x.shape == (15, 3, 32, 32)
    assert x.is_contiguous()
    for got, expected in zip((x, y, test_x, test_y), (*tiny("train"), *tiny("test")), strict=True):
        assert torch.equal(got, expected)


def test_five_batches_make_the_training_set_of_cifar10(tmp_path: Path) -> None:
    got = load_cifar("cifar10", str(pickled(tmp_path, "cifar10")))
    for part, expected in zip(got, (*tiny("train"), *tiny("test")), strict=True):
        assert torch.equal(part, expected)


def test_classes_are_numbered_by_name(tmp_path: Path) -> None:
    x, _ = tiny("train")
    for split in TINY:
        for index, name in enumerate(["cat", "airplane", "bird"]):
            (tmp_path / split / name).mkdir(parents=True)
            (tmp_path / split / name / "1.png").write_bytes(png(x[index]))
    got, labels, _, test_labels = load_cifar("cifar10", tmp_path)
    assert torch.equal(got, x[[1, 2, 0]])
    assert labels.tolist() == test_labels.tolist() == [0, 1, 2]


def test_without_a_folder_the_hub_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets", reason=NEEDS_DATASETS)
    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda name: asked.append(name) or saved())
    x, y, test_x, test_y = load_cifar()
    assert asked == ["uoft-cs/cifar100"]
    for got, expected in zip((x, y, test_x, test_y), (*tiny("train"), *tiny("test")), strict=True):
        assert torch.equal(got, expected)


def test_an_unreachable_hub_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets", reason=NEEDS_DATASETS)

    def unreachable(name: str) -> None:
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    expected = (
        r"CIFAR-10: datasets.load_dataset\('uoft-cs/cifar10'\) failed with ConnectionError: no route to host; "
        r"connect to the hub, or give folder= with the original pickles, parquet files, .*"
    )
    with pytest.raises(UserError, match=expected):
        load_cifar("cifar10")


@pytest.mark.parametrize(("module", "package"), [("datasets", "datasets"), ("PIL.Image", "pillow")])
def test_a_missing_package_is_named(module: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = images(tmp_path)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=f"'{module}' is not installed; install it with: pip install {package}"):
        load_cifar(folder=None if module == "datasets" else folder)


def test_a_package_that_is_broken_is_not_called_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = images(tmp_path)
    (tmp_path / "PIL").mkdir()
    (tmp_path / "PIL" / "__init__.py").write_text("")
    (tmp_path / "PIL" / "Image.py").write_text("import no_such_module\n")
    for name in [name for name in sys.modules if name.partition(".")[0] == "PIL"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    try:
        with pytest.raises(ModuleNotFoundError, match="no_such_module"):
            load_cifar(folder=folder)
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "PIL"]:
            del sys.modules[name]


def test_reading_pickles_imports_nothing_but_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = pickled(tmp_path)
    for module in ("datasets", "PIL", "PIL.Image", "pyarrow"):
        monkeypatch.setitem(sys.modules, module, None)
    assert len(load_cifar("cifar100", folder)[0]) == 15


class Hostile:
    """Runs a command when it is unpickled in the usual way."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (self.command,)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("place", ["alone", "data", "deep"])
def test_a_hostile_pickle_is_refused_and_runs_nothing(protocol: int, place: str, tmp_path: Path) -> None:
    folder, trace = pickled(tmp_path), tmp_path / "trace"
    hostile = Hostile(f"touch {trace}")
    content = {"alone": hostile, "data": {"data": hostile}, "deep": {"fine_labels": [[hostile]]}}[place]
    (folder / "train").write_bytes(pickle.dumps(content, protocol=protocol))
    with pytest.raises(UserError, match=r"'.*train' is refused: it asks for (posix|nt)\.system, not for data; get the"):
        load_cifar("cifar100", folder)
    assert not trace.exists()
    pickle.loads((folder / "train").read_bytes())
    assert trace.exists(), "the pickle was not hostile at all"


@pytest.mark.parametrize(
    "name",
    [
        "builtins eval",
        "builtins getattr",
        "numpy load",
        "numpy.core.multiarray scalar",
        "torch load",
        "__builtin__ set",
    ],
)
def test_only_the_names_of_an_array_are_known(name: str, tmp_path: Path) -> None:
    folder = pickled(tmp_path)
    module, _, function = name.partition(" ")
    (folder / "test").write_bytes(f"\x80\x02c{module}\n{function}\n.".encode("latin1"))
    with pytest.raises(UserError, match=rf"'.*test' is refused: it asks for {module}\.{function}, not for data"):
        load_cifar("cifar100", folder)


def _truncated(folder: Path) -> None:
    (folder / "train").write_bytes((folder / "train").read_bytes()[:-500])


def _rewritten(**content: Any) -> Callable[[Path], None]:
    return lambda folder: write_as_python2(folder / "train", content)


def _pickled_as(content: object) -> Callable[[Path], None]:
    return lambda folder: (folder / "train").write_bytes(pickle.dumps(content, protocol=4)) and None


def _zeros(*shape: int, dtype: str = "uint8") -> Any:
    return pytest.importorskip("numpy").zeros(shape, dtype)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "test").unlink(), r"CIFAR-100: the folder '.*' lacks test; it must hold train, test"),
        (lambda folder: (folder / "train").write_bytes(b"<html>"), "'.*train' is not a CIFAR pickle: .*; get the files again from https"),
        (_truncated, r"'.*train' is not a CIFAR pickle: "),
        (_pickled_as([1, 2]), "'.*train' is not a CIFAR pickle: TypeError: it holds no dict, but list; get"),
        (lambda folder: _pickled_as({"data": _zeros(2, 3072, dtype="float32")})(folder), r"an array must be of type uint8 \('u1'\), got 'f4'"),
        (lambda folder: _rewritten(data=_zeros(2, 3071))(folder), r"'data' in '.*train' must be an array of shape \(n, 3072\), got shape \(2, 3071\)"),
        (_rewritten(fine_labels=[1]), r"'data' in '.*train' must be an array of shape \(n, 3072\), got NoneType"),
        (lambda folder: _rewritten(data=_zeros(2, 3072), labels=[1, 2])(folder), "'.*train' must hold a list 'fine_labels', got data, labels"),
        (lambda folder: _rewritten(data=_zeros(2, 3072), fine_labels=[1, "a"])(folder), "labels of '.*train' must be whole numbers, got b'a'; save"),
        (lambda folder: _rewritten(data=_zeros(2, 3072), fine_labels=[1])(folder), "train must have as many images as labels, got 2 and 1"),
        (lambda folder: _rewritten(data=_zeros(2, 3072), fine_labels=[1, 100])(folder), "labels of train must be from 0 to 99, got 1 to 100; check that"),
    ],
)  # fmt: skip
def test_damaged_pickles_are_refused(damage: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    folder = pickled(tmp_path)
    damage(folder)
    with pytest.raises(UserError, match=message):
        load_cifar("cifar100", folder)


def test_a_pickle_that_cannot_be_opened_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = pickled(tmp_path)

    def refuse(path: Path, mode: str) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(UserError, match=r"the file '.*train' cannot be read: Permission denied"):
        load_cifar("cifar100", folder)


def test_a_folder_without_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"CIFAR-100: the folder '.*nowhere' does not exist; give a folder with the orig"
    ):
        load_cifar(folder=tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"the folder '.*' must hold the original pickles, .*; it holds nothing"):
        load_cifar(folder=tmp_path)
    for number in range(7):
        (tmp_path / f"{number}.txt").write_text("")
    with pytest.raises(UserError, match=r"it holds 0.txt, 1.txt, 2.txt, 3.txt, 4.txt and 2 more$"):
        load_cifar(folder=tmp_path)
    (tmp_path / "train").mkdir()
    (tmp_path / "test").mkdir()
    with pytest.raises(UserError, match="must hold the original pickles"):
        load_cifar(folder=tmp_path)


def test_the_other_data_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"CIFAR-10: the folder '.*' must hold .*; it holds meta, test, train"):
        load_cifar("cifar10", pickled(tmp_path))
    with pytest.raises(UserError, match=r"unknown data set 'cifar1000'; did you mean 'cifar100' or 'cifar10'.*known:"):
        load_cifar("cifar1000", tmp_path)


def test_a_missing_or_damaged_parquet_file_is_named(tmp_path: Path) -> None:
    pytest.importorskip("datasets", reason=NEEDS_DATASETS)
    parquet(tmp_path)
    test = tmp_path / "cifar100" / "test-00000-of-00001.parquet"
    test.write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"CIFAR-100: datasets.load_dataset cannot read the folder '.*': .*; save the"):
        load_cifar(folder=tmp_path)
    test.unlink()
    with pytest.raises(UserError, match=r"the folder '.*' has no test\*.parquet; put both splits there"):
        load_cifar(folder=tmp_path)


def test_wrong_columns_and_splits_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets", reason=NEEDS_DATASETS)
    given: list[Any] = [None]
    monkeypatch.setattr(datasets, "load_dataset", lambda name: given[0])
    good, path = saved(), tmp_path / "other.png"
    pytest.importorskip("PIL.Image").new("RGB", (16, 32)).save(path)
    broken = [
        (datasets.DatasetDict(train=good["train"]), "'uoft-cs/cifar100' must have the splits train and test, got train"),
        (good.rename_column("img", "pixels"), "train of '.*' must have the columns img and fine_label, got pixels, fine_"),
        (good.rename_column("fine_label", "coarse_label"), "the columns img and fine_label, got img, coarse_label"),
        (_of(datasets, img=[1, 2], fine_label=[0, 1]), "the column 'img' of '.*' must hold images: .*; save the data again"),
        (_of(datasets, img=[None, None], fine_label=[0, 1]), "the column 'img' of '.*' must hold images: "),
        (_of(datasets, img=[b"no", b"no"], fine_label=[0, 1]), "an image of 'uoft-cs/cifar100' cannot be read: .*; save"),
        (_of(datasets, img=[str(path)] * 2, fine_label=[0, 1]), "an image of '.*' must have 32 x 32 pixels, got 16 x 32"),
        (_of(datasets, img=[png(tiny("test")[0][0])] * 2, fine_label=[0, None]), "labels of '.*' must be whole numbers, got None"),
    ]  # fmt: skip
    for splits, message in broken:
        given[0] = splits
        with pytest.raises(UserError, match=message):
            load_cifar()


def _of(datasets: Any, **columns: Any) -> Any:
    made = datasets.Dataset.from_dict(columns)
    return datasets.DatasetDict(train=made, test=made)


def test_a_damaged_saved_folder_is_named(tmp_path: Path) -> None:
    pytest.importorskip("datasets", reason=NEEDS_DATASETS)
    (save_to_disk(tmp_path) / "test" / "state.json").unlink()
    with pytest.raises(
        UserError, match=r"CIFAR-100: datasets.load_from_disk cannot read the folder '.*': .*; save the"
    ):
        load_cifar(folder=tmp_path)


def test_an_image_folder_is_checked(tmp_path: Path) -> None:
    images(tmp_path)
    for path in (tmp_path / "test").rglob("*.png"):
        path.unlink()
    with pytest.raises(UserError, match="test must have as many images as labels, got 0 and 0"):
        load_cifar(folder=tmp_path)
    (tmp_path / "train" / "0" / "0000.png").write_text("no image")
    with pytest.raises(UserError, match=r"an image of '.*0000\.png' cannot be read: .*; save the data again"):
        load_cifar(folder=tmp_path)
    (tmp_path / "test" / "zebra").mkdir()
    with pytest.raises(UserError, match=r"test in '.*' has classes that train lacks: zebra"):
        load_cifar(folder=tmp_path)


# Augmentation


def one_image(n: int, train: bool = True) -> Augmented:
    """The same image `n` times, without mean and spread, so that outputs are pixels over 255."""
    x, _ = tiny("train")
    return Augmented(x[:1].repeat(n, 1, 1, 1), torch.arange(n), mean=[0, 0, 0], std=[1, 1, 1], train=train)


def all_results(x: Tensor) -> list[bytes]:
    """The 9 * 9 * 2 images that one image can become."""
    padded = torch.zeros(3, 40, 40, dtype=torch.uint8)
    padded[:, 4:36, 4:36] = x
    crops = [padded[:, top : top + 32, left : left + 32] for top in range(9) for left in range(9)]
    return [bytes(view.flatten().tolist()) for crop in crops for view in (crop, crop.flip(2))]


def pixels(image: Tensor) -> bytes:
    return bytes((image * 255).round().to(torch.uint8).flatten().tolist())


def test_unaugmented_images_are_normalised() -> None:
    x, y = tiny("train")
    data = Augmented(x, y, mean=CIFAR100_MEAN, std=CIFAR100_STD, train=False)
    assert len(data) == 15
    state = torch.get_rng_state()
    for index, (image, label) in enumerate(data):
        mean, std = torch.tensor(CIFAR100_MEAN).view(3, 1, 1), torch.tensor(CIFAR100_STD).view(3, 1, 1)
        assert image.dtype == torch.float32
        assert torch.equal(image, (x[index].float() / 255 - mean) / std)
        assert label == y[index]
    assert index == 14
    assert torch.equal(torch.get_rng_state(), state)


def test_a_crop_and_flip_is_one_of_162_and_all_of_them_come() -> None:
    torch.manual_seed(0)
    data = one_image(162 * 25)
    possible = all_results(data.x[0])
    assert len(set(possible)) == 162
    batch = data.__getitems__(list(range(len(data))))
    assert [int(label) for _, label in batch] == list(range(len(data)))
    counts = dict.fromkeys(possible, 0)
    for image, _ in batch:
        counts[pixels(image)] += 1  # a KeyError if it is none of them
    # 161 degrees of freedom: a fair draw exceeds 234 once in ten thousand times.
    assert sum((count - 25) ** 2 / 25 for count in counts.values()) < 234


def test_the_seed_decides_one_by_one_and_in_batches_alike() -> None:
    data = one_image(40)
    torch.manual_seed(3)
    batch = data.__getitems__(range(40))
    torch.manual_seed(3)
    again = data.__getitems__(range(40))
    torch.manual_seed(3)
    single = [data[index] for index in range(40)]
    other = data.__getitems__(range(40))
    for (a, _), (b, _), (c, _) in zip(batch, again, single, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)
    assert not all(torch.equal(a, b) for (a, _), (b, _) in zip(batch, other, strict=True))


def test_a_loader_takes_whole_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    data = one_image(10)
    asked: list[list[int]] = []
    whole = Augmented.__getitems__
    monkeypatch.setattr(
        Augmented, "__getitems__", lambda self, indices: asked.append(list(indices)) or whole(self, indices)
    )
    read = list(DataLoader(data, batch_size=4))
    assert asked == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert [tuple(x.shape) for x, _ in read] == [(4, 3, 32, 32), (4, 3, 32, 32), (2, 3, 32, 32)]
    assert torch.cat([y for _, y in read]).tolist() == list(range(10))


def test_the_images_themselves_stay_as_they_are() -> None:
    data = one_image(8)
    before = data.x.clone()
    for image, _ in data.__getitems__(range(8)):
        image.zero_()
    assert torch.equal(data.x, before)


IMAGES = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": IMAGES.float()}, r"Augmented: x must be uint8 of shape \(n, channels, .*, got shape \(2, 3, 32, 32\) \(torch.float32\)"),
        ({"x": IMAGES[0]}, r"Augmented: x must be uint8 of shape .*, got shape \(3, 32, 32\)"),
        ({"x": [1]}, "Augmented: x must be uint8 of shape .*, got list"),
        ({"y": torch.zeros(3)}, r"Augmented: y must be a tensor of shape \(2,\) as x has 2 images, got shape \(3,\)"),
        ({"y": [0, 1]}, "Augmented: y must be a tensor of shape .*, got list"),
        ({"mean": (0.5,)}, r"Augmented: mean and std must have one entry for each of 3 channels, .* got \(0.5,\) and \(1, 1, 1\)"),
        ({"std": (1, 0, 1)}, r"Augmented: mean and std .* std above 0, got \(0, 0, 0\) and \(1, 0, 1\)"),
    ],
)  # fmt: skip
def test_wrong_images_are_refused(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"x": IMAGES, "y": torch.zeros(2), "mean": (0, 0, 0), "std": (1, 1, 1), **change}
    with pytest.raises(UserError, match=message):
        Augmented(arguments.pop("x"), arguments.pop("y"), train=True, **arguments)


# The task


def test_the_task_is_that_of_the_published_runs(tmp_path: Path) -> None:
    task = cifar_task(folder=pickled(tmp_path), validation=4)
    assert (task.batch_size, task.epochs) == (128, 200)
    assert (size(task.train), size(task.validation), size(task.test)) == (11, 4, 5)
    assert isinstance(task.train, Augmented)
    assert isinstance(task.validation, Augmented)
    assert isinstance(task.test, Augmented)
    assert [split.train for split in (task.train, task.validation, task.test)] == [True, False, False]
    x, _ = tiny("train")
    order = torch.randperm(15, generator=torch.Generator().manual_seed(0))
    assert torch.equal(torch.cat([task.train.x, task.validation.x]), x[order])
    assert torch.equal(task.test.x, tiny("test")[0])
    again = cifar_task(folder=tmp_path, validation=4)
    assert torch.equal(again.train.x, task.train.x)
    check_fit(task)


@pytest.mark.parametrize(
    ("model", "name", "parameters"), [("resnet18", "cifar10", 11_173_962), ("wrn-28-10", "cifar100", 36_536_884)]
)
def test_the_model_of_the_task_has_its_classes(model: str, name: str, parameters: int, tmp_path: Path) -> None:
    task = cifar_task(model, name, pickled(tmp_path, name), validation=2)
    with torch.device("meta"):
        made = task.model()
    assert sum(parameter.numel() for parameter in made.parameters()) == parameters
    assert task.test.mean.flatten().tolist() == pytest.approx(
        CIFAR100_MEAN if name == "cifar100" else (0.4914, 0.4822, 0.4465)
    )


def test_a_sam_step_trains_on_the_task(tmp_path: Path) -> None:
    task = cifar_task(folder=pickled(tmp_path), validation=2)
    torch.manual_seed(0)
    model = task.model()
    optimizer = SAM(torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9), rho=0.05)
    x, y = next(batches(task.train, 4, torch.Generator().manual_seed(0)))
    before = [parameter.detach().clone() for parameter in model.parameters()]

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = task.loss(model(x), y)
        loss.backward()
        return loss

    assert optimizer.step(closure).item() > 0
    for old, new in zip(before, model.parameters(), strict=True):
        assert new.isfinite().all()
        assert not torch.equal(old, new)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"validation": 0}, "validation must be a whole number of at least 2, got 0; hyper-parameters are .*, never on test data"),
        ({"validation": 2.0}, "validation must be a whole number of at least 2, got 2.0; "),
        ({"validation": True}, "validation must be a whole number of at least 2, got True; "),
        ({"validation": 14}, "validation must leave 2 of 15 training images, got 14"),
        ({"model": "resnet81"}, "unknown model 'resnet81'; did you mean 'resnet18'.* known: resnet18, wrn-28-10"),
        ({"name": "mnist"}, "unknown data set 'mnist'; known: cifar10, cifar100"),
    ],
)  # fmt: skip
def test_wrong_arguments_of_the_task_are_refused(arguments: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder = pickled(tmp_path)
    with pytest.raises(UserError, match=message):
        cifar_task(**{"folder": folder, **arguments})
