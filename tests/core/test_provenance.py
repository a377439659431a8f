import torch

from condkd_ray.core.provenance import git_state, versions


def test_versions_and_commit_are_told():
    assert torch.__version__.startswith(versions()["torch"])
    assert git_state() == "" or len(git_state().removesuffix("+")) == 12
