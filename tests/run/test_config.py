"""The configuration says exactly what is wrong, and survives a round trip."""

from __future__ import annotations

import pytest
import yaml

from tss.errors import ConfigError
from tss.run.config import dump_config, load_config, settings_for
from tss.run.config_files import find_preset, merge, preset_names
from tss.run.resolve import with_task_names


def test_defaults_round_trip_through_yaml():
    config = load_config(None, ["families.sum.batch_size=4", "method_options.soft_mask=update", "seed=7"])
    again = load_config(yaml.safe_load(dump_config(config)))
    assert again == config
    assert again.resolved() == config.resolved()


def test_overrides_are_read_as_yaml():
    config = load_config(None, ["training.score_lr=5e-3", "tasks=[asc/cameras, ner/news]", "training.patience=null"])
    assert config.training.score_lr == 5e-3
    assert config.tasks == ["asc/cameras", "ner/news"]
    assert config.training.patience is None


def test_a_task_gets_its_familys_settings_and_then_its_own():
    overrides = [
        "training.epochs=9",
        "generation.num_beams=4",
        "families.sum.batch_size=4",
        "families.sum.epochs=5",
        "families.sum.generation.num_beams=2",
        "overrides.sum/icsi.score_lr=0.005",
        "overrides.sum/icsi.epochs=1",
    ]
    config = load_config(None, overrides)
    assert settings_for(config, "asc/ipod").epochs == 9
    assert settings_for(config, "asc/ipod").generation.num_beams == 4
    nyt, icsi = settings_for(config, "sum/nyt"), settings_for(config, "sum/icsi")
    assert (nyt.epochs, nyt.batch_size, nyt.generation.num_beams) == (5, 4, 2)
    assert (icsi.epochs, icsi.batch_size, icsi.generation.num_beams, icsi.score_lr) == (1, 4, 2, 0.005)


FILE = {
    "training": {"epochs": 5},
    "families": {
        "asc": {"epochs": 12, "batch_size": 4},
        "sum": {"generation": {"num_beams": 2}, "limits": {"train": 9}},
    },
    "overrides": {"asc/ipod": {"epochs": 20, "limits": {"train": 7, "test": 3}}},
}


@pytest.mark.parametrize(
    ("overrides", "task", "expected"),
    [
        (["training.epochs=1"], "asc/ipod", {"epochs": 1, "batch_size": 4}),
        (["training={epochs: 1, patience: 2}"], "asc/cameras", {"epochs": 1, "patience": 2}),
        (["training.epochs=1", "families.asc.epochs=3"], "asc/ipod", {"epochs": 3}),
        (["families.asc.epochs=3", "training.epochs=1"], "asc/cameras", {"epochs": 1}),
        (["families.asc.epochs=3"], "asc/ipod", {"epochs": 3}),
        (["overrides.asc/ipod.epochs=4"], "asc/ipod", {"epochs": 4}),
        (["families.sum.epochs=3"], "asc/ipod", {"epochs": 20}),
        (["limits.train=2"], "asc/ipod", {"limits": {"train": 2, "validation": None, "test": 3}}),
        (["limits.train=2"], "sum/x", {"limits": {"train": 2, "validation": None, "test": None}}),
    ],
)
def test_what_was_typed_last_wins_over_what_the_file_says_for_a_family_or_a_task(overrides, task, expected):
    settings = settings_for(load_config(FILE, overrides), task).model_dump()
    assert {key: settings[key] for key in expected} == expected


def test_generation_typed_for_all_wins_too():
    assert settings_for(load_config(FILE, ["generation.num_beams=1"]), "sum/x").generation.num_beams == 1


def test_a_file_wins_over_the_preset_that_it_extends():
    families = load_config("quick").families
    assert "epochs" in families["asc"]
    config = load_config({"extends": "quick", "training": {"epochs": 1}, "families": {"ner": {"epochs": 2}}})
    assert [settings_for(config, task).epochs for task in ("asc/x", "sum/x", "ner/x")] == [1, 1, 2]
    assert settings_for(config, "asc/x").features == families["asc"]["features"]


def test_a_file_wins_over_what_the_preset_that_it_extends_says_for_a_method():
    rates = {"method": "full", "training": {"adapter_lr": 5e-5}}
    tasks = ("asc/x", "sum/x", "drg/x")
    for config, expected in (
        (load_config("quick", ["method=full"]), 1e-4),
        (load_config({"extends": "quick", "method": "full"}), 1e-4),
        (load_config({"extends": "quick", **rates}), 5e-5),
        (load_config({"extends": "quick", **rates, "methods": {"full": {"training": {"adapter_lr": 2e-5}}}}), 2e-5),
        (load_config("quick", ["method=full", "training.adapter_lr=3e-5"]), 3e-5),
        (load_config("quick", ["training.adapter_lr=3e-5", "method=full"]), 3e-5),
    ):
        assert [settings_for(config, task).adapter_lr for task in tasks] == [expected] * 3


def test_a_preset_says_what_differs_for_a_backbone_below_what_it_says_for_a_method_and_every_later_layer():
    mine = {"extends": "quick", "backbone": "mine", "backbones": {"mine": {"training": {"score_lr": 7e-3}}}}
    for config, expected in (
        (load_config("quick"), 1e-2),
        (load_config("quick", ["backbone=./minilm"]), 3e-3),
        (load_config({"extends": "quick", "backbone": "./minilm"}), 3e-3),
        (load_config("quick", ["method=piggyback"]), 1e-3),
        (load_config("quick", ["training.score_lr=2e-3"]), 2e-3),
        (load_config({"extends": "quick", "training": {"score_lr": 2e-3}}), 2e-3),
        (load_config(mine), 7e-3),
    ):
        assert settings_for(config, "asc/x").score_lr == expected
    with pytest.raises(ConfigError, match="backbones: expected names of backbones"):
        load_config({"backbones": ["embedded"]})


def test_a_file_wins_for_a_family_and_a_task_over_what_its_preset_says_for_a_backbone_or_a_method():
    for values, task, key, expected in (
        ({"families": {"asc": {"score_lr": 0.8}}}, "asc/x", "score_lr", 0.8),
        ({"families": {"asc": {"score_lr": 0.8}}}, "ccd/x", "score_lr", 1e-2),
        ({"overrides": {"asc/x": {"score_lr": 0.8}}}, "asc/x", "score_lr", 0.8),
        ({"method": "one", "families": {"sum": {"adapter_lr": 0.2}}}, "sum/x", "adapter_lr", 0.2),
        ({"method": "one", "families": {"sum": {"adapter_lr": 0.2}}}, "asc/x", "adapter_lr", 3e-3),
        ({"method": "one", "overrides": {"sum/x": {"adapter_lr": 0.8}}}, "sum/x", "adapter_lr", 0.8),
        ({"method": "one", "overrides": {"sum/x": {"adapter_lr": 0.8}}}, "sum/y", "adapter_lr", 1e-2),
        ({"backbones": None, "methods": {}}, "asc/x", "score_lr", 1e-2),
        ({"backbones": {"mine": {"training": {"epochs": 2}}}}, "asc/x", "score_lr", 1e-2),
    ):
        assert getattr(settings_for(load_config({"extends": "quick", **values}), task), key) == expected


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"backbones": {"mine": {"training": {"score_rl": 1}}}}, "backbones.mine: unknown key 'training.score_rl'"),
        ({"backbones": {"mine": {"families": {"asc": {"epochs": 0}}}}}, "backbones.mine: families.asc.epochs"),
        (
            {"methods": {"ewc": {"method_options": {"strenght": 1}}}},
            "methods.ewc: unknown key 'method_options.strenght'",
        ),
        ({"methods": {"lora": {"training": 3}}}, "methods.lora: training"),
        ({"methods": {"tss": {"method": "one"}}}, "methods.tss: method cannot differ here"),
        ({"backbones": {"embedded": {"backbone": "bart-large"}}}, "backbones.embedded: backbone cannot differ here"),
        ({"backbones": {"embedded": None}}, "backbones.embedded: expected a name with the keys"),
        ({"backbones": {1: {}}}, "backbones.1: expected a name with the keys"),
        ({"backbones": 0}, "backbones: expected names of backbones"),
    ],
)
def test_mistakes_in_what_differs_for_another_backbone_or_method_are_told(values, message):
    with pytest.raises(ConfigError, match=message):
        load_config(values)


def test_what_an_override_brings_in_is_not_blamed_on_the_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("seed: -1\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path, ["training.epochs=0", "probe_size=x", "label=fine"])
    lines = sorted(str(caught.value).splitlines())
    assert [line.split(": ")[0] for line in lines] == [str(path), "probe_size", "training.epochs"]
    for override in ("families.asc.epoch=1", "method=si", "method_options.soft_mask=maybe"):
        with pytest.raises(ConfigError) as caught:
            load_config("demo", [override])
        assert "preset" not in str(caught.value)
    assert load_config(path, ["seed=3"]).seed == 3


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("trainig.epochs=3", "unknown key 'trainig'; did you mean 'training'?"),
        ("training.epoch=3", "unknown key 'training.epoch'; did you mean 'training.epochs'?"),
        ("families.sum.generaton.num_beams=2", "'families.sum.generaton'; did you mean 'families.sum.generation'?"),
        (
            "overrides.sum/nyt.batchsize=2",
            "'overrides.sum/nyt.batchsize'; did you mean 'overrides.sum/nyt.batch_size'?",
        ),
        ("method_options.soft_masc=none", "'method_options.soft_masc'; did you mean 'method_options.soft_mask'?"),
        ("method_options.soft_mask=maybe", "maybe"),
        ("adapters.botleneck=8", "'adapters.botleneck'; did you mean 'adapters.bottleneck'?"),
        ("adapters.bottleneck=0", "bottleneck"),
        ("training.batch_size=0", "training.batch_size: Input should be greater than or equal to 1, got 0"),
        ("method=si", "no method 'si'; there are: tss, one"),
        ("precision=float61", "precision: Input should be 'auto', 'float32' or 'bfloat16', got 'float61'"),
        ("adapters.gated=false", "adapters.gated: method tss needs True, got False"),
        ("training.optimizer=adam", "training.optimizer: Input should be 'adamw' or 'sgd', got 'adam'"),
        ("qqqq=1", "unknown key 'qqqq'; known keys here: method, method_options, backbone"),
        ("training", "is not of the form key=value"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(override, expected):
    with pytest.raises(ConfigError) as caught:
        load_config(None, [override])
    message = str(caught.value)
    assert expected in message
    assert "\n" not in message


@pytest.mark.parametrize("place", ["training", "families.sum", "overrides.sum/nyt"])
@pytest.mark.parametrize(
    ("other", "expected"),
    [
        ("method=hat", "method hat has no gates"),
        ("method=ncl", "method ncl has no gates"),
        ("method_options.soft_mask=update", "with soft_mask=gradient it makes the same steps"),
    ],
)
def test_sgd_is_refused_where_it_would_not_apply_the_method(place, other, expected):
    with pytest.raises(ConfigError, match=f"{place}.optimizer: sgd .*{expected}"):
        load_config(None, [f"{place}.optimizer=sgd", other])


def test_changes_for_a_task_by_its_short_name_apply_to_it(tmp_path):
    (tmp_path / "asc" / "hl5_CanonG3").mkdir(parents=True)
    (tmp_path / "asc" / "hl5_CanonG3" / "train.jsonl").touch()
    named = {"data": str(tmp_path), "tasks": ["asc/CanonG3"]}
    config = with_task_names(load_config({**named, "overrides": {"asc/CanonG3": {"epochs": 3}}}))
    assert settings_for(config, "asc/hl5_CanonG3").epochs == 3
    for changes, message in (
        (
            {"overrides": {"asc/CanonG4": {"epochs": 3}}},
            "overrides.asc/CanonG4: the data has no such task; did you mean",
        ),
        ({"families": {"acs": {"epochs": 3}}}, "families.acs: no task has this family; did you mean 'asc'"),
        ({"overrides": {key: {"epochs": 3} for key in ("asc/CanonG3", "asc/hl5_CanonG3")}}, "asked for twice"),
    ):
        with pytest.raises(ConfigError, match=message):
            with_task_names(load_config({**named, **changes}))
    skipped = {"tasks": ["asc/CanonG3", "asc/ipod"], "missing_tasks": "skip"}
    for name in ("asc/ipod", "asc/ding9_ipod"):  # of a task that is skipped, by both of its names
        assert with_task_names(load_config({**named, **skipped, "overrides": {name: {"epochs": 3}}}))
    assert with_task_names(load_config({**named, "families": {"sum": {"epochs": 3}}}))


@pytest.mark.parametrize("key", ["training.epochs", "seed", "training.score_lr", "families.asc.epochs", "limits.train"])
def test_a_boolean_is_no_number(key):
    with pytest.raises(ConfigError, match=rf"{key}: expected a number or a name, got true"):
        load_config(None, [f"{key}=yes"])


def test_several_problems_give_several_lines():
    with pytest.raises(ConfigError) as caught:
        load_config(None, ["sede=1", "training.epochs=0", "adapters.botleneck=1"])
    assert len(str(caught.value).splitlines()) == 3


def test_the_seed_reaches_the_adapters_unless_they_have_their_own():
    assert load_config(None, ["seed=5"]).adapters.seed == 5
    assert load_config(None, ["seed=5", "adapters.seed=6"]).adapters.seed == 6


def test_ncl_takes_plain_adapters_and_no_options():
    config = load_config(None, ["method=ncl"])
    assert not config.adapters.gated
    assert config.method_options == {}
    assert load_config(yaml.safe_load(dump_config(config))) == config


def test_files_extend_presets_and_report_their_name(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("training: {epochs: 2, batchsize: 3}\n")
    with pytest.raises(ConfigError, match=r"unknown key 'training\.batchsize'; did you mean 'training\.batch_size'"):
        load_config(path)
    path.write_text("training: [1\n")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_config(path)
    with pytest.raises(ConfigError, match=r"none\.yaml: cannot be read"):
        load_config(tmp_path / "none.yaml")
    path.write_text(f"extends: {preset_names()[0]}\ntraining: {{epochs: 77}}\n")
    assert load_config(path).training.epochs == 77


def test_presets_are_found_by_name_and_variant():
    with pytest.raises(ConfigError, match="no preset and no file 'no-such'"):
        load_config("no-such")
    name = next(name for name in preset_names() if "." in name)
    base, variant = name.split(".", 1)
    assert find_preset(base, variant) == name
    with pytest.raises(ConfigError, match=f"preset '{base}' has no variant 'slow'"):
        find_preset(base, "slow")
    with pytest.raises(ConfigError, match="did you mean 'comparison'"):
        find_preset("comparision")
    with pytest.raises(ConfigError, match=r"'comparison' is a study.* tss study comparison"):
        load_config("comparison")


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_is_a_valid_configuration(name):
    load_config(name)


def test_merge_replaces_values_and_merges_mappings():
    base = {"a": {"b": 1, "c": [1, 2]}, "d": 1}
    assert merge(base, {"a": {"c": [3]}, "d": {"e": 2}}) == {"a": {"b": 1, "c": [3]}, "d": {"e": 2}}
    assert base == {"a": {"b": 1, "c": [1, 2]}, "d": 1}
