//! What the allocator keeps of the memory that was freed.
//!
//! glibc gives back to the system what is free at the end of a heap. Between what is still in use it keeps all free memory, for
//! good: after a window with a million counters that is hundreds of megabytes. `malloc_trim` gives free pages back wherever they
//! are. No crate offers it in a safe function. While it looks through a heap, threads that need more from that heap wait; small
//! allocations come from a cache of each thread.

/// Gives free pages back to the system.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[expect(unsafe_code, reason = "a function of C")]
pub(crate) fn give_back() {
    // SAFETY: it takes no pointer, and locks what it looks through.
    unsafe { libc::malloc_trim(0) };
}

/// Other allocators give it back of their own accord.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub(crate) fn give_back() {}
