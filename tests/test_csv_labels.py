"""Labels in a CSV file, as Kaggle, Roboflow and spreadsheets write them."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.data.base import Source
from pipeline.data.open import open_source
from pipeline.errors import DataError
from tests.conftest import class_image
from tests.helpers import fill

FILES = [f"p{n // 2}_{n}.png" for n in range(6)]
LABELS = ["cat", "dog"] * 3


def images(root: Path, below: str = "images") -> Path:
    """Six images below a folder, every second of a dog."""
    (root / below).mkdir(parents=True)
    for number, name in enumerate(FILES):
        class_image(number % 2, number).save(root / below / name)
    return root


def lines(names: list[str], separator: str = ",") -> str:
    return "".join(f"{a}{separator}{b}\n" for a, b in zip(names, LABELS, strict=True))


def read(root: Path, text: str, name: str = "labels.csv", **own: str) -> Source:
    if not (root / "images").exists():
        images(root)
    (root / name).write_text(text, encoding="utf-8")
    return open_source(str(root), root, **own)


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("file,label\n" + lines(FILES), "utf-8"),
        ("Filename; Class\n" + lines(FILES, "; "), "utf-8"),
        ("file\tlabel\n" + lines(FILES, "\t"), "utf-16"),
        (lines(FILES), "utf-8"),
        ("image_id,breed\n" + lines([name.removesuffix(".png") for name in FILES]), "utf-8-sig"),
        ("file,label\n" + lines([f"images/{name}" for name in FILES]), "utf-8"),
        ("file,label\n" + lines([f"./images/../images/{name}" for name in FILES]), "utf-8"),
        ("file,label\n" + lines([f"/home/ann/set/images/{name}" for name in FILES]), "utf-8"),
        ("file,label\n" + lines([rf"C:\set\images\{name}" for name in FILES]), "utf-8"),
        ("file,label\n" + lines([name.upper() for name in FILES]), "utf-8"),
        ("x,y,file,label\n" + lines([f"1,2,{name}" for name in FILES]), "utf-8"),
        (
            "filename, cat, dog\n"
            + "".join(f"{n}, {at % 2 ^ 1}, {at % 2}\n" for at, n in enumerate(FILES)),
            "utf-8",
        ),
    ],
)
def test_a_csv_file_is_read_as_it_is_exported(tmp_path: Path, text: str, encoding: str) -> None:
    root = images(tmp_path)
    (root / "labels.csv").write_text(text, encoding=encoding)
    source = open_source(str(root), root)
    assert source.class_names == ("cat", "dog")
    assert source.pool.labels.tolist() == [0, 1] * 3
    assert [Path(where).name for where, _ in source.pool.stored.items(range(6))] == FILES
    assert "labels are read from labels.csv" in source.notes


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty: write a line an image"),
        ('"', "is empty: write a line an image"),
        ('\n" \n"\n', "is empty: write a line an image"),
        ("file,label\n", "no line beside the names of the columns"),
        ("file\na.png\n", r"one column \(file\): write two"),
        ("file,label\n" + lines(FILES) + "zz.png,cat\n", r"1 of 7 files are not below .*zz\.png"),
        ("file,label\n" + lines([f"../{n}" for n in FILES]), "none of the 6 files .* is below"),
        ("file,label\n" + lines(FILES) + f"{FILES[0]},dog\n", "cat .*line 2.* and dog .*line 8"),
        (
            "file,label\n" + lines(FILES) + f"{FILES[0]},\n",
            r"1 of 7 rows have no label \(line 8\)",
        ),
        ("file,label\n" + lines(FILES) + "a,b,c\n", "line 8 has 3 fields, the first line has 2"),
        ("file,label\n" + lines(FILES) + "a\n", "line 8 has 1 field, .*: write what is missing"),
        (
            'file,label\na,"cat\n' + lines(FILES),
            "labels.csv: line 2: a quotation mark .* not closed",
        ),
        ("file,label\n" + lines(FILES) + 'a,"cat', "labels.csv: line 8: a quotation mark"),
        ('"file,label\n' + lines(FILES), "labels.csv: line 1: a quotation mark"),
        ('file,label\np0_0.png,"cat\np0_1.png,"dog"\n', "line 2: a quotation mark .* not closed"),
        ('file,label,split\np0_0.png,"cat,train\np0_1.png,"dog\n', "line 2: a quotation mark"),
        ('file,label\na,"cat\n' + 5_000 * lines(FILES), "line 2: a quotation mark"),
        ("file,a,b\n" + "".join(f"{n},x,y\n" for n in FILES), "columns file, a, b, of which none"),
        ("file,cat,dog\n" + "".join(f"{n},1,1\n" for n in FILES), "6 of 6 rows are of several"),
        ("file,label,label\n" + "".join(f"{n},x,y\n" for n in FILES), "two columns have one name"),
        (
            "file,label,split\n" + "".join(f"{n},cat,odd\n" for n in FILES),
            "split odd is none of train, val and test",
        ),
        (
            "file,label,split\n" + "".join(f"{n},cat,test\n" for n in FILES),
            "no row is of split train",
        ),
        ("file,label\n" + "".join(f"{n},cat\n" for n in FILES), r"only one class \(cat\)"),
    ],
)
def test_what_is_wrong_with_a_csv_file_is_told_in_one_line(
    tmp_path: Path, text: str, words: str
) -> None:
    with pytest.raises(DataError, match=words) as found:
        read(tmp_path, text)
    assert "\n" not in str(found.value)


def test_a_file_of_another_encoding_is_refused(tmp_path: Path) -> None:
    root = images(tmp_path)
    (root / "labels.csv").write_bytes(
        ("file,label\n" + lines(FILES)).replace("cat", "câté").encode("cp1252")
    )
    with pytest.raises(DataError, match=r"is not UTF-8 text .* save it as CSV UTF-8"):
        open_source(str(root), root)


def test_a_name_that_two_images_have_needs_its_folder(tmp_path: Path) -> None:
    root = images(images(tmp_path), "more")
    with pytest.raises(DataError, match=r"p0_0\.png may be .*: write the path below"):
        read(root, "file,label\n" + lines(FILES))
    source = read(root, "file,label\n" + lines([f"more/{n}" for n in FILES]))
    assert "images that labels.csv does not name, which are not read: 6" in source.notes


def test_a_missing_image_of_another_machine_is_no_image_of_the_same_name(tmp_path: Path) -> None:
    """Numbers as names: `cat/51.jpg` is not here, and `dog/51.jpg` is another picture."""
    fill(tmp_path, "cat", "dog", start=51)
    (tmp_path / "cat" / "51.png").unlink()
    (tmp_path / "dog" / "52.png").unlink()
    rows = ["cat/51.png,cat", "cat/52.png,cat", "dog/51.png,dog"]
    for before in ("/data/pets/", "C:/data/pets/"):
        text = "file,label\n" + "".join(f"{before}{row}\n" for row in rows)
        (tmp_path / "labels.csv").write_text(text)
        with pytest.raises(DataError, match=r"1 of 3 files are not below .*cat/51\.png"):
            open_source(str(tmp_path), tmp_path)


def test_folders_of_another_machine_that_were_put_together_are_found(tmp_path: Path) -> None:
    rows = zip(FILES, LABELS, strict=True)
    text = "".join(f"/data/pets/{label}/{name},{label}\n" for name, label in rows)
    assert read(tmp_path, "file,label\n" + text).pool.labels.tolist() == [0, 1] * 3


def test_a_table_of_test_images_alone_leaves_the_folders_of_classes(tmp_path: Path) -> None:
    fill(tmp_path / "train", "cat", "dog", count=3)
    (tmp_path / "test").mkdir()
    class_image(0, 9).save(tmp_path / "test" / "9.png")
    (tmp_path / "test" / "labels.csv").write_text("file,label\n9.png,cat\n")
    source = open_source(str(tmp_path), tmp_path)
    assert (source.class_names, len(source.pool.labels)) == (("cat", "dog"), 6)


def test_a_first_line_that_names_an_image_is_no_header(tmp_path: Path) -> None:
    """Not if the image is missing, nor if its class is called as columns are."""
    images(tmp_path)
    with pytest.raises(DataError, match=r"1 of 7 files are not below .*away\.png"):
        read(tmp_path, "away.png,cat\n" + lines(FILES))
    assert len(read(tmp_path, lines(FILES).replace("dog", "name")).pool.labels) == 6
    turned = sorted(lines(FILES).replace("dog", "name").splitlines(), key=lambda row: row[-4:])
    assert turned[0].endswith("cat")
    assert len(read(tmp_path, "\n".join(turned[::-1])).pool.labels) == 6


def test_a_column_of_splits_makes_splits(tmp_path: Path) -> None:
    splits = ["train", "Train", "valid", "val", "test", "test"]
    rows = zip(FILES, LABELS, splits, strict=True)
    source = read(tmp_path, "file,label,split\n" + "".join(f"{a},{b},{c}\n" for a, b, c in rows))
    assert source.val is not None
    assert source.test is not None
    assert [s.labels.tolist() for s in (source.pool, source.val, source.test)] == [[0, 1]] * 3


def test_lines_without_a_split_among_others_that_have_one_are_told(tmp_path: Path) -> None:
    splits = ["train", "", "train", "", "test", "test"]
    rows = zip(FILES, LABELS, splits, strict=True)
    source = read(tmp_path, "file,label,split\n" + "".join(f"{a},{b},{c}\n" for a, b, c in rows))
    assert len(source.pool.labels) == 4
    told = "lines of labels.csv that name no split, which count as train: 2"
    assert told in source.notes


def test_folders_of_splits_below_one_file_are_splits_and_never_trained_on_together(
    tmp_path: Path,
) -> None:
    for split in ("Train", "test"):
        images(tmp_path, split)
    rows = [f"{split}/{n},{at % 2}\n" for split in ("Train", "test") for at, n in enumerate(FILES)]
    (tmp_path / "labels.csv").write_text("file,label\n" + "".join(rows))
    source = open_source(str(tmp_path), tmp_path)
    assert source.test is not None
    for part, name in ((source.pool, "Train"), (source.test, "test")):
        assert {Path(where).parent.name for where, _ in part.stored.items(range(6))} == {name}
    images(tmp_path, "more")
    rows += [f"more/{n},{at % 2}\n" for at, n in enumerate(FILES)]
    (tmp_path / "labels.csv").write_text("file,label\n" + "".join(rows))
    together = open_source(str(tmp_path), tmp_path)
    assert together.test is None
    assert any("images in Train, test are dealt together" in note for note in together.notes)


def test_rows_of_training_folders_alone_are_one_pool_without_a_word(tmp_path: Path) -> None:
    root = images(tmp_path, "train")
    (root / "labels.csv").write_text("file,label\n" + lines([f"train/{n}" for n in FILES]))
    source = open_source(str(root), root)
    assert source.test is None
    assert source.notes == ("labels are read from labels.csv",)


@pytest.mark.parametrize(
    ("header", "number"), [("id,filename", 5), ("image_id,img_path", 5), ("filename,id", 5)]
)
def test_a_rows_number_is_no_name_of_an_image_beside_names(
    tmp_path: Path, header: str, number: int
) -> None:
    (tmp_path / "images").mkdir()
    for at in range(6):
        class_image(at % 2, at).save(tmp_path / "images" / f"{at}.png")
    first = header.startswith("filename")
    cells = [(f"{number - at}.png", f"{at}") for at in range(6)]
    rows = [(*(pair if first else pair[::-1]), LABELS[at]) for at, pair in enumerate(cells)]
    source = read(tmp_path, f"{header},label\n" + "".join(f"{','.join(row)}\n" for row in rows))
    of_images = {
        Path(where).stem: source.class_names[label]
        for (where, _), label in zip(
            source.pool.stored.items(range(6)), source.pool.labels, strict=True
        )
    }
    assert of_images == {f"{number - at}": LABELS[at] for at in range(6)}
    assert any("names the images, not" in note for note in source.notes)


def test_the_name_of_a_missing_image_is_missed_and_no_number_taken_for_it(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for at in range(6):
        class_image(at % 2, at).save(tmp_path / "images" / f"{at}.png")
    rows = [f"{at},{(at + 1) % 7}.png,{LABELS[at]}\n" for at in range(6)]  # there is no 6.png
    with pytest.raises(DataError, match=r"1 of 6 files are not below .*6\.png"):
        read(tmp_path, "id,filename,label\n" + "".join(rows))


def test_a_split_takes_the_image_in_its_own_folder_before_one_above_it(tmp_path: Path) -> None:
    for split in ("train", "test"):
        images(tmp_path, split)
        (tmp_path / split / "_classes.csv").write_text("filename,label\n" + lines(FILES))
    for at, name in enumerate(FILES):
        class_image(at % 2, at).save(tmp_path / name)
    source = open_source(str(tmp_path), tmp_path)
    assert source.test is not None
    for part, name in ((source.pool, "train"), (source.test, "test")):
        assert {Path(where).parent.name for where, _ in part.stored.items(range(6))} == {name}


def test_roboflows_folders_of_splits_are_splits(tmp_path: Path) -> None:
    for split in ("train", "valid", "test"):
        images(tmp_path, split)
        rows = "".join(f"{n}, {at % 2 ^ 1}, {at % 2}\n" for at, n in enumerate(FILES))
        (tmp_path / split / "_classes.csv").write_text(f"filename, cat, dog\n{rows}")
    source = open_source(str(tmp_path), tmp_path)
    assert source.val is not None
    assert source.test is not None
    for part, name in ((source.pool, "train"), (source.val, "valid"), (source.test, "test")):
        assert [Path(w).parent.name for w, _ in part.stored.items(range(6))] == [name] * 6


def test_labels_may_stand_elsewhere_and_columns_be_chosen(tmp_path: Path) -> None:
    root = images(tmp_path / "set")
    rows = zip(FILES, LABELS, "ababab", strict=True)
    text = "file,label,kind\n" + "".join(f"{a},{b},{c}\n" for a, b, c in rows)
    (tmp_path / "mine.csv").write_text(text)
    source = open_source(str(root), root, labels=str(tmp_path / "mine.csv"), label_column="kind")
    assert source.class_names == ("a", "b")
    with pytest.raises(DataError, match=r"labels=no\.csv: no such file"):
        open_source(str(root), root, labels="no.csv")
    with pytest.raises(DataError, match="asked for label_column=colour: choose one of these"):
        open_source(str(root), root, labels=str(tmp_path / "mine.csv"), label_column="colour")


def test_a_csv_file_about_something_else_leaves_the_folders_the_classes(tmp_path: Path) -> None:
    root = fill(tmp_path / "farm", "ant", "bee")
    (root / "labels.csv").write_text("id,name\n0,ant\n1,bee\n")
    source = open_source(str(root), tmp_path)
    assert source.class_names == ("ant", "bee")
    assert any(note.startswith("not read as labels: ") for note in source.notes)
    with pytest.raises(DataError, match="none of the 2 files in column id is below the folder"):
        open_source(str(root), tmp_path, labels="labels.csv")


def test_numbers_as_labels_are_sorted_by_size(tmp_path: Path) -> None:
    rows = "".join(f"{name},{(10, 2)[at % 2]}\n" for at, name in enumerate(FILES))
    assert read(tmp_path, f"id_code,diagnosis\n{rows}").class_names == ("2", "10")


@pytest.mark.parametrize("header", ["grade,photo\n", "label,photo\n", ""])
def test_labels_that_are_names_of_images_too_stay_labels(tmp_path: Path, header: str) -> None:
    (tmp_path / "images").mkdir()
    for number in (1, 2, 10, 11, 12, 13):
        class_image(number % 2, number).save(tmp_path / f"images/{number}.png")
    rows = "1,11.png\n2,12.png\n10,13.png\n1,1.png\n2,2.png\n10,10.png\n"
    source = read(tmp_path, header + rows)
    assert source.class_names == ("1", "2", "10")
    files = [Path(where).stem for where, _ in source.pool.stored.items(range(6))]
    labels = [source.class_names[label] for label in source.pool.labels]
    expected = {"11": "1", "12": "2", "13": "10", "1": "1", "2": "2", "10": "10"}
    assert dict(zip(files, labels, strict=True)) == expected


def test_words_for_nothing_are_names_of_classes(tmp_path: Path) -> None:
    words = ["NA", "null", "nan", "None", "N/A", "NA"]
    rows = "".join(f"{name},{word}\n" for name, word in zip(FILES, words, strict=True))
    source = read(tmp_path, f"file,label\n{rows}")
    assert set(source.class_names) == set(words)
    assert [source.class_names[label] for label in source.pool.labels] == words


def test_a_remark_of_several_lines_beside_the_label_is_no_fault(tmp_path: Path) -> None:
    rows = "".join(
        f'{a},{b},"{b}\n\n""seen"" twice"\n' for a, b in zip(FILES, LABELS, strict=True)
    )
    assert len(read(tmp_path, f"file,label,remark\n{rows}").pool.labels) == 6
    with pytest.raises(DataError, match=r"have no label \(line 20\)"):
        read(tmp_path, f"file,label,remark\n{rows}{FILES[0]},,x\n")


def test_groups_are_a_column_or_a_regular_expression(tmp_path: Path) -> None:
    rows = "".join(f"{a},{b},{a[1]}\n" for a, b in zip(FILES, LABELS, strict=True))
    by_column = read(tmp_path, f"file,label,patient\n{rows}", group="patient")
    by_path = read(tmp_path, f"file,label,patient\n{rows}", group=r"p(\d)_")
    assert by_column.pool.groups == by_path.pool.groups == ("0", "0", "1", "1", "2", "2")
    some = read(tmp_path, f"file,label,patient\n{rows}", group=r"p([01])_")
    assert some.pool.groups[:4] == ("0", "0", "1", "1")
    assert len(set(some.pool.groups)) == 4
    assert some.pool.groups[4:] == ("path images/p2_4.png", "path images/p2_5.png")
    assert any("each of which is a group of its own: 2" in n for n in some.notes)


def test_an_image_of_two_groups_is_refused(tmp_path: Path) -> None:
    rows = "".join(f"{a},{b},{a[1]}\n" for a, b in zip(FILES, LABELS, strict=True))
    first = FILES[0]
    with pytest.raises(DataError, match=r"of group 0 \(.* line 2\) and .* of group 9 \(.* line 8"):
        read(tmp_path, f"file,label,patient\n{rows}{first},{LABELS[0]},9\n", group="patient")


def test_rows_without_a_group_are_no_group_together(tmp_path: Path) -> None:
    rows = "".join(
        f"{a},{b},{'' if a[1] == '1' else a[1]}\n" for a, b in zip(FILES, LABELS, strict=True)
    )
    source = read(tmp_path, f"file,label,patient\n{rows}", group="patient")
    groups = source.pool.groups
    assert (groups[:2], groups[4:], len(set(groups))) == (("0", "0"), ("2", "2"), 4)
    assert any("each of which is a group of its own: 2" in note for note in source.notes)
    found = read(tmp_path, "file,label\n" + lines(FILES), group=r"p(?:1|(\d))_")
    assert found.pool.groups == groups


@pytest.mark.parametrize(
    ("group", "words"),
    [
        (r"x(\d)", r"matches none of 6 paths, such as images/p0_0\.png"),
        (r"p(\d", "no regular expression .* and no column"),
        (r"(p)(\d)", "holds 2 groups in brackets: leave one"),
    ],
)
def test_a_group_that_is_none_is_refused(tmp_path: Path, group: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        read(tmp_path, "file,label\n" + lines(FILES), group=group)


def test_groups_in_two_splits_of_the_datas_own_are_told(tmp_path: Path) -> None:
    for split in ("train", "test"):
        fill(tmp_path / split, "p1_ant", "p1_bee")
    source = open_source(str(tmp_path), tmp_path, group=r"(p\d)")
    assert any("1 groups stand in train and in test" in note for note in source.notes)


@pytest.mark.parametrize("key", ["labels", "group"])
def test_settings_of_folders_are_refused_for_built_in_data(tmp_path: Path, key: str) -> None:
    with pytest.raises(DataError, match=f"{key}=x: data=digits .* leave {key} out"):
        open_source("digits", tmp_path, **{key: "x"})
