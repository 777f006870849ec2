"""Samples of a run as images, arrays and film strips; latents; the script's defaults."""

import dataclasses
import json
import runpy
import shutil
import sys
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

import odelt_eqx as odelt
from odelt_eqx.commands import sample
from odelt_eqx.data import HeldOut, Shards
from odelt_eqx.data.latents import prepare_latents
from odelt_eqx.data.prepare import PrepareConfig
from odelt_eqx.evaluation.features import open_autoencoder
from odelt_eqx.evaluation.grid import GridConfig
from odelt_eqx.evaluation.measure import class_count
from odelt_eqx.evaluation.report import evaluate
from odelt_eqx.evaluation.samples import SampleRequest, _label_of, save_samples
from odelt_eqx.interop import load_autoencoder
from odelt_eqx.presets import preset
from odelt_eqx.training.load import run_config
from odelt_eqx.training.train import train
from tests.conftest import GOLDEN, golden_weight
from tests.data.makers import write_images
from tests.evaluation.conftest import train_points

pytestmark = pytest.mark.thorough

FOUR_STEPS = odelt.SampleConfig(time=odelt.FixedSteps(steps=4))
HEUN = odelt.SampleConfig(time=odelt.FixedSteps(steps=32, solver="heun"), depth=2)


def test_samples_are_a_sheet_and_arrays_and_repeat_by_seed(tiny_run, tmp_path):
    def draw(name, config=FOUR_STEPS, **changes):
        request = SampleRequest(labels=(3, 7), count=4, out=tmp_path / name, **changes)
        (sheet, arrays), _ = save_samples(tiny_run, request, config)
        assert Image.open(sheet).size[0] > 100
        return np.load(arrays)

    first, again, other = draw("a"), draw("b"), draw("c", seed=1)
    assert first["images"].shape == (4, 8, 8, 1)
    assert first["labels"].tolist() == [3, 7, 3, 7]
    np.testing.assert_array_equal(first["images"], again["images"])
    assert np.abs(first["images"] - other["images"]).max() > 0.1
    request = SampleRequest(count=9, out=tmp_path / "more")
    more = np.load(save_samples(tiny_run, request, FOUR_STEPS)[0][1])
    np.testing.assert_array_equal(more["noise"][:4], first["noise"])  # each sample has its own
    plain = draw("d", dataclasses.replace(FOUR_STEPS, depth="plain"))
    assert np.abs(first["images"] - plain["images"]).max() > 0


def name_classes(run, copy, names):
    """Return a copy of a run whose classes have other names."""
    shutil.copytree(run, copy)
    contents = json.loads((copy / "data.json").read_text())
    (copy / "data.json").write_text(json.dumps(contents | {"class_names": names}))
    return copy


def test_classes_are_asked_for_by_name(tiny_run, tmp_path):
    """A name comes before a number: in folders called 1, 2 and 10, `10` is the last one."""
    names = [*("1", "2", "10", "cat", "dog", "emu", "fox", "gnu", "hen"), "ibis"]
    run = name_classes(tiny_run, tmp_path / "run", names)
    request = SampleRequest(labels=("cat", 10, "ibis", 7), count=4, out=tmp_path / "out")
    paths, _ = save_samples(run, request, FOUR_STEPS)
    assert np.load(paths[1])["labels"].tolist() == [3, 2, 9, 7]
    for label, message in (("cta", "'cta'; did you mean cat"), (99, "names of classes; got 99")):
        with pytest.raises(odelt.InputError, match=message):
            save_samples(run, dataclasses.replace(request, labels=(label,)), FOUR_STEPS)


@pytest.mark.parametrize(
    ("first", "labels", "found"),
    [
        ("01", ("02", "10", "1"), [1, 9, None]),
        ("-1", ("02", "1"), [1, None]),
        ("a", ("2", "02", "a"), [2, 2, 0]),
    ],
)
def test_numbers_with_zeros_before_them_are_names(tiny_run, tmp_path, first, labels, found):
    """On the command line, too. A number that could be a name and a label is neither."""
    names = [first, *(f"{number:02}" for number in range(2, 11))]
    if first == "a":
        names = [*"abcdefghij"]
    run, out = name_classes(tiny_run, tmp_path / "run", names), tmp_path / "out"
    for label, expected in zip(labels, found, strict=True):
        words = ["--labels", label, "--count", "2", "--out", str(out)]
        if expected is None:
            with pytest.raises(odelt.InputError, match="no class is called '1'"):
                sample.run([str(run), *words])
            continue
        sample.run([str(run), *words])
        assert np.load(f"{out}.npz")["labels"].tolist() == [expected] * 2


def test_classes_of_one_name_are_asked_for_by_number():
    names = ("crane", "dog", "crane")
    assert [_label_of(label, names) for label in ("dog", "2", 0)] == [1, 2, 0]
    with pytest.raises(odelt.InputError, match="classes 0, 2 are called 'crane': ask by number"):
        _label_of("crane", names)


@pytest.mark.parametrize("out", [".", "..", "/"])
def test_a_path_without_a_name_is_refused_at_once(out):
    with pytest.raises(odelt.InputError, match="the path of the results without suffix"):
        SampleRequest(out=Path(out))


@pytest.mark.parametrize("renoise", [False, True])
def test_batches_make_what_one_batch_makes(tiny_run, tmp_path, renoise):
    """The last one is filled up with samples that are not kept."""

    def draw(name, batch_size):
        request = SampleRequest(
            count=7, renoise=renoise, batch_size=batch_size, out=tmp_path / name
        )
        paths, stats = save_samples(tiny_run, request, FOUR_STEPS)
        assert len(stats.accepted) == 7
        return np.load(paths[1])

    whole, parts = draw("whole", 100), draw("parts", 3)
    assert set(whole) == set(parts)
    for name in ("noise", "labels", "accepted"):
        np.testing.assert_array_equal(whole[name], parts[name])
    kept = 3 if renoise else 7  # later batches add other noise
    np.testing.assert_allclose(whole["images"][:kept], parts["images"][:kept], atol=1e-5)
    assert parts["images"].shape == whole["images"].shape


def test_other_evaluators_read_a_folder_of_images(tiny_run, tmp_path):
    run = name_classes(tiny_run, tmp_path / "run", [*"abcdefghi", "j k"])
    arrays, folder = tmp_path / "arrays", tmp_path / "images"
    request = SampleRequest(labels=("a", "j k"), count=5, batch_size=2, out=arrays)
    save_samples(run, request, FOUR_STEPS)
    request = dataclasses.replace(request, format="png", out=folder)
    paths, _ = save_samples(run, request, FOUR_STEPS)
    assert paths == [tmp_path / "images.png", folder]
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*.png")}
    assert sorted(found) == [
        *("a/000000.png", "a/000002.png", "a/000004.png"),
        *("j k/000001.png", "j k/000003.png"),
    ]
    expected = np.load(f"{arrays}.npz")["images"].clip(-1, 1)
    for path in found.values():
        shown = Image.open(path)
        assert shown.mode == "L"
        np.testing.assert_allclose(
            np.asarray(shown) / 127.5 - 1, expected[int(path.stem), ..., 0], atol=0.5 / 127.5 + 1e-6
        )
    source = odelt.data.Folder(folder, 8, 1, held_out=odelt.data.HeldOut(0.0)).open("train")
    assert source.class_names == ("a", "j k")
    with pytest.raises(odelt.InputError, match="images exists; choose another by --out"):
        save_samples(run, request, FOUR_STEPS)
    assert [path.name for path in tmp_path.glob(".*")] == []


def test_images_without_a_class_have_a_folder_of_their_own(tiny_run, tmp_path):
    file = tmp_path / "images.npz"
    np.savez(file, images=np.zeros((3, 8, 8, 1), np.uint8), labels=[0, 10, 3])
    request = SampleRequest(from_images=file, format="png", out=tmp_path / "out")
    save_samples(tiny_run, request, FOUR_STEPS)
    found = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("00000*.png")}
    assert found == {"out/0/000000.png", "out/none/000001.png", "out/3/000002.png"}


@pytest.mark.parametrize("names", [["../a", "b/c"], ["A", "a"], ["", "b"], [".", "b"]])
def test_no_name_of_a_class_leads_out_of_the_folder(tiny_run, tmp_path, names):
    run = name_classes(tiny_run, tmp_path / "run", [*names, *"23456789"])
    request = SampleRequest(count=2, format="png", out=tmp_path / "out")
    save_samples(run, request, FOUR_STEPS)
    found = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("00000*.png")}
    assert found == {"out/0/000000.png", "out/1/000001.png"}


def test_a_file_as_adm_writes_it(tiny_run, tmp_path):
    request = SampleRequest(count=5, batch_size=2, out=tmp_path / "arrays")
    save_samples(tiny_run, request, FOUR_STEPS)
    request = dataclasses.replace(request, format="adm", out=tmp_path / "adm")
    paths, _ = save_samples(tiny_run, request, FOUR_STEPS)
    file, arrays = np.load(paths[1]), np.load(tmp_path / "arrays.npz")
    assert (file["arr_0"].dtype, file["arr_0"].shape) == (np.uint8, (5, 8, 8, 3))
    expected = np.broadcast_to(arrays["images"].clip(-1, 1), (5, 8, 8, 3))
    np.testing.assert_allclose(file["arr_0"] / 127.5 - 1, expected, atol=0.5 / 127.5 + 1e-6)
    np.testing.assert_array_equal(file["arr_1"], arrays["labels"])


def test_points_are_no_images(moons, tmp_path):
    for form in ("png", "adm"):
        with pytest.raises(odelt.InputError, match=r"1 or 3 channels; got samples of shape \(2,\)"):
            save_samples(moons, SampleRequest(format=form, out=tmp_path / "out"))
    with pytest.raises(odelt.InputError, match="a trajectory is written as arrays"):
        SampleRequest(format="adm", trajectory=(0.5,))
    assert not any(tmp_path.iterdir())


def test_a_film_strip_and_the_way_back_from_images(tiny_run, tmp_path):
    request = SampleRequest(count=4, trajectory=(0.0, 0.5, 1.0), out=tmp_path / "out")
    paths, _ = save_samples(tiny_run, request, HEUN)
    assert [path.name for path in paths] == ["out.png", "out.npz", "out-strip.png"]
    first = np.load(paths[1])
    assert first["states"].shape == (3, 4, 8, 8, 1)
    np.testing.assert_allclose(first["states"][0], first["noise"], atol=1e-6)
    width, height = Image.open(paths[2]).size
    assert width < height  # a row per sample, a column per time

    back = SampleRequest(from_images=paths[1], out=tmp_path / "back")
    second = np.load(save_samples(tiny_run, back, HEUN)[0][1])
    np.testing.assert_allclose(second["noise"], first["noise"], atol=1e-2)
    np.testing.assert_allclose(second["images"], first["images"], atol=1e-2)
    np.testing.assert_array_equal(second["labels"], first["labels"])

    other = dataclasses.replace(back, labels=(7,), out=tmp_path / "other")
    arrays = np.load(save_samples(tiny_run, other, HEUN)[0][1])
    assert arrays["labels"].tolist() == [7] * 4


@pytest.mark.parametrize(("labels", "count"), [((), 100), ((3,), 100), (tuple(range(9)) * 4, 36)])
def test_a_sheet_fits_a_screen(tiny_run, tmp_path, labels, count):
    request = SampleRequest(labels=labels, count=count, out=tmp_path / "sheet")
    config = odelt.SampleConfig(depth=2)
    width, height = Image.open(save_samples(tiny_run, request, config)[0][0]).size
    assert 200 < width <= 640
    assert 100 < height <= 1280


@pytest.mark.parametrize("content", [b"", b"PK nonsense"])
def test_a_file_without_images_is_one_line(tiny_run, tmp_path, content):
    path = tmp_path / "images.npz"
    path.write_bytes(content)
    for file in (path, tmp_path / "nothing.npz"):
        with pytest.raises(odelt.InputError, match="is not a file of images and labels to start"):
            save_samples(tiny_run, SampleRequest(from_images=file))


IMAGES = np.zeros((4, 8, 8, 1), np.float32)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.full_like(IMAGES, np.nan), [0] * 4, "images that are not finite"),
        (np.full(IMAGES.shape, 1e300), [0] * 4, "images that are not finite"),
        (IMAGES.astype(np.int16), [0] * 4, "expected bytes or floats, and integers"),
        (IMAGES, [3.7] * 4, "expected bytes or floats, and integers"),
        (IMAGES, [0, 1, 2, 2**33], "labels 0 to 8589934592, not 0 to 10"),
        (IMAGES, [0, 1, 2, -1], "labels -1 to 2, not 0 to 10"),
        (IMAGES, [0] * 5, r"this network makes images of \(8, 8, 1\)"),
        (IMAGES[:0], [], r"this network makes images of \(8, 8, 1\)"),
        (IMAGES[:, :4], [0] * 4, r"this network makes images of \(8, 8, 1\)"),
    ],
)
def test_images_to_start_from_that_mean_nothing_are_refused(
    tiny_run, tmp_path, images, labels, message
):
    np.savez(tmp_path / "a.npz", images=images, labels=np.asarray(labels))
    with pytest.raises(odelt.InputError, match=message):
        save_samples(tiny_run, SampleRequest(from_images=tmp_path / "a.npz"))


def test_bytes_to_start_from_are_scaled_as_training_data_are(tiny_run, tmp_path):
    pixels = np.arange(256, dtype=np.uint8).reshape(4, 8, 8, 1)
    noises = []
    for name, images in {"bytes": pixels, "floats": pixels.astype(np.float32) / 127.5 - 1}.items():
        np.savez(tmp_path / f"{name}.npz", images=images, labels=np.arange(4))
        request = SampleRequest(from_images=tmp_path / f"{name}.npz", out=tmp_path / f"{name}-out")
        noises.append(np.load(save_samples(tiny_run, request)[0][1])["noise"])
    np.testing.assert_allclose(*noises, atol=1e-5)


def test_vectors_are_points_and_come_back(moons, tmp_path):
    request = SampleRequest(count=6, trajectory=(0.5, 1.0), out=tmp_path / "out")
    paths, stats = save_samples(moons, request)
    assert stats.evaluations.tolist() == [3] * 6  # as the run's config says
    arrays = np.load(paths[1])
    assert arrays["vectors"].shape == (6, 2)
    assert arrays["labels"].tolist() == [0, 1] * 3
    for path in (paths[0], paths[2]):
        assert np.asarray(Image.open(path).convert("L")).std() > 1
    back = SampleRequest(from_images=paths[1], out=tmp_path / "back")
    again = np.load(save_samples(moons, back)[0][1])
    np.testing.assert_allclose(again["vectors"], arrays["vectors"], atol=0.1)


def test_a_network_without_conditions_is_sampled(checkerboard, tmp_path):
    paths, _ = save_samples(checkerboard, SampleRequest(count=3, out=tmp_path / "out"))
    assert np.load(paths[1])["vectors"].shape == (3, 2)


def test_a_run_that_never_learned_its_labels_asks_for_none(script, tmp_path):
    """A row of the table of labels that no gradient has reached is never read."""
    run = train_points(tmp_path / "run", odelt.SampleConfig(), "moons", 2, class_dropout=1.0)
    model, out = odelt.load(run), tmp_path / "out"
    paths, _ = save_samples(run, SampleRequest(count=4, out=out))
    arrays = np.load(paths[1])
    assert arrays["labels"].tolist() == [0] * 4
    embedding = lambda model: model.condition_embedding.condition.weight
    spoiled = eqx.tree_at(embedding, model, embedding(model).at[:2].set(np.nan))
    for labels in (None, [0, 1, 0, 1]):
        samples = odelt.sample(
            spoiled, jnp.asarray(arrays["noise"]), labels, run_config(run).sample
        )
        np.testing.assert_allclose(samples, arrays["vectors"], rtol=1e-6)
    assert class_count(run_config(run).model) == 1  # no class accuracy, no columns of classes
    status, _, errors = script(run, "--labels", 1, "--out", out)
    assert status != 0
    assert errors.endswith("error: this run was trained without its conditions: leave out labels\n")


@pytest.fixture
def script(monkeypatch, capfd):
    """Run scripts/sample.py in this process; return its exit status, output and errors."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["sample.py", *map(str, words)])
        status = 0
        try:
            path = Path(__file__).parents[2] / "scripts" / "sample.py"
            runpy.run_path(str(path), run_name="__main__")
        except SystemExit as end:
            status = end.code or 0
        return status, *capfd.readouterr()

    return run


def test_the_script_samples_as_the_config_of_the_run_says(script, moons, tmp_path):
    words = ("--count", 2, "--out", tmp_path / "out")
    for order in ((moons, *words), (*words, moons)):
        status, out, _ = script(*order)
        assert status == 0
        assert "time steps per sample: 3\n" in out
        assert "depth reached per sample: 1\n" in out
    status, out, _ = script(moons, *words, "--depth", 2, "time:adaptive", "--time.rtol", "1e-2")
    assert status == 0
    assert "depth reached per sample: 2\n" in out
    status, out, _ = script(moons, "--help")
    assert "(default: 1)" in out
    status, _, errors = script("--out", moons, moons.parent)
    assert status == 2
    assert "give the run folder first" in errors


def test_a_budget_excludes_other_settings(script, moons):
    status, _, errors = script(moons, "--budget-ms", 1, "--depth", 2)
    assert status == 2
    assert "budget_ms chooses time, length, depth and guidance: leave them out" in errors
    status, _, errors = script(moons, "--budget-ms", 1)
    assert status == 2
    assert "there is no grid" in errors


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory):
    """The recorded tiny autoencoder as diffusers lays it out: 4 channels, a half of the size."""
    file, folder = np.load(GOLDEN / "autoencoder_tiny.npz"), tmp_path_factory.mktemp("vae")
    weights = {n: golden_weight(n, s) for n, s in json.loads(str(file["names"])).items()}
    safetensors.numpy.save_file(weights, folder / "diffusion_pytorch_model.safetensors")
    (folder / "config.json").write_text(str(file["config"]))
    return str(folder)


@pytest.fixture(scope="module")
def latent_run(autoencoder, tmp_path_factory):
    """The preset `imagenet-b`, made small, trained on the latents of a folder of images."""
    folder = tmp_path_factory.mktemp("latents")
    size = 4 * load_autoencoder(autoencoder).config.reduction
    images = write_images(folder / "images", count=60, size=(size, size))
    shaped = PrepareConfig(size=size, workers=1, held_out=HeldOut(0.3))
    prepare_latents(images, folder / "shards", shaped, load_autoencoder(autoencoder))
    base = preset("imagenet-b")
    small = {"hidden_size": 16, "num_heads": 2, "depth": 2, "depth_min": 2, "depth_group": 2}
    model = dataclasses.replace(base.model, image_size=4, patch_size=2, num_classes=2, **small)
    data = Shards(folder / "shards")
    config = dataclasses.replace(base, model=model, data=data, steps=1, batch_size=16)
    train(config, folder / "run")
    return folder / "run"


def test_latents_are_decoded(latent_run, autoencoder, tmp_path):
    request = SampleRequest(count=3, autoencoder=autoencoder, out=tmp_path / "samples")
    save_samples(latent_run, request)
    network = load_autoencoder(autoencoder)
    with np.load(tmp_path / "samples.npz") as arrays:
        assert arrays["latents"].shape == (3, 4, 4, 4)
        expected = eqx.filter_jit(network.decode)(jax.numpy.asarray(arrays["latents"]))
        np.testing.assert_allclose(arrays["images"], expected, atol=1e-4)


@pytest.mark.filterwarnings("ignore:.*samples do not determine")
def test_a_grid_of_latents_measures_their_images(latent_run, autoencoder, tmp_path):
    config = GridConfig(steps=(1,), count=24, batch_size=12, autoencoder=autoencoder)
    evaluate(latent_run, config, tmp_path)
    grid = json.loads((tmp_path / "grid.json").read_text())
    side = 4 * load_autoencoder(autoencoder).config.reduction
    assert grid["shape"] == [side, side, 3]
    assert grid["rows"][0]["quality"]["frechet"] > grid["bounds"]["real"]["frechet"]
    assert "--autoencoder AUTOENCODER" in (tmp_path / "report.html").read_text()


def test_an_autoencoder_of_other_latents_is_refused(autoencoder):
    with pytest.raises(
        odelt.InputError, match=r"latents of 4 channels; .* makes shape \(8, 8, 1\)"
    ):
        open_autoencoder(autoencoder, preset("digits").model.shape)
