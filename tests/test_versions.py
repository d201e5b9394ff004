import pytest

from hwpq_tvm import versions
from hwpq_tvm.errors import DependencyError


@pytest.mark.parametrize("ffi", ["0.1.15", "0.1.15.post1", "0.1.15.post2"])
def test_the_pairs_that_crash_are_refused(monkeypatch, ffi):
    monkeypatch.setattr(versions, "version", {"apache-tvm": "0.27.0.post1", "apache-tvm-ffi": ffi}.__getitem__)
    with pytest.raises(DependencyError, match=rf"apache-tvm-ffi {ffi} does not work .* pip install 'apache-tvm=="):
        versions.check_versions()


@pytest.mark.parametrize("ffi", ["0.1.14.post1", "0.1.16", "0.1.150"])
def test_others_are_not(monkeypatch, ffi):
    monkeypatch.setattr(versions, "version", {"apache-tvm": "0.27.0.post1", "apache-tvm-ffi": ffi}.__getitem__)
    versions.check_versions()


def test_the_installed_pair_works():
    versions.check_versions()


def test_what_is_not_installed_is_named():
    with pytest.raises(DependencyError, match="no-such-thing is not installed"):
        versions.installed_version("no-such-thing")
