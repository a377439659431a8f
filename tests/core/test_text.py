from pathlib import Path

import pytest

from condkd_ray.core.config import read_tree
from condkd_ray.core.method import InputError
from condkd_ray.core.text import decoded, read_text
from condkd_ray.study import space
from condkd_ray.study.points import points_of

NAMES = "naïve\ncafé\n猫\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_text_is_read_in_common_encodings_and_line_ends(tmp_path: Path, encoding: str, end: str):
    path = tmp_path / "names"
    path.write_bytes(NAMES.replace("\n", end).encode(encoding))
    assert read_text(path, "names", "text").split() == NAMES.split()


def test_big_endian_utf_16_with_a_byte_order_mark_is_read():
    assert decoded("\ufeffnaïve".encode("utf-16-be")) == "naïve"


@pytest.mark.parametrize("data", [NAMES[:11].encode("cp1252"), "abc".encode("utf-16-le"), b"\xff\xfe\x00\xd8\x00"])
def test_the_error_of_another_encoding_names_the_file(tmp_path: Path, data: bytes):
    path = tmp_path / "names"
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"the names is .*/names', which cannot be read as text .*: text in UTF-8"):
        read_text(path, "the names", "text")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_configs_spaces_and_points_are_read_in_each_encoding(tmp_path: Path, encoding: str):
    path = tmp_path / "a.yaml"
    path.write_bytes("# déjà vu\r\nseed: 3\r\n".encode(encoding))
    assert read_tree(path) == space.read(path) == {"seed": 3}
    path.write_bytes("# déjà vu\r\n- {seed: 3}\r\n".encode(encoding))
    assert points(path) == [{"seed": 3}]


def points(path: Path) -> list[dict[str, object]]:
    return [dict(point) for point in points_of({"seed": space.Open("int", (0, 9))}, path)]


@pytest.mark.parametrize("read", [read_tree, space.read, points])
def test_the_error_of_yaml_in_a_code_page_names_the_file(tmp_path: Path, read):
    path = tmp_path / "a.yaml"
    path.write_bytes("# déjà vu\nseed: 3\n".encode("cp1252"))
    with pytest.raises(InputError, match=r"a\.yaml', which cannot be read as text .*accepted: a YAML .* in UTF-8"):
        read(path)
