"""Weights of PyTorch under treepie's names, and the reports of names that differ."""

import subprocess
import sys

import numpy as np
import pytest

import treepie as tp

KEY = tp.rng.key(0)


def block():
    """Return a network with parts of each kind whose names or layouts differ from PyTorch's."""
    parts = {
        "conv": tp.layer.conv2d(2, 4, 3, padding=(1, 1)),
        "bn": tp.layer.batch_norm(4),
        "norm": tp.layer.layer_norm(4),
        "embed": tp.layer.embedding(5, 4, scale=False),
        "linear": tp.layer.linear(4, 3),
    }

    def forward(call, x):
        images, indices = x
        features = call.bn(call.conv(images)).mean(axis=(2, 3))
        return call.linear(call.norm(features + call.embed(indices)))

    return tp.layer.model(parts, forward)


def theirs(seed=0):
    """Return a state dict as PyTorch's, and the names of its shapes."""
    rng = np.random.default_rng(seed)
    shapes = {
        "conv.weight": (4, 2, 3, 3), "conv.bias": (4,), "bn.weight": (4,), "bn.bias": (4,),
        "bn.running_mean": (4,), "bn.running_var": (4,), "norm.weight": (4,), "norm.bias": (4,),
        "embed.weight": (5, 4), "linear.weight": (3, 4), "linear.bias": (3,),
    }  # fmt: skip
    weights = {f"net.{k}": rng.uniform(0.5, 1.5, shape).astype("f4") for k, shape in shapes.items()}
    return {**weights, "net.bn.num_batches_tracked": np.array(7)}


RULES = {
    r"^net\.": "",
    "num_batches_tracked": None,
    r"^bn\.weight": "bn.scale",
    r"^norm\.weight": "norm.gamma",
    r"^norm\.bias": "norm.beta",
    r"^embed\.weight": "embed.embedding",
}


def test_names_layouts_and_running_statistics_of_pytorch():
    weights = theirs()
    renamed = tp.hub.rename(weights, RULES, transpose="weight")
    vars, report = tp.hub.assign(block().init(KEY), renamed)
    assert (report.missing_keys, report.unexpected_keys) == ([], [])
    assert len(report.loaded) == 11
    p, s = vars.params, vars.state
    for ours, name in (
        (p["conv"]["weight"], "conv.weight"), (p["bn"]["scale"], "bn.weight"), (p["bn"]["bias"], "bn.bias"),
        (s["bn"]["running_mean"], "bn.running_mean"), (s["bn"]["running_var"], "bn.running_var"),
        (p["norm"]["gamma"], "norm.weight"), (p["norm"]["beta"], "norm.bias"),
        (p["embed"]["embedding"], "embed.weight"), (p["linear"]["bias"], "linear.bias"),
    ):  # fmt: skip
        np.testing.assert_array_equal(ours, weights[f"net.{name}"])
    np.testing.assert_array_equal(p["linear"]["weight"], weights["net.linear.weight"].T)


def test_the_network_is_that_of_pytorch():
    torch = pytest.importorskip("torch")
    net = torch.nn.ModuleDict(
        {
            "conv": torch.nn.Conv2d(2, 4, 3, padding=1),
            "bn": torch.nn.BatchNorm2d(4),
            "norm": torch.nn.LayerNorm(4),
            "embed": torch.nn.Embedding(5, 4),
            "linear": torch.nn.Linear(4, 3),
        }
    ).eval()
    root = torch.nn.ModuleDict({"net": net})
    state = {name: torch.from_numpy(np.array(x)) for name, x in theirs(1).items()}
    root.load_state_dict(state)
    images, indices = np.random.default_rng(2).standard_normal((3, 2, 6, 5)).astype("f4"), np.array([4, 0, 2])
    with torch.no_grad():
        pooled = net["bn"](net["conv"](torch.from_numpy(images))).mean((2, 3))
        expected = net["linear"](net["norm"](pooled + net["embed"](torch.from_numpy(indices)))).numpy()
    model = block()
    # A state dict's tensors are taken as they are.
    vars, _ = tp.hub.assign(model.init(KEY), tp.hub.rename(root.state_dict(), RULES, transpose="weight"))
    np.testing.assert_allclose(model.apply(vars, (images, indices))[0], expected, atol=1e-5)


def test_packed_weights_are_divided_and_later_rules_apply_to_the_parts():
    packed = {"attn.in_proj_weight": np.arange(12.0).reshape(6, 2), "attn.in_proj_bias": np.arange(6.0)}
    rules = {
        "in_proj_weight": ["q_proj", "k_proj", "v_proj"],
        "in_proj_bias": ["q_bias", "k_bias", "v_bias"],
        "^attn": "self_attention",
    }
    renamed = tp.hub.rename(packed, rules, transpose="_proj")
    assert list(renamed) == [f"self_attention.{p}_{kind}" for kind in ("proj", "bias") for p in "qkv"]
    np.testing.assert_array_equal(renamed["self_attention.k_proj"], [[4, 6], [5, 7]])
    np.testing.assert_array_equal(renamed["self_attention.v_bias"], [4, 5])
    with pytest.raises(ValueError, match=r"'attn.in_proj_bias' has shape \(6,\), expected .* 4 equal parts"):
        tp.hub.rename(packed, {"in_proj_bias": ["a", "b", "c", "d"]})


def test_groups_and_order_of_rules():
    weights = {"layer.11.key.weight": tp.ones(1), "layer.2.key.weight": tp.ones(1)}
    rules = {r"layer\.(\d+)": r"blocks.\1", r"(\w)ey\.weight": r"\1_proj", "blocks": "b"}
    assert list(tp.hub.rename(weights, rules)) == ["b.11.k_proj", "b.2.k_proj"]
    assert list(tp.hub.rename({"a": 1.0}, {})) == ["a"]


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        (([1], {}), TypeError, "rename: weights is a list, expected a dict of arrays by name"),
        (({}, [("a", "b")]), TypeError, r"rename: rules is a list, expected a dict \{regular expression"),
        (({"a": 1.0, "b": 2.0}, {"[ab]": "c"}), ValueError, "'a' and 'b' both become 'c', expected another"),
        (({"a": 1.0}, {"(": ""}), ValueError, r"'\(' is no regular expression \(missing \)"),
        (({"a": 1.0}, {"a": r"\2"}), ValueError, r"can not replace 'a' in 'a' \(invalid group"),
        (({"a": 1.0}, {"a": 3}), TypeError, "rules has the replacement 3 for 'a', expected a name"),
        (({"a": 1.0}, {"a": [3]}), TypeError, r"rules has the replacement \[3\] for 'a', expected a name"),
        (({"a": "text"}, {}), TypeError, r"rename: weights\['a'\] is no array"),
        (
            ({"a": 1.0}, {"a": ["b"]}),
            ValueError,
            r"'a' has shape \(\), expected a first axis that is",
        ),
        (
            ({"a.weight": tp.ones((2, 2)), "b": tp.ones(2)}, {}, "wieght"),
            ValueError,
            r"transpose is 'wieght', expected a match in the new name of a matrix \(a.weight\)",
        ),
        (({"weight": tp.ones(2)}, {}, "weight"), ValueError, r"of a matrix \(there is none\)"),
    ],
)
def test_what_rename_does_not_take(arguments, error, match):
    with pytest.raises(error, match=match):
        tp.hub.rename(*arguments)


def test_one_error_has_all_names_and_shapes():
    weights = tp.hub.rename(theirs(), {k: v for k, v in RULES.items() if "norm" not in k})
    del weights["conv.bias"]
    with pytest.raises(ValueError, match=r"^hub.assign: ") as caught:
        tp.hub.assign(block().init(KEY), weights)
    assert str(caught.value).splitlines() == [
        "hub.assign: 8 of 11 loaded",
        "  3 missing, which the weights do not have:",
        "    conv.bias (4,): did you mean 'norm.bias'?",
        "    norm.gamma (4,): did you mean 'norm.weight'?",
        "    norm.beta (4,): did you mean 'norm.bias'?",
        "  2 unexpected, which the model does not have:",
        "    norm.weight (4,)",
        "    norm.bias (4,)",
        "  1 of another shape or dtype:",
        "    linear.weight has shape (3, 4), expected (4, 3): transposed (transpose= of hub.rename)",
        "(hub.rename changes names; strict=False keeps the model's values of missing names and ignores "
        "unexpected ones)",
        "(a rule {'NAME': None} of hub.rename drops a weight, for one of the model's own)",
    ]


def test_missing_and_unexpected_names_are_an_error_each():
    vars = tp.layer.linear(2, 3).init(KEY)
    weights = {"weight": np.ones((2, 3)), "bias": np.ones(3)}
    with pytest.raises(ValueError, match=r"2 of 2 loaded\n  1 unexpected, which the model does not.*\n    b"):
        tp.hub.assign(vars, {**weights, "b": np.ones(3)})
    del weights["bias"]
    with pytest.raises(ValueError, match=r"1 of 2 loaded\n  1 missing, which the weights do not.*\n    bias"):
        tp.hub.assign(vars, weights)


def test_nothing_of_the_extra_is_imported_for_a_folder(tmp_path):
    tp.checkpoint.save(tmp_path / "model.safetensors", {"weight": tp.ones(2)})
    code = (
        "import sys, treepie as tp; assert 'huggingface_hub' not in sys.modules; "
        f"weights = tp.hub.rename(tp.hub.load_weights({str(tmp_path)!r}), {{'weight': 'w'}}); "
        "tp.hub.assign({'w': tp.zeros(2)}, weights); assert 'huggingface_hub' not in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=60)


def test_a_report_where_names_may_differ():
    vars = tp.layer.sequential([tp.layer.linear(2, 3), tp.layer.linear(3, 1)]).init(KEY)
    weights = {"0.weight": np.ones((2, 3)), "0.bias": np.ones(3, "f4"), "pooler": np.ones(1)}
    after, report = tp.hub.assign(vars, weights, strict=False)
    assert report == tp.hub.Report(["0.weight", "0.bias"], ["1.weight", "1.bias"], ["pooler"])
    assert repr(report).splitlines() == [
        "2 of 4 loaded",
        "  2 missing, which the weights do not have:",
        "    1.weight",
        "    1.bias",
        "  1 unexpected, which the model does not have:",
        "    pooler",
    ]
    assert after.params[0]["weight"].tolist() == [[1.0] * 3] * 2
    assert after.params[0]["weight"].dtype == tp.float32  # the model's, of a float64 array
    assert after.params[1] == vars.params[1]
    with pytest.raises(ValueError, match=r"\n    0.weight has shape \(1, 3\), expected \(2, 3\)\n\(a rule"):
        tp.hub.assign(vars, {"0.weight": np.ones((1, 3))}, strict=False)


def test_long_lists_of_names_are_cut():
    vars = tp.layer.sequential([tp.layer.linear(1, 1)] * 9).init(KEY)
    with pytest.raises(ValueError, match=r"18 missing(.|\n)*\n    and 8 more\n  1 unexpected"):
        tp.hub.assign(vars, {"x": 1.0})


def test_a_tree_of_parameters_keeps_its_structure_and_dtypes():
    tree = {"a": [tp.zeros(2, tp.float64), (tp.zeros((), tp.int64),)]}
    after, _ = tp.hub.assign(tree, {"a.0": np.float32([1, 2]), "a.1.0": np.int32(3)})
    assert (after["a"][0].dtype.name, after["a"][0].tolist()) == ("float64", [1.0, 2.0])
    assert isinstance(after["a"][1], tuple)
    assert (after["a"][1][0].dtype.name, after["a"][1][0].item()) == ("int64", 3)


def test_what_assign_does_not_take():
    linear = tp.layer.linear(1, 1, bias=False).init(KEY)
    with pytest.raises(TypeError, match="assign: weights is a Vars, expected a dict of arrays by name"):
        tp.hub.assign(linear, linear)
    with pytest.raises(ValueError, match=r"\n    a is float32, expected what int32 can hold"):
        tp.hub.assign({"a": tp.zeros(1, tp.int32)}, {"a": np.zeros(1, "f4")})
    with pytest.raises(ValueError, match=r"weights\['a'\] has numbers beyond int32's range"):
        tp.hub.assign({"a": tp.zeros(1, tp.int32)}, {"a": np.array([2**40])})
    with pytest.raises(TypeError, match=r"assign: weights\['weight'\] is no array"):
        tp.hub.assign(linear, {"weight": "w"})
    both = tp.layer.Vars({"a": tp.ones(1)}, {"a": tp.ones(1)}, tp.float32)
    with pytest.raises(ValueError, match=r"'a' is a parameter and a state, expected vars.params and"):
        tp.hub.assign(both, {"a": tp.ones(1)})
