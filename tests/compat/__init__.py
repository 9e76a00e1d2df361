"""The tests of ``compat``. In most of them the standard library's ``socketserver`` says what is right."""

import pytest

pytest.register_assert_rewrite("tests.compat.support")
