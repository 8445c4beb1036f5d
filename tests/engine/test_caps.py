"""How large batches may be."""

from workers.engine.caps import Caps, choose


def test_the_cap_is_the_smallest_batch_that_is_about_as_fast_as_the_best() -> None:
    """More rows than pay for themselves only make everybody slower."""
    assert choose({2: 0.10, 4: 0.12, 8: 0.20, 16: 0.39, 32: 0.80}) == 8
    assert choose({2: 0.10, 4: 0.20}) == 2


def test_a_larger_picture_takes_fewer_rows_than_the_one_that_was_measured() -> None:
    """A size without a measurement of its own gets as many pixels as the nearest that has."""
    caps = Caps(32)
    caps.set("m", 512, 512, 16)
    assert caps.of(("m", 512, 512, "")) == 16
    assert caps.of(("m", 1024, 1024, "")) == 4
    assert caps.of(("m", 2048, 2048, "")) == 2
    assert caps.of(("other", 512, 512, "")) == 32


def test_running_out_of_memory_lowers_the_cap_of_that_size_only() -> None:
    """Half of what did not fit, and never less than one guided row."""
    caps = Caps(32)
    caps.lower(("m", 512, 512, ""), 12)
    assert caps.of(("m", 512, 512, "")) == 6
    assert caps.of(("m", 256, 256, "")) == 32
    caps.lower(("m", 512, 512, ""), 2)
    assert caps.of(("m", 512, 512, "")) == 2


def test_a_deterministic_job_has_a_cap_that_was_not_measured() -> None:
    """Batches of another size give other bytes, and a measurement differs from start to start."""
    caps = Caps(32)
    caps.set("m", 512, 512, 16)
    assert caps.of(("m", 512, 512, "its id")) == 2
