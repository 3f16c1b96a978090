"""What a study's file means, and what is refused before anything runs."""

from __future__ import annotations

import dataclasses

import pytest

from tests.run.conftest import TASKS
from tests.study.conftest import pretend
from tss.cli.presets import description
from tss.errors import ConfigError, StateError
from tss.presets import study_names
from tss.run.config import RunConfig, load_config, settings_for
from tss.study.folder import StudyFolder
from tss.study.plan import cell_from, cells_of, load_study
from tss.study.results import read_study


def test_cells_are_methods_by_orders_by_seeds_and_differ_in_nothing_else(cells):
    made = cells(methods={"tss": None, "free": {"method": "tss", "method_options": {"soft_mask": "none"}}, "mtl": {}},
                 orders=2, seeds=[7, 3])  # fmt: skip
    assert len(made) == len({cell.name for cell in made}) == 12
    assert [cell.name for cell in made[:3]] == ["tss-1-7", "free-1-7", "mtl-1-7"]
    assert {cell.seed for cell in made[:6]} == {7}  # seeds outermost: a study cut short has whole comparisons
    by_place = {(cell.row, cell.order, cell.seed): cell.config for cell in made}
    for (row, order, seed), config in by_place.items():
        assert (config.seed, config.adapters.seed, config.label) == (seed, seed, row)
        assert config.tasks == by_place["tss", order, 3].tasks
        assert sorted(config.tasks) == sorted(TASKS)
    assert by_place["tss", "1", 3].tasks == TASKS != by_place["tss", "2", 3].tasks
    assert [by_place[row, "1", 3].method for row in ("tss", "free", "mtl")] == ["tss", "tss", "mtl"]
    tss, free = by_place["tss", "1", 3].resolved(), by_place["free", "1", 3].resolved()
    assert {key for key in tss if tss[key] != free[key]} == {"label", "method_options"}
    assert all(cell_from(cell.plain()) == cell for cell in made)


def test_numbers_of_seeds_follow_the_bases_own_and_the_command_line_wins(study_file):
    path = study_file(seeds=3)
    assert sorted({cell.seed for cell in cells_of(load_study(path))}) == [2021, 2022, 2023]
    assert {cell.seed for cell in cells_of(load_study(path, ["seed=5"], seeds=2))} == {5, 6}
    made = cells_of(load_study(path, ["training.epochs=9", "adapters.seed=4"], seeds=[1, 2]))
    assert {(cell.config.training.epochs, cell.config.adapters.seed) for cell in made} == {(9, 4)}
    generated = load_study(path, ["tasks=[asc/cameras]"], data="generated")
    assert {cell.config.data for cell in cells_of(generated)} == {"generated"}


def test_orders_by_name_hold_the_same_tasks(cells):
    orders = {"there": TASKS, "back": TASKS[::-1]}
    assert {cell.order: cell.config.tasks for cell in cells(orders=orders)} == orders
    with pytest.raises(ConfigError, match=r"there and back are not orders of the same tasks; only one has drg/trips"):
        cells(orders={"there": TASKS, "back": TASKS[:2]})
    with pytest.raises(ConfigError, match="there and again are the same, and would count twice"):
        cells(orders={"there": TASKS, "back": TASKS[::-1], "again": TASKS})
    assert len({tuple(cell.config.tasks) for cell in cells(orders=6)}) == 6
    with pytest.raises(ConfigError, match="7 asked for, but 3 tasks have only 6"):
        cells(orders=7)
    with pytest.raises(ConfigError, match=r"not in .*ner/pepole.*correct the names or the data folder"):
        cells(orders={"there": ["ner/pepole"]})


def test_the_section_methods_of_a_preset_lies_below_the_changes_of_a_study(tmp_path, study_file):
    path = study_file(methods={"ncl": {}, "ewc": {"training": {"adapter_lr": 0.5}}, "hat": {}})
    base = tmp_path / "base.yaml"
    section = "methods: {ewc: {training: {adapter_lr: 0.1, head_lr: 0.2}, method_options: {strength: 3}}}\n"
    base.write_text(base.read_text() + section)
    found = {cell.row: cell.config for cell in cells_of(load_study(path))}
    assert (found["ewc"].training.adapter_lr, found["ewc"].training.head_lr) == (0.5, 0.2)
    assert found["ewc"].method_options == {"strength": 3}
    assert found["ncl"].training.adapter_lr == found["hat"].training.adapter_lr == 1e-3
    assert load_config(base, ["method=ewc"]).training.adapter_lr == 0.1
    assert load_config(base, ["method=ewc", "training.adapter_lr=0.3"]).training.adapter_lr == 0.3
    assert load_config(base, ["method=ncl"]).training.adapter_lr == 1e-3
    base.write_text(base.read_text() + "backbones: {embedded-random: {training: {score_lr: 0.7}}}\n")
    for backbone, rate in (("embedded-random", 0.7), ("elsewhere", 0.05)):
        chosen = cells_of(load_study(path, [f"backbone={backbone}"]))
        assert {cell.config.training.score_lr for cell in chosen} == {rate}
    base.write_text(base.read_text().replace("methods: {ewc", "methods: {ewcc"))
    with pytest.raises(ConfigError, match="methods: no method 'ewcc'; did you mean 'ewc'"):
        load_config(base, ["method=ewc"])


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"methods": ["tss", "best"]}, "methods.best: no method 'best': name one by its key method"),
        ({"methods": {"ewc": {"method_options": {"strenght": 1}}}}, "methods.ewc: .*did you mean .*strength"),
        ({"methods": []}, "at least one method is needed"),
        (
            {"methods": {"a b": {"method": "tss"}, "a-b": {"method": "ncl"}}},
            "two runs of the study would have the folder",
        ),
        ({"seeds": [1, 1]}, r"each once, got \[1, 1\]"),
        ({"seeds": 0}, "greater than 0"),
        ({"seeds": 3 * 10**12}, "is more than 10,000"),
        ({"seeds": True}, "expected a number or names, got True"),
        ({"orders": True}, "expected a number or names, got True"),
        ({"changes": {"seed": 2**63 - 1}, "seeds": 3}, "the largest seed"),
        ({"changes": "tasks"}, "changes: expected keys of a run's configuration .*got 'tasks'"),
        ({"methods": ["tss", {"ewc": {}}]}, "a list holds names of methods, got {'ewc': {}}"),
        ({"methods": {"a": {"method": ["tss"]}}}, r"no method \['tss'\]: name one by its key method"),
        ({"methods": {"tss": {"seed": 77}}}, "methods.tss: seed is the same in all rows"),
        ({"methods": {"tss": {"tasks": ["asc/phones"]}}}, "methods.tss: tasks is the same in all rows"),
        ({"methods": {"tss": {"label": "hello"}}}, "methods.tss: label is the same in all rows"),
        ({"changes": {"overrides": {"asc/phone": {"epochs": 1}}}}, "no such task; did you mean 'asc/phones'"),
        ({"order": 2}, "unknown key 'order'; did you mean 'orders'"),
        ({"changes": {"tasks": ["asc/nothing"]}}, r"asc/nothing.*has: [^;]*; correct the names or the data folder$"),
        ({"base": "nothing"}, "no preset and no file 'nothing'"),
        ({"changes": {"training": {"epochs": 0}}}, "training.epochs: .*greater than or equal to 1, got 0"),
    ],
)
def test_what_no_study_can_be_is_refused_at_once(cells, keys, message):
    with pytest.raises(ConfigError, match=message):
        cells(**keys)


@pytest.mark.parametrize(
    ("changes", "finished"), [({}, True), ({"log_seconds": 9}, True), ({"limits": {"train": 3}}, False)]
)
def test_a_run_with_other_settings_in_a_cells_folder_is_not_the_cells(cells, tmp_path, changes, finished):
    folder, (cell, _) = StudyFolder(tmp_path / "out"), cells()
    config = RunConfig.model_validate({**cell.config.resolved(), **changes, "precision": "float32"})
    folder.path.mkdir()
    folder.fix(cells())
    pretend(folder, dataclasses.replace(cell, config=config), [[50.0] * len(config.tasks)] * len(config.tasks))
    assert folder.finished(cell) == finished
    assert len(folder.foreign(cell)) == (not finished)
    assert len(read_study(folder.path).runs) == finished
    assert any("is not a run of this study" in line for line in read_study(folder.path).damage) != finished


def test_a_study_killed_while_it_wrote_its_plan_starts_again(cells, tmp_path):
    folder = StudyFolder(tmp_path / "out")
    folder.path.mkdir()
    (folder.path / f"study.json.{'a' * 32}.partial").touch()
    folder.fix(cells())
    assert folder.cells() == cells()
    (folder.path / "notes.txt").touch()
    folder.plan.unlink()
    with pytest.raises(StateError, match=r"not part of a study \(notes.txt"):
        folder.fix(cells())


def test_a_study_is_fixed_in_its_folder_and_may_only_grow(cells, tmp_path):
    folder, made = StudyFolder(tmp_path / "out"), cells(seeds=[1])
    with folder.lock():
        assert folder.fix(made) == []
        assert folder.fix(made) == []
        assert folder.cells() == made
        added = folder.fix(cells(seeds=[1, 2], methods=["tss", "ncl", "one"]))
        assert sorted(cell.name for cell in added) == sorted(["one-1-1", "tss-1-2", "ncl-1-2", "one-1-2"])
        before = folder.plan.read_bytes()
        with pytest.raises(StateError, match=r"contains another study; 4 of its runs are no longer in it"):
            folder.fix(made)
        grown = {"seeds": [1, 2], "methods": ["tss", "ncl", "one"]}
        with pytest.raises(StateError, match=r"training\.epochs: 2 there, 3 now; .*and 1 more differences"):
            folder.fix(cells(**grown, changes={"training": {"epochs": 3}}))
        assert folder.fix(cells(**grown, changes={"log_seconds": 5})) == []  # changes no result
        assert folder.plan.read_bytes() == before
        with pytest.raises(StateError, match="another process is running this study"), StudyFolder(folder.path).lock():
            pass
    folder.plan.write_bytes(before[:-40])
    with pytest.raises(StateError, match="not the plan of a study"):
        folder.cells()
    with pytest.raises(StateError, match="has no study"):
        StudyFolder(tmp_path / "elsewhere").cells()
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "letter.txt").touch()
    with pytest.raises(StateError, match=r"files that are not part of a study \(letter\.txt\)"):
        StudyFolder(tmp_path / "own").fix(made)


@pytest.mark.parametrize("name", study_names())
def test_studies_that_come_with_the_package_are_studies(name, request):
    data = None if name == "demo" else str(request.getfixturevalue("data_dir"))
    study = load_study(name, data=data)
    made = cells_of(study)
    assert len({cell.row for cell in made}) > 2
    assert len(description(f"studies/{name}")) > 20


def test_the_tuning_study_has_rates_on_both_sides_of_the_middle_one(data_dir):
    found = {cell.row: cell.config for cell in cells_of(load_study("tuning", data=str(data_dir)))}
    for row in ("one", "lora"):
        for task in found[row].tasks:
            slower, middle, faster = (
                settings_for(found[name], task).adapter_lr for name in (f"{row} slower", row, f"{row} faster")
            )
            assert slower < middle < faster


def test_an_override_that_is_invalid_is_named(study_file):
    path = study_file(methods=["tss", "ncl"])
    with pytest.raises(ConfigError) as caught:
        load_study(path, ["seed=3", "training.epochz=1"])
    assert str(caught.value).startswith("override 'training.epochz=1': unknown key 'training.epochz'; did you mean")
    with pytest.raises(ConfigError, match=r"^override 'method_options\.soft_mask=none': .*\(methods: ncl\)$"):
        load_study(path, ["training.epochs=2", "method_options.soft_mask=none"])
    path = study_file(changes={"training": {"epochs": 0}})
    with pytest.raises(ConfigError, match=r"^methods\.tss: .*training\.epochs: .*got 0"):
        cells_of(load_study(path, ["seed=3"]))  # the problem is the file's
    assert {cell.config.training.epochs for cell in cells_of(load_study(path, ["training.epochs=3"]))} == {3}


def test_problems_of_a_study_name_its_file_or_the_study(study_file, tmp_path):
    with pytest.raises(ConfigError, match=r"^study demo: seeds"):
        load_study("demo", seeds=[1, 1])
    path = study_file(seeds=[1, 1])
    with pytest.raises(ConfigError, match=f"^{path}: seeds"):
        load_study(path)
    path.write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="not UTF-8 at byte 0"):
        load_study(path)
    path.write_bytes(b" " * (2**20 + 1))
    with pytest.raises(ConfigError, match="1,048,577 bytes, more than the 1,048,576 allowed for a study"):
        load_study(path)
