"""CSV files: numbers, categories, missing values, headers, and errors that name line and column."""

import gzip
import pickle

import numpy as np
import pytest

import treepie as tp

FRUIT = """weight,color,size,fruit
150,red,2,apple
120,yellow,1.5,lemon
1e2,green,,lime
 160 , red ,3,apple
"""


@pytest.fixture
def load(tmp_path):
    """Return a function that loads a text as a CSV file."""

    def call(text, *args, name="data.csv", **kwargs):
        file = tmp_path / name
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        return tp.datasets.load_csv(file, *args, **kwargs)

    return call


def same(a, b):
    np.testing.assert_array_equal(np.asarray(a), b)


def test_numbers_and_categories(load):
    table = load(FRUIT, "fruit", missing="fill")
    assert table.columns == ("weight", "color=green", "color=red", "color=yellow", "size")
    assert table.classes == ("apple", "lemon", "lime")
    assert (table.x.dtype, table.y.dtype) == (tp.float32, tp.int32)
    want = [[150, 0, 1, 0, 2], [120, 0, 0, 1, 1.5], [100, 1, 0, 0, 2], [160, 0, 1, 0, 3]]
    same(table.x, want)
    same(table.y, [0, 1, 2, 0])
    names = "columns: weight, color=green, color=red, color=yellow, size; classes: apple, lemon, lime"
    assert repr(table) == f"Table(x: float32 (4, 5); y: int32 (4,); {names})"


def test_targets_by_name_and_position_and_none(load):
    want = load(FRUIT, "fruit", missing="drop")
    for target in (3, -1):
        table = load(FRUIT, target, missing="drop")
        same(table.x, want.x)
        same(table.y, want.y)
    table = load(FRUIT, missing="drop")
    assert table.y is None
    assert table.classes == ()
    assert table.columns[-4:] == ("size", "fruit=apple", "fruit=lemon", "fruit=lime")
    numbers = load(FRUIT, "weight", missing="drop")
    assert (numbers.y.dtype, numbers.classes) == (tp.float32, ())
    same(numbers.y, [150, 120, 160])
    assert "columns: color=" in repr(numbers)


def test_missing_values(load):
    dropped = load(FRUIT, "fruit", missing="drop")
    same(dropped.x[:, -1], [2, 1.5, 3])
    assert dropped.classes == ("apple", "lemon", "lime")
    text = "a,b,y\n1,u,0\nNA,v,1\n3,,0\n9,u,1\n"
    filled = load(text, "y", missing="fill")
    same(filled.x, [[1, 1, 0], [3, 0, 1], [3, 1, 0], [9, 1, 0]])
    for empty in ("", "?", "-", "NaN", "nan", "null", "None", "N/A", " "):
        same(load(f"a,b\n1,2\n{empty},4\n2,6\n", missing="fill").x, [[1, 2], [1.5, 4], [2, 6]])
    lost = load("a,b\n1,2\n,3\n", missing="raise", drop=["a"])  # of a column that is left out
    same(lost.x, [[2], [3]])


def test_types(load):
    text = "zip,age,y\n02139,3,1\n94110,4,0\n02139,5,1\n"
    table = load(text, "y", types={"zip": "category", "y": "category"})
    assert table.columns == ("zip=02139", "zip=94110", "age")
    assert table.classes == ("0", "1")
    same(table.x, [[1, 0, 3], [0, 1, 4], [1, 0, 5]])
    same(table.y, [1, 0, 1])
    assert table.y.dtype == tp.int32
    codes = load(text, "y", types={"zip": "index"})
    assert codes.columns == ("zip", "age")
    same(codes.x, [[0, 3], [1, 4], [0, 5]])
    classes = load("x,y\n0,10\n0,9\n0,-1\n", "y", types={"y": "category"}).classes
    assert classes == ("-1", "9", "10")  # in the order of numbers
    mixed = load("a\n1\nx\n2\n", types={"a": "category"})
    assert mixed.columns == ("a=1", "a=2", "a=x")


def test_many_texts_need_a_type(load):
    text = "name,y\n" + "".join(f"person {k:03},{k}\n" for k in range(150))
    message = r"column 'name' has 150 different texts, such as 'person 000'; expected drop=\['name'\], types="
    with pytest.raises(ValueError, match=message):
        load(text, "y")
    assert load(text, "y", drop=["name"]).x.shape == (150, 0)
    assert load(text, "y", types={"name": "index"}).x.shape == (150, 1)
    assert load(text, "y", types={"name": "category"}).x.shape == (150, 150)
    assert len(load(text, "name").classes) == 150  # a target may have many classes


def test_a_second_file_is_read_like_the_first(load):
    train = load(FRUIT, "fruit", missing="fill")
    test = load(
        "fruit,size,color,weight,other\nlime,,green,1,x\n", like=train, missing="fill", name="test.csv"
    )
    same(test.x, [[1, 1, 0, 0, 2]])
    same(test.y, [2])
    assert (test.columns, test.classes) == (train.columns, train.classes)
    blind = load("size,color,weight\n3,red,1\n", like=train)
    assert blind.y is None
    assert blind.classes == train.classes
    with pytest.raises(ValueError, match=r"line 2, column 'color': 'blue' is none of the 3 categories"):
        load("size,color,weight\n3,blue,1\n", like=train)
    with pytest.raises(ValueError, match=r"line 3, column 'weight': 'heavy', expected a finite number"):
        load("size,color,weight\n3,red,1\n3,red,heavy\n", like=train)
    with pytest.raises(ValueError, match=r"has no column 'size', expected .*: weight, color, size"):
        load("color,weight\nred,1\n", like=train)
    with pytest.raises(ValueError, match="like has columns, types and a target, expected none besides"):
        load(FRUIT, "fruit", like=train)
    copy = pickle.loads(pickle.dumps(train))
    same(load(FRUIT, like=copy, missing="fill").x, train.x.numpy())


def test_gzip_delimiters_quotes_and_marks(load):
    want = load(FRUIT, "fruit", missing="drop")
    forms = [
        (gzip.compress(FRUIT.encode()), {}),
        (FRUIT.replace("\n", "\r\n").encode(), {}),
        (b"\xef\xbb\xbf" + FRUIT.encode(), {}),
        (FRUIT.replace(",", ";").encode(), {"delimiter": ";"}),
        (FRUIT.replace(",", "\t").encode(), {"delimiter": "\t"}),
        (FRUIT.replace("\n", "\n\n").encode(), {}),
    ]
    for raw, options in forms:
        table = load(raw, "fruit", missing="drop", **options)
        same(table.x, want.x.numpy())
        same(table.y, want.y.numpy())
    quoted = load('"a, b",c\n"x\n""y""",1\nz,2\n', "c")
    assert quoted.columns == ('a, b=x\n"y"', "a, b=z")
    plain = load("1,2\n3,4\n", "1", header=False)
    assert plain.columns == ("0",)
    same(plain.x, [[1], [3]])
    same(plain.y, [2, 4])


def test_a_network_is_trained_on_a_table(load):
    table = load(FRUIT, "fruit", missing="fill")
    trainer = tp.Trainer(tp.layer.linear(5, 3), tp.optim.adam(0.01))
    data = tp.Data.prepare((table.x, table.y), batch_size=2)
    trainer.fit(trainer.init(tp.rng.key(0)), data, loss=tp.loss.cross_entropy_sparse, progress=False)


ERRORS = [
    ("a,b\n1,2\n3\n", {}, r"line 3: 1 cells, expected 2: a, b"),
    ("a,b\n1,2\n\n3,4,5\n", {}, r"line 4: 3 cells, expected 2"),
    ("a,b\n1,2\nx,4\n5,6\n", {}, r"line 3, column 'a': 'x' is no number, as others are; correct it, or pass"),
    ("a\nx\ny\n7\n", {}, r"line 4, column 'a': '7' is a number among texts; .*types=\{'a': 'category'\}"),
    ("a,b\n1,2\n,4\n,6\n", {}, r"line 3, column 'a': no value, as in 2 of 3 rows; expected missing='drop'"),
    ("a,b\n1,2\n3,\n", {"target": "b", "missing": "fill"}, r"line 3, column 'b': the target has no value"),
    ("a,b\n1,\n3,\n", {}, r"column 'b' has no values, expected drop=\['b'\]"),
    ("a\n1\n1e39\n", {"types": {"a": "number"}}, r"line 3, column 'a': '1e39', expected a finite number"),
    ("a\n1\n1_0\n", {"types": {"a": "number"}}, r"line 3, column 'a': '1_0', expected a finite number"),
    ("a\n1\ninf\n", {"types": {"a": "number"}}, r"line 3, column 'a': 'inf', expected a finite number"),
    ("a;b\n1;2\n", {}, r"has one column, 'a;b'; expected delimiter=';'"),
    ("1,2\n3,4\n", {}, r"begins with numbers, no names; expected header=False"),
    ("a,b,a\n1,2,3\n", {}, r"has several columns 'a', expected different names"),
    ("", {}, r"is empty, expected lines of cells"),
    ('a\n"x\n', {}, r"line 2: unexpected end of data"),
    ("a,b\n1,2\n", {"target": "c"}, r"target has 'c', which is no column of .*, expected one of 'a', 'b'"),
    ("a,b\n1,2\n", {"target": 2}, r"target has 2, which is no column"),
    ("a,b\n1,2\n", {"drop": ["c"]}, r"drop has 'c', which is no column"),
    ("a,b\n1,2\n", {"types": {"c": "number"}}, r"types has 'c', which is no column"),
    (
        "a,b\n1,2\n",
        {"types": {"a": "int"}},
        r"types\['a'\] is 'int', expected one of number, category, index",
    ),
    ("a,b\n1,2\n", {"target": "b", "types": {"b": "index"}}, r"types has 'index' for the target"),
    ("a,b\n1,2\n", {"missing": "mean"}, r"missing is 'mean', expected 'raise', 'drop' or 'fill'"),
    ("a,b\n1,2\n", {"delimiter": ", "}, r"delimiter is ', ', expected one character"),
    (b"a,b\n1,2\n\xe9,3\n", {}, r"line 3: the text is not UTF-8"),
    (gzip.compress(FRUIT.encode())[:-20], {}, r"is damaged, expected a gzip file"),
]


@pytest.mark.parametrize(("text", "options", "message"), ERRORS)
def test_errors_name_line_and_column(text, options, message, load):
    with pytest.raises(ValueError, match=rf"^datasets.load_csv: (?s:.*){message}"):
        load(text, **options)


def test_errors_of_types(load, tmp_path):
    for options, message in (
        ({"drop": "a"}, r"drop is 'a', expected a list of columns: \['a'\]"),
        ({"like": 3}, "like is 3, expected the table of the training data"),
        ({"types": ["a"]}, "types is a list, expected a dict"),
        ({"target": 0.5}, "target is 0.5, expected an int"),
    ):
        with pytest.raises(TypeError, match=f"^datasets.load_csv: {message}"):
            load("a,b\n1,2\n", **options)
    with pytest.raises(TypeError, match=r"^datasets.load_csv: file is 3, expected a path"):
        tp.datasets.load_csv(3)
    with pytest.raises(FileNotFoundError, match=r"none\.csv"):
        tp.datasets.load_csv(tmp_path / "none.csv")


def test_rows_of_no_features_and_no_rows(load):
    assert load("a\n1\n2\n", "a").x.shape == (2, 0)
    empty = load("a,b\n1,\n,2\n", "a", missing="drop")
    assert empty.x.shape == (0, 1)
    assert empty.y.shape == (0,)
