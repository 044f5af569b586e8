"""Every bench is found by its name, and `batchgen bench` offers it."""

from __future__ import annotations

import argparse

import pytest

from batchgen.bench import bench_named, bench_names


def test_the_folder_is_the_registry() -> None:
    assert "schedule" in bench_names()


@pytest.mark.parametrize("name", bench_names())
def test_a_bench_says_what_it_is_and_adds_its_options(name: str) -> None:
    bench = bench_named(name)
    assert bench.SUMMARY and bench.DESCRIPTION and bench.EPILOG
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    parser.parse_args([])  # each option has a default
    assert callable(bench.run)
