//! How often a test repeats what it does: a tenth by default, all of it in a soak.

/// The environment variable that `tests/run --soak` sets to `1`.
const SOAK: &str = "ROADSTEAD_SOAK";

/// `full` in a soak (`tests/run --soak`), else a tenth of it, at least 1.
#[must_use]
pub fn scaled(full: usize) -> usize {
    if is_soak() { full } else { full.div_ceil(10) }
}

/// `soak` in a soak, else `ci`, for a count of which CI takes more or less than a tenth.
#[must_use]
pub fn scale<T>(ci: T, soak: T) -> T {
    if is_soak() { soak } else { ci }
}

/// Whether this run is a soak.
#[must_use]
pub fn is_soak() -> bool {
    std::env::var(SOAK).is_ok_and(|value| value == "1")
}
