"""Benchmarks import kernels, as the tests of kernels/ do, which pytest collects later."""

from __future__ import annotations

from tests import interpreted_kernels

interpreted_kernels.define()
