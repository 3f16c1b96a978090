"""Every preset is a valid configuration; the paper's hold the authors' orders and hyper-parameters."""

from __future__ import annotations

import pytest

from tss.cli.presets import description
from tss.data import author_order, list_tasks, resolve_order
from tss.data.catalog import catalog
from tss.presets import study_names
from tss.run.config import load_config, settings_for
from tss.run.config_files import preset_names
from tss.study.plan import load_study

FAMILIES = ("asc", "ccd", "ner", "sum", "drg")
QUICK = [*(f"{family}.quick" for family in FAMILIES), "mixed.quick"]
NOT_IN_CATALOG = {
    *("ccd/trec6", "ccd/clinc_banking", "ccd/clinc_travel", "ner/wnut17"),
    *("drg/sgd_events", "sum/dialogsum", "sum/qmsum_product", "sum/crd3"),
}
"""Tasks of presets and studies that `tss data get` does not create."""


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_validates_and_says_what_it_is_for(name):
    config = load_config(name)
    assert len(description(name)) > 20
    assert len(set(config.tasks)) == len(config.tasks)
    for task in config.tasks:
        settings_for(config, task)


@pytest.mark.parametrize("family", FAMILIES)
def test_paper_orders_are_the_authors(family):
    assert load_config(family, variant="paper").tasks == author_order(family, 0)
    assert load_config(family, variant="paper-2").tasks == author_order(family, 1)


def test_mixed_paper_is_all_forty_shuffled():
    config = load_config("mixed", variant="paper")
    assert sorted(config.tasks) == sorted(author_order("mixed"))
    assert (len(config.tasks), config.shuffle) == (40, True)


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ("asc/ding9_ipod", (100, 32, 32, 128, None, 5e-4)),
        ("asc/semeval14_laptop", (100, 32, 32, 128, 5, 5e-4)),
        ("ccd/agnews", (100, 32, 32, 128, 10, 5e-4)),
        ("ner/btc", (100, 32, 128, 128, 50, 5e-4)),
        ("sum/ami", (50, 4, 16, 1024, 50, 5e-2)),
        ("sum/icsi", (50, 4, 16, 1024, 50, 5e-3)),
        ("drg/mwoz_taxi", (50, 16, 32, 128, 50, 5e-4)),
    ],
)
def test_paper_hyper_parameters(task, expected):
    config = load_config("mixed", variant="paper")
    s = settings_for(config, task)
    assert (s.epochs, s.batch_size, s.eval_batch_size, s.source_length, s.patience, s.score_lr) == expected
    assert (s.head_lr, s.beta1, s.beta2, s.eps, s.warmup_ratio) == (2.75e-3, 0.9, 0.999, 1e-6, 0.5)
    assert (config.seed, config.adapters.bottleneck, config.backbone) == (2021, 64, "bart-large")
    assert config.method_options["soft_mask"] == "gradient"
    assert (config.reevaluate, s.gradient_checkpointing) == ("last", True)
    assert tuple(s.generation.model_dump().values()) == (4, 30, 200, 3)


@pytest.mark.parametrize("name", ["demo", "seed-one", "seed-similar", "seed-dissimilar"])
def test_presets_without_data_use_generated_tasks(name):
    config = load_config(name)
    assert resolve_order(config.tasks, list_tasks("generated")).missing == []
    assert (config.data, config.backbone) == ("generated", "embedded")


@pytest.mark.parametrize("name", ["demo", "mixed.quick", "seed-one"])
def test_presets_run_by_the_method_to_compare_with_too(name):
    assert load_config(name, ["method=ncl"]).method == "ncl"


@pytest.mark.parametrize("name", ["demo", "mixed.quick", "seed-one"])
def test_presets_hold_the_values_that_a_method_needs_otherwise(name):
    piggyback = load_config(name, ["method=piggyback"])
    options = piggyback.method_options
    assert 3 * piggyback.training.score_lr < options["mask_scale"] - options["threshold"]
    full = load_config(name, ["method=full"])
    assert all(settings_for(full, task).adapter_lr == 1e-4 for task in full.tasks)
    assert load_config(name).training.score_lr == 1e-2
    assert load_config(name, ["method=piggyback", "training.score_lr=0.5"]).training.score_lr == 0.5


# Ablations that need another setting beside the one that they are about, or that are the default of the quick presets.
NEEDS = {
    "ablation-weights-signed-constant": [],
    "ablation-importance-squared": ["importance_of", "importance_scale"],
    "ablation-sgd": ["head_lr", "optimizer", "score_lr"],
}


@pytest.mark.parametrize("name", [name for name in preset_names() if name.startswith("ablation-")])
def test_an_ablation_differs_from_quick_in_one_choice_and_its_label(name):
    quick, ablation = load_config("quick").resolved(), load_config(name).resolved()
    assert ablation.pop("label") != quick.pop("label")
    parts = {key for key in quick if quick[key] != ablation[key]}
    changes = [key for part in parts for key in quick[part] if quick[part][key] != ablation[part][key]]
    assert parts <= {"adapters", "method_options", "training"}
    assert sorted(changes) == NEEDS.get(name, changes[:1])


@pytest.mark.parametrize("name", QUICK)
def test_quick_presets_name_tasks_of_the_real_data(name, data_dir):
    assert resolve_order(load_config(name).tasks, list_tasks(data_dir)).missing == []


@pytest.mark.parametrize("name", [*QUICK, "bart-large.steps"])
def test_tasks_have_the_names_that_tss_data_get_writes(name):
    assert set(resolve_order(load_config(name).tasks, list(catalog())).missing) <= NOT_IN_CATALOG


@pytest.mark.parametrize("name", study_names())
def test_tasks_of_studies_have_the_names_that_tss_data_get_writes(name):
    tasks = load_study(name).changes.get("tasks", [])
    assert set(resolve_order(tasks, list(catalog())).missing) <= NOT_IN_CATALOG
