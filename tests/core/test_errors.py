import pytest

from condkd_ray.core.dispensable import dispensable
from condkd_ray.core.errors import first_line
from condkd_ray.core.storage import reason


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("\n  one line \nanother"), "one line"),
        (TimeoutError(), "TimeoutError"),
        (OSError(""), "OSError"),
        (OSError(" \n "), "OSError"),
    ],
)
def test_first_line_is_the_first_line_of_the_message_or_the_type(error, line):
    assert first_line(error) == line


def test_a_request_id_is_removed_from_the_message():
    assert reason(OSError("denied (Request ID: 1)")) == "denied"
    assert reason(OSError(" (Request ID: 1)")) == "OSError"


@pytest.mark.parametrize("error", [TimeoutError(), OSError(), OSError("")])
def test_an_error_without_a_message_is_logged_with_its_type(logged, error):
    with dispensable("the page", "later more"):
        raise error
    assert logged == [f"the page cannot be written ({type(error).__name__}); later more"]
