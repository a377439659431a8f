from condkd_ray.report.tables.search import notes
from report.report_factory import make_manifest, results


def test_notes_of_a_search_contain_those_of_the_data():
    manifest = make_manifest()
    manifest.dataset["notes"].append("ALL 400 test images are train images.")
    assert notes(results((), manifest))[-2:] == ["ALL 400 test images are train images.", "Synthetic numbers."]
