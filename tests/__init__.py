"""The tests of ``asyncserver`` and ``compat``; ``tests.waiting`` and ``tests.leaks`` are shared by all."""
