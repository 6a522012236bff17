//! The `roadstead` binary: its allocator, and a call. Everything else is in the library.

use std::process::ExitCode;

use libmimalloc_sys::{mi_option_set, mi_option_t};
use mimalloc::MiMalloc;
use rustix::thread::disable_transparent_huge_pages;

/// A small request takes two thirds more CPU with musl's allocator, and glibc's gives nothing back (`docs/performance.md`).
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// `mi_option_purge_delay` of mimalloc's `mi_option_e`: the milliseconds that freed pages stay with the process.
const PURGE_DELAY: mi_option_t = 15;

fn main() -> ExitCode {
    give_memory_back_at_once();
    // Where they are always on, a page that is in use keeps 2 MiB. A kernel without them refuses, and that is as good.
    let _ = disable_transparent_huge_pages(true);
    roadstead::cli::main()
}

/// Otherwise pages go back to the kernel when the allocator next has to do with their neighbours: not while the process rests.
#[allow(unsafe_code, reason = "an option of the allocator is set by a function of C")]
fn give_memory_back_at_once() {
    // SAFETY: it writes one number, which other threads may read. None has been started yet.
    unsafe { mi_option_set(PURGE_DELAY, 0) }
}
