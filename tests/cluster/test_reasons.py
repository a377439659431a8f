import pytest

from condkd_ray.cluster.sweep import reason_in

RAISED = """Failure # 1 (occurred at 2026-01-01_00-00-00)
ray::ImplicitFunc.train() (pid=1, ip=127.0.0.1)
  File "a.py", line 1, in train
    raise error
ValueError: the first time
Failure # 2 (occurred at 2026-01-01_00-00-09)
\x1b[36mray::ImplicitFunc.train()\x1b[39m (pid=1, ip=127.0.0.1)
  File "a.py", line 1, in train
    raise error
IsADirectoryError: [Errno 21] Is a directory: 'state'
"""
DIED = """Failure # 1 (occurred at 2026-01-01_00-00-00)
The actor died unexpectedly before finishing this task.
\tclass_name: ImplicitFunc
\tactor_id: 1
"""


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (RAISED, "IsADirectoryError: [Errno 21] Is a directory: 'state'"),
        (DIED, "its process died (The actor died unexpectedly before finishing this task.)"),
        ("", "its process died (no reason known)"),
    ],
)
def test_a_failure_in_one_line(text: str, reason: str):
    assert reason_in(text) == reason
