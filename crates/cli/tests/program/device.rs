//! The program on a device that the CPU plays, where Vulkan is not, and where its driver has no memory.

use std::fs;
use std::io::Write;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use crate::bad_input::is_refusal;
use crate::fixture::{file, folder, json_of, model, program, prose, run};

/// Asks for a few words from a device.
fn on(device: &str) -> [&str; 9] {
    ["generate", "--model", model(), "--prompt", "Call me", "--max-tokens", "2", "--device", device]
}

/// What is said where there is no device that the CPU plays, and none is asked for.
fn missing(output: &Output) -> Option<String> {
    let stderr = String::from_utf8_lossy(&output.stderr);
    let is_missing = stderr.contains("no software adapter was found");
    let is_required = std::env::var("HETEROKV_GPU").is_ok_and(|wanted| wanted == "required");
    assert!(!(is_missing && is_required), "{stderr}");
    is_missing.then(|| format!("SKIPPED: {stderr}"))
}

/// What is said of a reply is the same wherever it was made, but for where its bytes are.
#[test]
fn a_reply_on_a_device_is_that_of_the_cpu() {
    if let Some(why) = missing(&run(&on("gpu:software"))) {
        return println!("{why}");
    }
    let book = file("device.txt", &prose(330));
    for spec in
        ["full", "keys=int4-token,values=f16@host,rescore=f16@host,select=none,sinks=2,recent=8"]
    {
        let args =
            ["generate", "--model", model(), "--file", &book, "--max-tokens", "12", "--json"];
        let args = [&args[..], &["--cache", spec, "--compute", "f16"]].concat();
        let of = |device| json_of(&[&args[..], &["--device", device]].concat()).remove(0);
        let [host, on_device] = ["cpu", "gpu:software"].map(of);
        for field in ["text", "tokens", "finish", "num_tokens", "host_bytes", "spec"] {
            assert_eq!(host[field], on_device[field], "{spec}: {field}");
        }
        let number = |field: &str| on_device[field].as_f64().unwrap_or_default();
        assert!(number("gpu_bytes") > 0.0 && number("gpu_bytes") <= number("gpu_peak_bytes"));
        assert!(number("to_device_bytes_per_token") > 0.0, "{on_device}");
        // Of what is all on the device an id comes back.
        assert_eq!(number("to_host_bytes_per_token") < 5.0, spec == "full", "{on_device}");
        assert_eq!(host["gpu_bytes"], Value::Null, "{spec}");
    }
}

/// What one of the two has read the other goes on from.
#[test]
fn a_session_goes_from_the_cpu_to_a_device_and_back() {
    if let Some(why) = missing(&run(&on("gpu:software"))) {
        return println!("{why}");
    }
    let book = file("device-session.txt", &prose(330));
    for (name, spec) in [
        ("full", "full"),
        ("int4", "keys=int4-token,values=f16@host,rescore=f16@host,select=none,sinks=2,recent=8"),
        ("channels", "keys=int4-channel/32,values=f16@host,select=none,sinks=2,recent=8"),
    ] {
        let sessions = ["cpu", "gpu"].map(|at| folder().join(format!("device-{name}-{at}")));
        let on = |session: usize, device: &str, prompt: &str| {
            let path = sessions[session].to_str().unwrap();
            let args = ["generate", "--model", model(), "--file", &book, "--prompt", prompt];
            let args = [&args[..], &["--max-tokens", "8", "--json", "--compute", "f16"]].concat();
            let args = [&args[..], &["--cache", spec, "--device", device, "--session", path]];
            json_of(&args.concat()).remove(0)
        };
        let first = ["cpu", "gpu:software"].into_iter().enumerate().map(|(session, device)| {
            let _ = fs::remove_dir_all(&sessions[session]);
            let object = on(session, device, "Who?");
            assert_eq!(object["session_tokens"], 0, "{spec} {device}");
            object
        });
        let first: Vec<Value> = first.collect();
        for (session, device) in [(0, "gpu:software"), (1, "cpu"), (1, "gpu:software")] {
            let object = on(session, device, "Who?");
            assert_eq!(object["session_tokens"], 334, "{spec} {device}");
            assert_eq!(object["tokens"], first[session]["tokens"], "{spec} {device}");
        }
        // Another question, read there and answered here.
        let there = on(0, "gpu:software", "Where to?");
        assert_eq!(there["session_tokens"], 332, "{spec}");
        let here = on(0, "cpu", "Where to?");
        assert_eq!((&here["session_tokens"], &here["tokens"]), (&339.into(), &there["tokens"]));
    }
}

/// Tokens are forgotten there as here, behind the prompt, by what its queries attend to and by what is expected of others.
#[test]
fn what_is_forgotten_on_a_device_is_what_the_cpu_forgets() {
    if let Some(why) = missing(&run(&on("gpu:software"))) {
        return println!("{why}");
    }
    let book = file("device-forgets.txt", &prose(600));
    let reply = |spec: &str, device: &str| {
        let args = ["generate", "--model", model(), "--file", &book, "--max-tokens", "12"];
        let more = ["--json", "--compute", "f16", "--cache", spec, "--device", device];
        json_of(&[&args[..], &more].concat()).remove(0)
    };
    let full = reply("full", "gpu:software");
    for spec in ["snapkv:30%,recent=16,every=once", "expected:30%,recent=16,every=once"] {
        let [host, on_device] = ["cpu", "gpu:software"].map(|device| reply(spec, device));
        for field in ["text", "tokens", "cached_tokens", "host_bytes"] {
            assert_eq!(host[field], on_device[field], "{spec}: {field}");
        }
        assert_ne!(full["text"], on_device["text"], "{spec}: other tokens are held");
        // Nothing waits for the host while tokens come: of each an id comes back.
        assert!(on_device["to_host_bytes_per_token"].as_f64().unwrap() < 5.0, "{on_device}");
        let bytes = |object: &Value| object["device_bytes"].as_f64().unwrap();
        assert!(bytes(&on_device) < 0.5 * bytes(&full), "{on_device}");
    }
    let session = folder().join("device-forgets");
    let session = ["--session", session.to_str().unwrap()];
    for (more, part) in [
        (
            &["--cache", "snapkv:30%,recent=16"][..],
            "behind the prompt only on a GPU; add every=once",
        ),
        (
            &[&session[..], &["--cache", "snapkv:30%,every=once"]].concat(),
            "leave --session or --device out",
        ),
    ] {
        let output = run(&[&on("gpu:software")[..], more].concat());
        // Drivers say things too.
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        assert!(stderr.contains(part), "{stderr}");
    }
}

#[test]
fn a_chat_on_a_device() {
    if let Some(why) = missing(&run(&on("gpu:software"))) {
        return println!("{why}");
    }
    let book = file("device-chat.txt", &prose(60));
    let replies = ["cpu", "gpu:software"].map(|device| {
        let args = ["chat", "--model", model(), "--file", &book, "--max-tokens", "6"];
        let args =
            [&args[..], &["--cache", "full", "--compute", "f16", "--device", device]].concat();
        let mut chat = program(&args);
        chat.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut chat = chat.spawn().unwrap();
        chat.stdin.take().unwrap().write_all(b"Who is it?\nAnd then?\n").unwrap();
        let output = chat.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    });
    assert!(!replies[0].trim().is_empty());
    assert_eq!(replies[0], replies[1]);
}

/// Its number is not enough.
#[test]
fn a_software_device_is_asked_for_by_its_name() {
    if let Some(why) = missing(&run(&on("gpu:software"))) {
        return println!("{why}");
    }
    // Without the folder the driver has an error to tell, too.
    let output = program(&on("gpu:0")).env("XDG_RUNTIME_DIR", folder()).output().unwrap();
    // Where there is a GPU, it is the first.
    if !output.status.success() {
        is_refusal(output, &on("gpu:0"), &["which the CPU plays", "--device gpu:software"]);
    }
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
    if let Some(why) = missing(&output) {
        return println!("{why}");
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    let parts =
        ["the device is out of memory: ", " for exact rows, with ", "make the cache smaller"];
    is_refusal(output, &args, &parts);
}
