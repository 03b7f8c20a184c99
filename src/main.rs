//! The one static binary. Its name, or its first word, decides which program it is.

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    // Long enough for the same thread to use its memory again, short enough for a pod's limit.
    sys::memory::return_after(std::time::Duration::from_millis(10));
    cli::main()
}
