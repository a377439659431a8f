import pytest

from condkd_ray.core.dispensable import dispensable
from condkd_ray.core.errors import first_line
from condkd_ray.core.storage import reason


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ValueError("\n  one line \nanother"), "one line"),
        (TimeoutError(), "TimeoutError"),
        (OSError(""), "OSError"),
        (OSError(" \n "), "OSError"),
    ],
)
def test_one_line_of_an_error_and_its_type_where_it_has_no_words(error, told):
    assert first_line(error) == told


def test_a_request_id_is_left_out_and_may_be_all_there_is():
    assert reason(OSError("denied (Request ID: 1)")) == "denied"
    assert reason(OSError(" (Request ID: 1)")) == "OSError"


@pytest.mark.parametrize("error", [TimeoutError(), OSError(), OSError("")])
def test_a_part_whose_failure_has_no_words_is_told_of_like_others(heard, error):
    with dispensable("the page", "later more"):
        raise error
    assert heard == [f"the page cannot be written ({type(error).__name__}); later more"]
