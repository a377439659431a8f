from condkd_ray.report.tables.search import notes
from report.report_factory import make_manifest, results


def test_notes_of_the_data_are_told_of_a_search_too():
    manifest = make_manifest()
    manifest.dataset["notes"].append("ALL 400 test images are train images.")
    assert notes(results((), manifest))[-2:] == ["ALL 400 test images are train images.", "Synthetic numbers."]
