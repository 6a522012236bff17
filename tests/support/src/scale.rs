//! How often a test repeats what it does: a tenth by default, all of it in a soak.

/// The environment variable that `tests/run --soak` sets to `1`.
const SOAK: &str = "ROADSTEAD_SOAK";

/// `soak` in a soak (`tests/run --soak`), else `ci`, which is a tenth of it unless the test says why.
#[must_use]
pub fn scale<T>(ci: T, soak: T) -> T {
    if std::env::var(SOAK).is_ok_and(|value| value == "1") { soak } else { ci }
}
