//! The program where Vulkan is not, and where its driver has no memory.

use std::fs;
use std::process::{Command, Output};

use crate::bad_input::is_refusal;
use crate::fixture::{folder, model, program};

/// Asks for a few words from a device.
fn on(device: &str) -> [&str; 9] {
    ["generate", "--model", model(), "--prompt", "Call me", "--max-tokens", "2", "--device", device]
}

/// Runs it where what would be Vulkan's loader is no library.
fn without_loader(args: &[&str]) -> Output {
    let libraries = folder().join("no-vulkan");
    fs::create_dir_all(&libraries).unwrap();
    fs::write(libraries.join("libvulkan.so.1"), "").unwrap();
    program(args).env("LD_LIBRARY_PATH", libraries).output().unwrap()
}

#[test]
fn no_library_of_a_gpu_is_linked() {
    let linked = match Command::new("ldd").arg(env!("CARGO_BIN_EXE_heterokv")).output() {
        Ok(output) => String::from_utf8(output.stdout).unwrap(),
        Err(error) => return println!("SKIPPED: ldd: {error}"),
    };
    assert!(linked.contains("libc."), "{linked}");
    for library in ["vulkan", "libGL", "libEGL", "libcuda", "libnv"] {
        assert!(!linked.contains(library), "{linked}");
    }
}

#[test]
fn without_vulkan_a_device_is_refused_and_the_cpu_is_not() {
    let parts = ["adapters here: none", "on Debian: ", "mesa-vulkan-drivers"];
    for device in ["gpu", "gpu:0", "gpu:software"] {
        is_refusal(without_loader(&on(device)), &on(device), &parts);
    }
    let output = without_loader(&on("cpu"));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(!output.stdout.is_empty());
}

/// Exact rows of 1.5 GB, in an address space of 1.2 GB.
#[test]
fn a_driver_without_memory() {
    let most = ["--max-tokens", "3000000", "--allow-beyond-trained", "--cache", "full"];
    let args = ["generate", "--model", model(), "--prompt", "Call me", "--device", "gpu:software"];
    let args = [&args[..], &most].concat();
    let mut limited = Command::new("prlimit");
    limited.arg("--as=1200000000").arg(env!("CARGO_BIN_EXE_heterokv"));
    // Threads take address space; without the folder the driver has an error to tell, too.
    limited.args(&args).args(["--threads", "1"]).env("LP_NUM_THREADS", "1");
    let output = match limited.env("XDG_RUNTIME_DIR", folder()).output() {
        Ok(output) => output,
        Err(error) => return println!("SKIPPED: prlimit: {error}"),
    };
    let stderr = String::from_utf8_lossy(&output.stderr);
    if stderr.contains("no software adapter was found") {
        let wanted = std::env::var("HETEROKV_GPU").unwrap_or_default();
        assert_ne!(wanted, "required", "{stderr}");
        return println!("SKIPPED: {stderr}");
    }
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    let parts =
        ["the device is out of memory: ", " for exact rows, with ", "make the cache smaller"];
    is_refusal(output, &args, &parts);
}
