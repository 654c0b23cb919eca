"""The report needs only the run folder, shows every picture with its numbers, and escapes HTML."""

import contextlib
import re
import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import TINY
from PIL import Image
from sklearn.metrics import classification_report, confusion_matrix, f1_score
from torchvision.models import squeezenet1_1

from fer import CLASSES, cli, comparison, metrics
from fer.commands.report import calibration
from fer.page import Part, write_page
from fer.run import overrides_of_run

SHORT = [*TINY, "train.epochs=2"]
PICTURES = [
    "curves",
    "confusion",
    "per_class",
    "recalls",
    "calibration",
    "mistakes",
    "samples",
    "schedules",
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a run."""
    folder = tmp_path_factory.mktemp("trained")
    with contextlib.chdir(folder):
        assert cli.main(["train", *SHORT, "run=r"]) == 0
    return folder / "r"


@pytest.fixture
def run(fer, trained, tmp_path):
    """A copy of that run: r, in the folder where `fer` runs."""
    shutil.copytree(trained, tmp_path / "r")
    return tmp_path / "r"


def test_a_report_is_a_page_with_every_picture_and_the_numbers_behind_it(fer, run):
    code, out, err = fer("report", "run=r", "format=svg")
    assert code == 0 and "open:\n  r/report/index.html" in out, err
    made = {path.name for path in (run / "report").iterdir()}
    numbers = {f"{name}.{kind}" for name in PICTURES for kind in ("png", "svg", "csv")}
    assert made == numbers | {"index.html", "classification_report.txt"}
    page = (run / "report" / "index.html").read_text()
    assert page.count("data:image/png;base64,") == len(PICTURES)
    assert not re.findall(r"(?:src|href)=\"(?!data:|#)", page)  # nothing from a network
    assert "fer.models.convnet.ConvNet" in page and "head.logits" in page


def test_the_numbers_equal_scikit_learns(fer, run):
    fer("report", "run=r")
    found = torch.load(run / "best.pt", weights_only=True)["validation"]
    labels, predicted = found["labels"].numpy(), found["logits"].argmax(1).numpy()
    matrix = pd.read_csv(run / "report" / "confusion.csv")
    assert (
        matrix[list(CLASSES)].to_numpy() == confusion_matrix(labels, predicted, labels=range(7))
    ).all()
    text = classification_report(
        labels, predicted, labels=range(7), target_names=CLASSES, digits=4, zero_division=0
    )
    assert (run / "report" / "classification_report.txt").read_text() == text
    history = pd.read_csv(run / "history.csv")
    best = history.loc[history["val_accuracy"].idxmax()]
    recalls = [(predicted[labels == c] == c).mean() for c in range(7)]
    assert best[[f"val_recall_{name}" for name in CLASSES]].tolist() == pytest.approx(
        recalls, abs=1e-5
    )
    mistakes = pd.read_csv(run / "report" / "mistakes.csv")
    assert (mistakes["prediction"] != mistakes["truth"]).all()
    sure = torch.softmax(found["logits"], 1).max(1).values.numpy()
    assert mistakes["confidence"][0] == pytest.approx(sure[labels != predicted].max(), abs=1e-5)


def test_a_report_does_without_the_file_that_the_weights_came_from(fer, tmp_path):
    torch.save(squeezenet1_1(weights=None).state_dict(), tmp_path / "theirs.pth")
    model = [
        "model=torchvision",
        "model.name=squeezenet1_1",
        "model.weights=theirs.pth",
        "train.epochs=1",
    ]
    assert fer("train", *SHORT[:2], "device=cpu", *model, "run=r")[0] == 0
    (tmp_path / "theirs.pth").unlink()
    for words in (["run=r"], ["run=[r,r]"]):
        code, _, err = fer("report", *words)
        assert code == 0, err


def test_a_report_needs_the_run_folder_alone_save_for_faces(fer, fer2013_csv, tmp_path):
    assert fer("train", f"data.path={fer2013_csv}", *SHORT[2:], "run=r")[0] == 0
    shutil.rmtree(fer2013_csv.parent)
    shutil.move(tmp_path / "r", tmp_path / "elsewhere")
    code, _, err = fer("report", "run=elsewhere")
    assert code == 0, err
    made = {path.stem for path in (tmp_path / "elsewhere" / "report").glob("*.png")}
    assert made == set(PICTURES) - {"mistakes", "samples"}
    page = (tmp_path / "elsewhere" / "report" / "index.html").read_text()
    assert f"left out: data.path={fer2013_csv}: no such folder" in page


def test_faces_with_the_same_labels_but_other_pixels_are_not_shown(fer, fer2013_csv, tmp_path):
    assert fer("train", f"data.path={fer2013_csv}", *SHORT[2:], "run=r")[0] == 0
    header, *rows = fer2013_csv.read_text().splitlines()
    (tmp_path / "other").mkdir()
    copy = tmp_path / "other" / "fer2013.csv"
    copy.write_text("\n".join([header, *(row.replace(" 7 ", " 8 ") for row in rows)]) + "\n")
    code, _, err = fer("report", "run=r", f"data.path={copy}")
    assert code == 2 and "the data is not what the run was validated on" in err
    copy.write_text("\n".join([header, *rows]) + "\n")
    code, _, err = fer("report", "run=r", f"data.path={copy}")
    assert code == 0 and (tmp_path / "r/report/mistakes.png").is_file(), err


def test_runs_of_a_limit_show_their_faces_and_other_faces_do_not_compare(fer, tmp_path):
    sweep = ["-m", "hydra.sweep.dir=s", "model.head=[4],[5]", "data.limit=20"]
    assert fer("train", "data=demo", "data.images=200", *SHORT[2:], *sweep)[0] == 0
    assert (
        fer("report", "run=s/0")[0] == 0
        and (tmp_path / "s" / "0" / "report" / "samples.png").is_file()
    )
    assert fer("train", *SHORT, "run=all", "name=all")[0] == 0
    code, out, err = fer("report", "run=[s,all]", "out=c")
    assert code == 0 and "not all runs have the same validation faces and labels" in out, err
    code, out, err = fer("report", "run=s", "out=c")
    assert code == 0 and list(pd.read_csv("c/comparison.csv")["run"]) == [
        "model.head=[4]",
        "model.head=[5]",
    ], err
    assert fer("train", *SHORT, "run=t", "augment=none", "optim=sgd", "optim.lr=0.01")[0] == 0
    code, out, _ = fer("report", "run=[s/0,t]", "out=c")
    assert code == 0 and "c/index.html: replacing the one from" in out
    first, second = pd.read_csv("c/comparison.csv")["run"]
    assert first == "data.images=200 model.head=[4] data.limit=20" and second.startswith(
        "data.images=141 model.head=[8] augment=none"
    )


def test_the_pictures_of_explain_are_on_the_page(fer, run):
    assert fer("explain", "ckpt=r", "image=0", "layers=[]", "device=cpu")[0] == 0
    assert fer("report", "run=r", "format=svg")[0] == 0
    assert (run / "report" / "explain_saliency.png").read_bytes() == (
        run / "explain" / "saliency.png"
    ).read_bytes()
    assert "Explained: ideal_faces" in (run / "report" / "index.html").read_text()


def test_html_in_names_is_shown_as_text(fer, tmp_path):
    name = "<script>alert(1)</script>"
    assert fer("train", *SHORT, "run=r", f'name="{name}"')[0] == 0
    assert fer("report", "run=r")[0] == 0
    assert fer("report", "run=[r,r]")[0] == 0
    for page in (tmp_path / "r" / "report" / "index.html", tmp_path / "comparison" / "index.html"):
        text = page.read_text()
        assert name not in text and "&lt;script&gt;alert(1)&lt;/script&gt;" in text


def test_a_run_that_is_not_there_is_refused_by_its_name(fer, run):
    for named in ("typo", "r/typo"):
        code, _, err = fer("report", f"run={named}")
        assert code == 2 and f"{named}: no such checkpoint" in err


def test_a_checkpoint_without_predictions_is_refused(fer, run):
    shutil.copy(run / "last.pt", run / "best.pt")
    code, _, err = fer("report", "run=r")
    assert code == 2 and "holds no validation predictions" in err and err.count("\n") == 1


@pytest.mark.parametrize("text", ["", "epoch,lr\n1,0.1\n", "{words}"])
def test_a_foreign_history_is_refused(fer, run, text):
    words = re.sub(r"(?m)^1,[^,]*", "1,fast", (run / "history.csv").read_text())
    (run / "history.csv").write_text(text.format(words=words))
    for runs in ("r", "[r,r]"):
        code, _, err = fer("report", f"run={runs}")
        assert code == 2 and "r/history.csv: " in err and err.count("\n") == 1


def test_runs_of_a_sweep_are_named_by_their_overrides_and_seeds_share_a_row(fer, tmp_path):
    sweep = ["-m", "hydra.sweep.dir=s", "optim=adam,sgd", "seed=0,1"]
    code, out, _ = fer("train", *SHORT, *sweep)
    assert code == 0 and out.rstrip().endswith("fer report run=s")
    code, out, err = fer("report", "run=s", "out=c")
    assert code == 0, err
    table = pd.read_csv("c/comparison.csv")
    assert list(table["run"]) == ["optim=adam", "optim=sgd"] and list(table["seeds"]) == [2, 2]
    best = [
        pd.read_csv(tmp_path / "s" / str(i) / "history.csv")["val_accuracy"].max() for i in (0, 1)
    ]
    assert table["val_accuracy"][0] == pytest.approx(np.mean(best), abs=1e-4)
    assert table["sd"][0] == pytest.approx(np.std(best, ddof=1), abs=1e-4)
    assert f"2 seeds: {np.mean(best):.4f} ± {np.std(best, ddof=1):.4f} (sd) of optim=adam" in out
    assert "they differ in optim, optim.lr, optim.weight_decay\n" in out
    assert "amsgrad" not in out + (tmp_path / "c" / "index.html").read_text()
    assert "not comparable" not in out
    runs = pd.read_csv("c/runs.csv")
    assert list(runs["run"]) == [f"s/{i}" for i in range(4)] and list(runs["seed"]) == [0, 1, 0, 1]
    recalls = pd.read_csv("c/recalls.csv")
    matrices = [torch.load(f"s/{i}/best.pt", weights_only=True)["validation"] for i in (0, 1)]
    happy = torch.cat([own["logits"].argmax(1)[own["labels"] == 3] for own in matrices])
    assert recalls["happy"][0] == pytest.approx((happy == 3).double().mean().item(), abs=1e-4)
    assert (tmp_path / "c" / "confusions.png").is_file()

    shutil.copytree("s/0", "s/again")
    assert "seeds: " not in fer("report", "run=[s/0,s/again,s/0/last.pt]", "out=d")[1]
    assert pd.read_csv("d/comparison.csv")["run"].is_unique


def test_settings_that_differ_late_in_a_long_value_tell_runs_apart(fer):
    for end in (3, 4):
        head = ",".join(["2"] * 40 + [str(end)])
        assert fer("train", *SHORT, f"model.head=[{head}]", f"run=r{end}")[0] == 0
    code, out, err = fer("report", "run=[r3,r4]", "out=c")
    assert code == 0 and "they differ in model.head\n" in out, err
    names = list(pd.read_csv("c/comparison.csv")["run"])
    assert [name[-3:] for name in names] == [",3]", ",4]"]
    labels = list(pd.read_csv("c/recalls.csv")["run"])
    assert labels[0] != labels[1] and all(len(label) <= comparison.LABEL_LENGTH for label in labels)
    assert all(label in out for label in labels)


def test_long_names_are_shortened_to_different_ones_and_a_long_word_keeps_its_ends():
    middle = [f"optim.lr={'1' * 50} model.width={i} train.epochs={'2' * 50}" for i in range(12)]
    names = ["x" * 200, "vgg13 optim=adam", *middle]
    labels = comparison.shortened(names)
    assert len(set(labels)) == len(names) and max(map(len, labels)) <= comparison.LABEL_LENGTH
    assert labels[1] == names[1] and labels[0].startswith("xxx") and labels[0].endswith("xxx")
    assert comparison.cut("y" * 200) == "y" * (comparison.LABEL_LENGTH - 1) + "…"


def test_runs_are_named_after_their_networks_or_settings(fer, tmp_path):
    assert fer("train", *SHORT, "run=a")[0] == 0
    theirs = ["data=demo", "data.images=141", "device=cpu", "train.epochs=2", "model=torchvision"]
    assert fer("train", *theirs, "model.name=squeezenet1_1", "run=b")[0] == 0
    assert fer("train", *SHORT, "optim=sgd", "run=c")[0] == 0
    code, _, err = fer("report", "run=[a,b]", "out=o")
    assert code == 0 and list(pd.read_csv("o/comparison.csv")["run"])[1] == "squeezenet1_1", err

    for name in "ac":
        (tmp_path / name / "environment.yaml").unlink()
    code, _, err = fer("report", "run=[a,c]", "out=o")
    first, second = pd.read_csv("o/comparison.csv")["run"]
    assert (
        code == 0 and first.startswith("dnn optim=Muon") and second.startswith("dnn optim=SGD")
    ), err


def test_a_damaged_record_of_the_command_is_ignored(fer, run, tmp_path):
    for number, text in enumerate(
        (
            "",
            "[",
            "- 1",
            "command: 3",
            "{command: fer train, typed: [1]}",
            "command: fer train 'optim",
            "x: !!timestamp x\ncommand: fer train optim=adam",
            'x: !!int ""\ncommand: fer train optim=adam',
            "command: fer train optim=adam\nx: " + "-" * 1_000_000,
        )
    ):
        copy = tmp_path / "damaged" / str(number)
        shutil.copytree(run, copy)
        (copy / "environment.yaml").write_text(text)
        assert overrides_of_run(copy) is None
    code, _, err = fer("report", "run=damaged/*", "out=o")
    assert code == 0, err
    assert len(pd.read_csv("o/runs.csv")) == 9
    assert fer("report", "run=damaged/1")[0] == 0


def test_records_that_are_no_text_are_kept_and_shown_as_far_as_they_go(fer, run):
    for name in ("environment.yaml", "evaluations.csv"):
        (run / name).write_bytes(b"\xff\nx\n")
    code, _, err = fer("report", "run=r")
    assert code == 0, err
    code, _, err = fer("train", "resume=r", "train.epochs=9")
    assert code == 0, err
    assert (run / "environment.yaml").read_bytes().startswith(b"\xff\nx\n---\nstarted: ")


def set_predictions(path, logits, labels):
    contents = torch.load(path, weights_only=True)
    contents["validation"] = {"logits": logits, "labels": labels, "images": "0"}
    torch.save(contents, path)


def test_absent_classes_are_in_no_mean_and_rare_ones_in_no_list(fer, run, tmp_path):
    labels = torch.tensor([0] * 40 + [1] * 4 + [3] * 40)
    predicted = torch.tensor([0] * 30 + [3] * 10 + [1] * 2 + [3] * 2 + [3] * 40)
    set_predictions(run / "best.pt", torch.eye(7)[predicted] * 5, labels)
    code, out, err = fer("report", "run=r")
    assert code == 0, err
    macro = f"{f1_score(labels, predicted, average='macro'):.4f}"
    assert f"macro F1 {macro}" in out and re.search(rf"macro avg .* {macro} ", out)
    assert "angry → happy 25 % (10); too few faces to tell: disgust 4" in out
    page = (tmp_path / "r" / "report" / "index.html").read_text()
    assert (
        "so in no mean: fear, sad, surprise, neutral" in page
        and "Evaluated on PrivateTest" not in page
    )
    assert "left out: the data is not what the run was validated on" in page


def test_overfitting_and_collapse_are_described_in_words(fer, run):
    history = pd.read_csv(run / "history.csv")
    history.assign(train_accuracy=0.9, val_accuracy=0.4).to_csv(run / "history.csv", index=False)
    set_predictions(run / "best.pt", torch.eye(7)[[3] * 21], torch.arange(21) % 7)
    assert fer("report", "run=r")[0] == 0
    page = (run / "report" / "index.html").read_text()
    assert (
        "training accuracy is 90.0 % and validation accuracy 40.0 %" in page
        and "All faces are labeled happy" in page
    )
    history.assign(train_accuracy=0.5, val_accuracy=0.4).to_csv(run / "history.csv", index=False)
    assert fer("report", "run=r")[0] == 0
    assert "Overfitting" not in (run / "report" / "index.html").read_text()


def test_calibration_is_shown_on_faces_that_did_not_choose_the_temperature():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 7, (400,), generator=generator)
    logits = 6 * torch.eye(7)[labels] + 4 * torch.randn(400, 7, generator=generator)
    logits[1::2] = (
        torch.eye(7)[labels[1::2]] * 0.1
    )  # right, and not sure: another temperature would suit these
    part = calibration(logits, labels)
    chosen = metrics.temperature(logits[::2], labels[::2])
    before, after = (
        metrics.ece((logits[1::2] / scale).softmax(1), labels[1::2]) for scale in (1, chosen)
    )
    assert part.data.groupby("temperature")["count"].sum().tolist() == [200, 200]
    assert f"temperature of {chosen:.2f}" in part.lines[0] and after > before
    assert f"does not fall ({100 * before:.1f} % → {100 * after:.1f} %)" in part.lines[1]
    assert len(calibration(logits[::2], labels[::2]).lines) == 1
    calibration(logits[:1], labels[:1])


def test_the_page_has_a_list_of_contents_and_saliency_leads(fer, run):
    (run / "explain").mkdir()
    for name in ("features.conv1", "kernels", "saliency"):
        shutil.copy(draw(run / "picture.png"), run / "explain" / f"{name}.png")
    assert fer("report", "run=r")[0] == 0
    page = (run / "report" / "index.html").read_text()
    titles = re.findall(r"<h2>(.*?)</h2>", page)
    assert re.findall(r'<li><a href="#part\d+">(.*?)</a>', page) == titles
    assert page.index("Explained: saliency") < page.index("Explained: features.conv1")
    assert {f"part{i + 1}" for i in range(len(titles))} == {*re.findall(r'id="(part\d+)"', page)}


def draw(path):
    Image.new("L", (30, 20)).save(path)
    return path


@pytest.mark.slow
def test_a_browser_shows_the_pages_without_an_error(fer, run, tmp_path):
    """Headless Chromium: no console message, every picture loaded, the table sorts, nothing wider
    than a phone.
    """
    rows = [["run", "accuracy"], ["a", "0.5"], ["b", "0.25"], ["c", "0.75"]]
    write_page(run, "three runs", (), [Part("Runs", table=rows)], "png")
    fer("report", "run=r")
    script = """<script>addEventListener("load", () => {
      const seen = [...document.images].map(i => i.complete && i.naturalWidth > 0);
      document.querySelectorAll(".sortable button")[1]?.click();
      const cells = [...document.querySelectorAll("tbody td:first-child")];
      const order = cells.map(c => c.textContent).join("");
      const wide = document.documentElement.scrollWidth > innerWidth;
      const count = `${seen.filter(x => x).length}/${seen.length}`;
      document.title = `pictures ${count} order ${order} wide ${wide}`;
    })</script>"""
    expected = {
        run / "report" / "index.html": "pictures 8/8 order  wide false",
        run / "index.html": "pictures 0/0 order bac wide false",
    }
    chromium = (
        shutil.which("chromium")
        or shutil.which("chromium-browser")
        or shutil.which("google-chrome")
    )
    assert chromium, "needs chromium on the path"
    for page, title in expected.items():
        copy = tmp_path / "page.html"
        copy.write_text(page.read_text() + script)
        flags = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-background-networking",
            "--no-first-run",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--window-size=500,900",
            "--enable-logging=stderr",
        ]
        done = subprocess.run(
            [chromium, *flags, "--dump-dom", copy.as_uri()],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert f"<title>{title}</title>" in done.stdout
        assert "CONSOLE" not in done.stderr


def test_validation_on_a_test_split_is_mentioned_in_run_and_report(fer, tmp_path):
    for split in ("train", "test"):
        for label, name in enumerate(CLASSES):
            folder = tmp_path / "faces" / split / name
            folder.mkdir(parents=True)
            for number in range(3):
                shade = 20 * label + 5 * number + (split == "test")
                Image.new("L", (48, 48), shade).save(folder / f"{number}.png")
    args = [
        "data.path=faces",
        "data.validation=test",
        "model=dnn",
        "model.head=[4]",
        "train.epochs=1",
        "device=cpu",
    ]
    code, out, err = fer("train", *args, "run=r")
    assert code == 0 and "data.validation=test: the test faces select the epoch" in out, err
    assert fer("report", "run=r")[0] == 0
    assert (
        "data.validation=test: the test faces chose the epoch"
        in (tmp_path / "r/report/index.html").read_text()
    )
    code, out, err = fer("train", *args[:1], *args[2:], "data.fraction=0.4", "run=other")
    assert code == 0 and "data.validation=test" not in out, err
