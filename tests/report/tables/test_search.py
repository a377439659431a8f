from condkd_ray.report.tables.search import notes, search_table
from report.report_factory import make_manifest, make_record, results


def test_notes_of_a_search_contain_those_of_the_data():
    manifest = make_manifest()
    manifest.dataset["notes"].append("ALL 400 test images are train images.")
    assert notes(results((), manifest))[-2:] == ["ALL 400 test images are train images.", "Synthetic numbers."]


def test_a_method_is_shown_by_name_with_fields_only_to_tell_it_from_others_of_that_name():
    configs = [
        {"targets": {"name": "layouts", "shift": 0.125}, "student": {"name": "resnet", "depth": 8, "width": 4}},
        {"targets": {"name": "balanced"}, "student": {"name": "resnet", "depth": 8, "width": 8.5}},
        {"targets": {"name": "layouts", "shift": 0.125}, "student": {"name": "lenet"}},
    ]
    records = [make_record(f"trial {number}", seed=number, config=config) for number, config in enumerate(configs)]
    about = {"objective": ["proxy/agreement"], "directions": ["maximize"], "parameters": ["targets", "student"]}
    table = search_table(results(records, make_manifest(search=about)))
    assert table.header[-2:] == ["targets", "student"]
    assert {row[0]: row[-2:] for row in table.rows} == {
        "0": ["layouts", "resnet (width 4)"],
        "1": ["balanced", "resnet (width 8.5)"],
        "2": ["layouts", "lenet"],
    }
