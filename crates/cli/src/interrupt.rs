//! Ctrl-C: it ends a reply, leaves a prompt, and stops anything else.

use std::fs;
use std::path::PathBuf;
use std::process;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, PoisonError};

/// Loading, reading a prompt: nothing to end but the program.
const WORKING: u8 = 0;
/// Waiting for a line.
const AT_PROMPT: u8 = 1;
/// Writing a reply.
const REPLYING: u8 = 2;
/// The reply has been told to end.
const STOPPING: u8 = 3;

/// What a shell expects of a program that Ctrl-C has stopped.
const STOPPED: i32 = 130;

static STATE: AtomicU8 = AtomicU8::new(WORKING);

/// A folder that is of no use without this process.
static FOLDER: Mutex<Option<PathBuf>> = Mutex::new(None);

/// Takes over Ctrl-C.
///
/// # Errors
/// When the system refuses.
pub(crate) fn install() -> anyhow::Result<()> {
    ctrlc::set_handler(|| {
        let stopped =
            STATE.compare_exchange(REPLYING, STOPPING, Ordering::SeqCst, Ordering::SeqCst);
        match stopped {
            Ok(_) => {}
            Err(AT_PROMPT) => leave(0),
            Err(_) => leave(STOPPED),
        }
    })?;
    Ok(())
}

/// Removes this folder, too, when Ctrl-C ends the program.
pub(crate) fn remove_at_end(folder: PathBuf) {
    *FOLDER.lock().unwrap_or_else(PoisonError::into_inner) = Some(folder);
}

fn leave(code: i32) -> ! {
    if let Some(folder) = FOLDER.lock().unwrap_or_else(PoisonError::into_inner).take() {
        // Others may still write into it; what is left then the next run removes.
        let _ = fs::remove_dir_all(folder);
    }
    process::exit(code)
}

/// Runs `wait`, during which Ctrl-C leaves the program in peace.
pub(crate) fn at_prompt<T>(wait: impl FnOnce() -> T) -> T {
    during(AT_PROMPT, wait)
}

/// Runs `reply`, which looks at [`is_stopping`] now and then.
pub(crate) fn replying<T>(reply: impl FnOnce() -> T) -> T {
    during(REPLYING, reply)
}

/// Whether Ctrl-C was pressed during this reply.
pub(crate) fn is_stopping() -> bool {
    STATE.load(Ordering::SeqCst) == STOPPING
}

fn during<T>(state: u8, run: impl FnOnce() -> T) -> T {
    STATE.store(state, Ordering::SeqCst);
    let result = run();
    STATE.store(WORKING, Ordering::SeqCst);
    result
}
